"""The words that a program cannot declare, and the functions of the language."""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Mapping

STATEMENTS = frozenset(
    "cell dim const input param buffer gate decay state eigenvalues output in over not and or".split()
)
KINDS = frozenset(("bool", "real", "complex"))

# Attributes of torch.nn.Module: the checker must not import torch (a test compares the two).
MODULE_ATTRIBUTES = frozenset(
    "T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double "
    "dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu "
    "load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters "
    "register_backward_hook register_buffer register_forward_hook register_forward_pre_hook "
    "register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook "
    "register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook "
    "register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to "
    "to_empty train training type xpu zero_grad".split()
)
# What the generated class and its methods call their own; only for names that become attributes or arguments.
CLASS_NAMES = frozenset(
    "self plan step initial_state reset_parameters backend validate device dtype state cu_seqlens".split()
)
# What stands at the top of a generated module, beside the classes of its cells.
MODULE_NAMES = frozenset(
    "torch nn F math itertools triton tl Tensor Any NamedTuple Callable Sequence annotations".split()
)

NUMBERS: Mapping[str, bool | int | float] = {
    "inf": float("inf"),
    "pi": 3.141592653589793,
    "true": True,
    "false": False,
}

UNARY = frozenset(
    "abs sign sqrt rsqrt square exp log log1p expm1 sin cos erf sigmoid logsigmoid tanh relu silu gelu softplus "
    "real imag conj stop_gradient".split()
)
REDUCTIONS = frozenset(("sum", "mean", "max", "min", "logsumexp"))
NORMALIZERS = frozenset(("softmax", "l2norm", "rmsnorm", "layernorm"))
BARE_DRAWS = frozenset(("zeros", "ones", "orthogonal", "eye"))
"""Initialisers written without brackets."""
DRAW_ARGUMENTS: Mapping[str, int] = {"normal": 1, "uniform": 2, "loguniform": 2, "arange": 1}

SIGNATURES: Mapping[str, str] = {
    **{f: f"{f}(x)" for f in sorted(UNARY)},
    **{f: f"{f}[K](x)" for f in ("sum", "mean", "logsumexp", "softmax")},
    "max": "max(a, b)` or `max[K](x)",
    "min": "min(a, b)` or `min[K](x)",
    **{f: f"{f}[K](x, eps=1e-6, weight=true, bias=true)" for f in ("l2norm", "rmsnorm", "layernorm")},
    "where": "where(condition, a, b)",
    "clamp": "clamp(x, lo, hi)",
    "logaddexp": "logaddexp(a, b)",
    "grad": "grad(e, S[t-1])",
    "solve": "solve[N, M](A, b)",
    "linear": "linear(x -> H, K, bias=true, init=orthogonal)`, `linear[P](x)` or `linear[P -> Q](x)",
    "conv": "conv[4](x, bias=true)",
    "normal": "normal(std)",
    "uniform": "uniform(a, b)",
    "loguniform": "loguniform(a, b)",
    "arange": "arange[N](start)",
    "zeros": "zeros",
    "ones": "ones",
    "orthogonal": "orthogonal",
    "eye": "eye",
    "disc": "disc(r)",
    "annulus": "annulus(r, s)",
}
"""How each function is called; backquotes go around it."""

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "linear": ("bias", "init"),
    "conv": ("bias",),
    "softmax": (),
    **dict.fromkeys(("l2norm", "rmsnorm", "layernorm"), ("eps", "weight", "bias")),
}


def reserved(name: str, role: str) -> str | None:
    """Why `name` cannot be declared as `role` (a statement's word, or `definition`), or None."""
    if name in STATEMENTS or name in KINDS:
        return "it is a word of the language"
    if name == "t":
        return "`t` is the time"
    if name in SIGNATURES or name in NUMBERS:
        return "it is built in"
    if keyword.iskeyword(name):
        return "it is a keyword of Python"
    if name.startswith("_"):
        return "names that begin with `_` belong to the generated module"
    if name in MODULE_ATTRIBUTES:
        return "it is an attribute of `torch.nn.Module`"
    if role == "dim" and name == "T":
        return "`T` is the length of a sequence"
    if role in ("dim", "const", "input", "param", "buffer") and name in CLASS_NAMES:
        return "the generated module has that name already"
    return None


def reserved_cell(name: str) -> str | None:
    """Why a cell cannot be called `name`, or None: it becomes a class at the top of a module."""
    if keyword.iskeyword(name):
        return "it is a keyword of Python"
    if name.startswith("_"):
        return "names that begin with `_` belong to the generated module"
    if hasattr(builtins, name):
        return "it is a builtin of Python"
    return "the generated module has that name already" if name in MODULE_NAMES else None


def with_arguments(count: int) -> str:
    """How a function was called, for a diagnostic."""
    return f"with {count} argument{'' if count == 1 else 's'}"
