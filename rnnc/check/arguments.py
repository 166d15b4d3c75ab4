"""Whether a call is one that its function knows: arguments, brackets, options, and the place where it stands."""

from __future__ import annotations

from rnnc import tree
from rnnc.check.reader import Head, Reader
from rnnc.check.words import OPTIONS, SIGNATURES, with_arguments
from rnnc.errors import functions, kinds


def well_formed(r: Reader, head: Head, count: int, *, brackets: bool = False) -> bool:
    """Whether a call has as many arguments as its function takes, and no arrow or brackets that it does not know."""
    call, name = head.call, head.name.text
    fault = None
    if call.target is not None:
        fault = "with an arrow"
    elif head.bracket is not None and (not brackets or head.bracket.right is not None):
        fault = "with an arrow in brackets" if head.bracket.right is not None else "with dims in brackets"
    elif len(call.args) != count:
        fault = with_arguments(len(call.args))
    if fault is not None:
        r.wrong(functions.WrongArguments(call.span, name, fault, SIGNATURES[name]))
    return known_options(r, head) and fault is None


def known_options(r: Reader, head: Head) -> bool:
    name = head.name.text
    good = True
    seen: set[str] = set()
    for option, _ in head.call.options:
        if option.text not in OPTIONS.get(name, ()):
            near = r.cx.nearest(option.text, OPTIONS.get(name, ()))
            r.wrong(functions.UnknownOption(option.span, option.text, name, OPTIONS.get(name, ()), near))
            good = False
        elif option.text in seen:
            r.wrong(functions.OptionTwice(option.span, option.text))
            good = False
        seen.add(option.text)
    return good


def flag(r: Reader, head: Head, option: str) -> bool | None:
    """The value of an option that is true or false (false by default); None where it is neither."""
    for name, value in head.call.options:
        if name.text == option:
            if isinstance(value, tree.Name) and value.text in ("true", "false"):
                return value.text == "true"
            return r.wrong(functions.OptionValue(value.span, option, "`true` or `false`"))
    return False


def allowed(r: Reader, head: Head, *, step: bool = False) -> bool:
    """Whether a function that is not elementwise may stand here; one that needs `step` only in an equation."""
    good = r.place.step if step else not r.place.elementwise
    if not good:
        r.wrong(kinds.NotInPlace(head.call.span, f"`{head.name.text}`", r.place.what, r.place.elementwise))
    return good
