"""What stands between learned maps and recurrences, as kernels: their text, registration, and PyTorch's way."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations

from rnnc.derive import pull_back
from rnnc.ir import Conv, Expr, Linear, Normalize, Ref, Type, walk
from rnnc.lower import System
from rnnc.plan import is_number, per_token
from rnnc.region import Region
from rnnc.show import expr_text

from ..torch.block import Block, NameTable
from ..torch.text import cut, docstring, mapping, quoted, several, together, wrap
from .prune import pruned
from .sums import SumTiles, normalized
from .tile import AXES, Tile, Tiles, align, folded, literal, numbers, shape

_FRAME = frozenset(
    "tl triton float range DTYPE BT BS BN BC TOKENS BLOCKS STEPS OUTER INNER LANES token outer inner lane row block "
    "step real_token real_outer real_inner real_lane real_ts real_tn real_tc real_sn real_sc real_nc real_tsn real_tsc "
    "real_tnc real_snc real_tsnc self dtype run T PACKED place sequence position_ptr sequence_ptr _".split()
)
_PLACE = """\
if PACKED:
    place = tl.load(position_ptr + token, mask=real_token, other=0)
    sequence = tl.load(sequence_ptr + token, mask=real_token, other=0)
else:
    place, sequence = token % T, token // T""".split("\n")
_INDEX = {"t": "token", "s": "outer", "n": "inner", "c": "lane"}


@dataclass(frozen=True)
class Leaf:
    """A value that a kernel reads: the node that PyTorch computes, and what stands for it in the kernel's expressions:
    of what all tokens share, something that has all dims that are spread, over which gradients are summed last."""

    node: Expr
    ref: Ref
    name: str
    learns: bool


@dataclass(frozen=True)
class Taps:
    """A convolution: what stands for its value, its weights, newest first, and what it reads, of a token and those
    before it; the names of the weights, of what was before the first token, and of the value's gradient."""

    node: Conv
    ref: Ref
    weights: tuple[Ref, ...]
    values: tuple[Expr, ...]
    leaf: Leaf
    name: str
    past: str
    flow: str


@dataclass(frozen=True)
class _Sum:
    """A gradient that is summed over a program's tokens: its name, where it is stored, the variable that holds it."""

    gradient: Expr
    name: str
    dims: tuple[str, ...]
    total: Tile
    tap: str = ""


@dataclass
class _Body:
    """Lines of one kernel: before the tokens, of them, and after."""

    before: list[str] = field(default_factory=list[str])
    each: list[str] = field(default_factory=list[str])
    after: list[str] = field(default_factory=list[str])


class RegionCoder:
    """The kernels of one region, forward and backward."""

    def __init__(self, system: System, region: Region, prefix: str, function: Callable[[str], str]) -> None:
        self.system, self.graph, self.region = system, system.graph, region
        self.names = NameTable(_FRAME)
        self.parameters: set[str] = set()
        self.sizes = {d: self.names.new(d) for d in region.dims}
        axes = "c" if len(region.groups) == 1 else "nc"
        self.groups = dict(zip(axes, region.groups, strict=False)) | ({"s": region.spread} if region.spread else {})
        names = {"s": "OUTER", "n": "INNER", "c": "LANES"}
        self.counts = {a: self.sizes[g[0]] if len(g) == 1 else names[a] for a, g in self.groups.items()}
        self.tokens = [self.leaf(n) for n in region.inputs]
        self.fixed = [self.leaf(n) for n in region.fixed]
        self.result_names = [self.stem(self.hint_of(r), ("{}_ptr", "d_{}_ptr")) for r in region.results]
        told = [n for n, r in zip(self.result_names, region.results, strict=True) if self.hint_of(r) != "value"]
        self.name = function(together(told or ["between"]))
        self.method_name = f"{self.name.removeprefix(prefix)}_in_torch"
        self.hints: dict[Expr, str] = {}
        self.of: dict[Expr, Expr] = {x.node: x.ref for x in (*self.tokens, *self.fixed)}
        self.convs = [self.taps(n) for n in region.convs]
        self.of.update((c.node, c.ref) for c in self.convs)
        self.plained: dict[Expr, Expr] = {}
        for c in self.convs:
            products = [self.graph.apply("mul", w, x) for w, x in zip(c.weights, c.values, strict=True)]
            self.plained[c.ref] = reduce(lambda a, b: self.graph.apply("add", a, b), products)
            self.hints[self.plained[c.ref]] = "conv"
        self.functions: set[str] = set()
        self.arriving = [
            None if r.kind == "bool" else self.graph.ref("input", f"arriving {i}", r.type)
            for i, r in enumerate(region.results)
        ]
        made = self.over_stand_ins()
        self.gradients = self._gradients(made)
        self.results = [self.plain(made[r]) for r in region.results]
        self.number_names: dict[Expr, str] = {}
        for n in numbers([*self.results, *self.gradients.values(), *self.of_convs.values()]):
            wanted = system.names.get(n) or (n.name if isinstance(n, Ref) else "number")
            self.number_names[n] = self.names.new(wanted)

    # --- names ---

    def hint_of(self, node: Expr) -> str:
        return self.system.names.get(node) or next((n for n, e in self.system.outputs if e is node), "value")

    def stem(self, wanted: str, parameters: Iterable[str]) -> str:
        """A new name whose parameters have new names as well."""
        name, made = self.names.stem(wanted, parameters)
        self.parameters |= made
        return name

    def leaf(self, node: Expr) -> Leaf:
        wanted = self.system.names.get(node) or "value"
        if isinstance(node, Ref):
            past = node.name.removesuffix("_past") + ("_before" if node.role == "state" else "")
            wanted = f"{past}_{node.lag}" if node.lag else node.name
        elif isinstance(node, Linear) and node not in self.system.names:
            wanted = f"{node.weight.removesuffix('_weight')}_in"
        name = self.stem(wanted, ("{}_ptr", "{}_row", "d_{}_ptr"))
        learns = node.kind != "bool" and not (isinstance(node, Ref) and node.role == "buffer")
        dims = node.dims if per_token(node) else self.graph.sort((*node.dims, *self.region.spread))
        return Leaf(node, self.graph.ref("input", f"in {name}", Type(dims, node.kind)), name, learns)

    def taps(self, node: Conv) -> Taps:
        leaf = next(x for x in self.tokens if x.node is node.arg)
        weight = self.stem(node.weight, ("{}_ptr", "d_{}_ptr"))
        past = self.stem(f"{leaf.name}_past", ("{}_ptr",))
        weights = [self.graph.ref("input", f"{weight} {j}", Type(node.dims)) for j in range(node.width)]
        values = [
            leaf.ref,
            *(self.graph.ref("input", f"{leaf.name} {j}", Type(node.dims)) for j in range(1, node.width)),
        ]
        ref = self.graph.ref("input", f"conv {weight}", node.type)
        flow = self.stem(f"conv_{leaf.name}", ("d_{}_ptr",))
        return Taps(node, ref, tuple(weights), tuple(values), leaf, weight, past, flow)

    # --- expressions ---

    def over_stand_ins(self) -> dict[Expr, Expr]:
        """What the kernels compute, over what stands for what they read."""
        done: dict[Expr, Expr] = {}
        for node in self.region.inside:
            children = tuple(self.of.get(c) or done.get(c, c) for c in node.children)
            done[node] = self.of[node] if isinstance(node, Conv) else self.graph.rebuild(node, children)
        return done

    def _gradients(self, made: Mapping[Expr, Expr]) -> dict[Leaf, Expr]:
        """The gradient of each leaf that has one."""
        whole: dict[Expr, Expr] = {}
        for r, d in zip(self.region.results, self.arriving, strict=True):
            if d is not None:
                whole[made[r]] = self.graph.apply("add", whole[made[r]], d) if made[r] in whole else d
        named = {made[n]: hint for n, hint in self.system.names.items() if n in made and made[n].children}
        convolved = {c.leaf for c in self.convs}
        learned = [x for x in (*self.tokens, *self.fixed) if x.learns and x not in convolved]
        found = pull_back(self.graph, whole, [*(x.ref for x in learned), *(c.ref for c in self.convs)], named)
        for node, hint in named.items():
            self.hints.setdefault(self.plain(node), hint)
        for node, hint in (*named.items(), *((x.ref, x.name) for x in learned)):
            if node in found and found[node].children:
                self.hints.setdefault(self.plain(found[node]), f"d_{hint}")
        # What only conditions read has a gradient, too: it is summed over tokens outside.
        self.of_convs = {c: self.plain(found.get(c.ref, self.graph.lit(0.0))) for c in self.convs}
        return {x: self.plain(found[x.ref]) for x in learned if x.ref in found}

    def plain(self, root: Expr) -> Expr:
        """Normalisers as what they are made of."""
        done = self.plained
        for node in walk(root):
            if node not in done:
                made = self.graph.rebuild(node, tuple(done[c] for c in node.children)) if node.children else node
                done[node] = normalized(self.graph, made, made.arg) if isinstance(made, Normalize) else made
        return done[root]

    # --- places in memory ---

    def axes_of(self, node: Expr) -> str:
        """The axes of what a node has for one token."""
        return "".join(a for a in AXES if a in self.groups and set(self.groups[a]) & set(node.dims))

    def product(self, dims: Iterable[str]) -> str:
        return " * ".join(self.sizes[d] for d in dims) or "1"

    def offset(self, dims: tuple[str, ...]) -> list[tuple[str, str]]:
        """Where an entry of something with these dims stands: terms, and the axis of each."""
        terms: list[tuple[str, str]] = []
        i = 0
        while i < len(dims):
            axis = next(a for a, own in self.groups.items() if dims[i] in own)
            own = self.groups[axis]
            if dims[i : i + len(own)] == own:
                name, count = _INDEX[axis], len(own)
            else:
                after = self.product(own[own.index(dims[i]) + 1 :])
                name = _INDEX[axis] if after == "1" else f"{_INDEX[axis]} // {_bracketed(after)}"
                name, count = name if own[0] == dims[i] else f"{name} % {self.sizes[dims[i]]}", 1
            i += count
            stride = self.product(dims[i:])
            terms.append((name if stride == "1" else f"{_bracketed(name)} * {stride}", axis))
        return terms

    def address(self, pointer: str, first: str, first_axis: str, dims: tuple[str, ...]) -> tuple[str, str]:
        """An entry of a row of memory, and the axes of such."""
        terms = [(first, first_axis)] if first else []
        terms += self.offset(dims)
        axes = "".join(a for a in AXES if any(a in x for _, x in terms))
        parts = [align(t, Tile((t,), a, 6 if t.isidentifier() else 4), axes, 3) for t, a in terms]
        return " + ".join([pointer, *parts]), axes

    def row(self, name: str, dims: tuple[str, ...]) -> str:
        """How far a token's entries are from those of the first, where there are no others between."""
        size = self.product(dims)
        return name if size == "1" else f"{name} * {_bracketed(size)}"

    def mask(self, axes: str) -> str:
        return {"": "", "t": "real_token", "s": "real_outer", "n": "real_inner", "c": "real_lane"}.get(
            axes, f"real_{axes}"
        )

    def spread_out(self, tiles: Tiles, node: Expr, axes: str) -> str:
        """Code of a value with all of these axes."""
        (part,) = tiles.aligned(node, axes, 0, arithmetic=node.kind != "bool")
        if is_number(node):
            return f"tl.full({shape(axes)}, {part}, DTYPE)"
        return part if tiles.tile(node).axes == axes else f"tl.broadcast_to({part}, {shape(axes)})"

    # --- lines ---

    def tiles(self) -> SumTiles:
        def number(node: Expr) -> tuple[str, ...]:
            value = folded(node)
            return (self.number_names[node],) if value is None else literal(value)

        names = NameTable(_FRAME | self.parameters | {*self.sizes.values(), *self.number_names.values()})
        made = SumTiles(
            names, self.hints, number, [(a, g, self.counts[a], self.mask(a)) for a, g in self.groups.items()]
        )
        made.functions = self.functions
        return made

    def load(self, tiles: Tiles, name: str, ref: Expr, node: Expr, address: tuple[str, str]) -> None:
        at, axes = address
        masked = f", mask={self.mask(axes)}, other=0" if axes else ""
        cast = "tl.int1" if node.kind == "bool" else "DTYPE"
        tiles.values[ref] = tiles.assign(name, Tile((f"tl.load({at}{masked}).to({cast})",), axes))

    def read_fixed(self, tiles: Tiles, roots: Sequence[Expr]) -> list[str]:
        """Lines that load what all tokens share, and compute what only that decides."""
        below = set(walk(*roots))
        for x in self.fixed:
            if x.ref in below:
                self.load(tiles, x.name, x.ref, x.node, self.address(f"{x.name}_ptr", "", "", x.node.dims))
        for c in self.convs:
            for j, ref in enumerate(c.weights):
                if ref in below:
                    self.load(tiles, f"{c.name}_{j}", ref, ref, self.tap(f"{c.name}_ptr", c, j))
        shared: set[Expr] = {*(x.ref for x in self.fixed), *(w for c in self.convs for w in c.weights)}
        for node in walk(*roots):
            if node.children and all(c in shared or is_number(c) for c in node.children) and not is_number(node):
                shared.add(node)
        border = [c for n in walk(*roots) if n not in shared for c in n.children if c in shared and c.children]
        tiles.expect(*roots)
        for node in dict.fromkeys(border):
            tiles.name(node)
        return tiles.take()

    def read_tokens(self, tiles: SumTiles, roots: Sequence[Expr]) -> None:
        below = set(walk(*roots))
        for x in self.tokens:
            if x.ref in below:
                first = f"token * {x.name}_row"
                self.load(tiles, x.name, x.ref, x.node, self.address(f"{x.name}_ptr", first, "t", x.node.dims))
        for c in self.convs:
            for j, ref in enumerate(c.values):
                if j and ref in below:
                    tiles.values[ref] = self.earlier(tiles, c, j)

    def earlier(self, tiles: SumTiles, c: Taps, j: int) -> Tile:
        """Lines that load what a convolution reads of a token before: before the first one, of the state."""
        dims, name = c.node.dims, c.leaf.name
        at, axes = self.address(f"{name}_ptr", f"(token - {j}) * {name}_row", "t", dims)
        row = self.row(f"(sequence * {len(c.values) - 1}{f' + {j - 1}' if j > 1 else ''} - place)", dims)
        before, _ = self.address(f"{c.past}_ptr", row, "t", dims)
        there = align(f"(place >= {j})", Tile((f"(place >= {j})",), "t"), axes)
        self.functions.add("_tl_earlier")
        return tiles.assign(
            f"{name}_{j}", Tile((f"_tl_earlier({at}, {before}, {self.mask(axes)}, {there}, DTYPE)",), axes)
        )

    def tap(self, pointer: str, c: Taps, j: int, first: str = "") -> tuple[str, str]:
        """Where a weight of a convolution stands: the newest token's is the last."""
        text, axes = self.address("", first, "", c.node.dims)
        text = text.removeprefix(" + ")
        last = c.node.width - 1 - j
        return f"{pointer} + {_bracketed(text)} * {c.node.width}{f' + {last}' if last else ''}", axes

    def forward(self) -> _Body:
        tiles, body = self.tiles(), _Body()
        body.before = self.read_fixed(tiles, self.results)
        self.read_tokens(tiles, self.results)
        for name, node, result in zip(self.result_names, self.region.results, self.results, strict=True):
            self.write(tiles, name, node, result)
        body.each = tiles.take()
        return body

    def write(self, tiles: Tiles, name: str, node: Expr, value: Expr) -> None:
        """Store a value of each token."""
        at, axes = self.address(f"{name}_ptr", self.row("token", node.dims), "t", node.dims)
        text = self.spread_out(tiles, value, axes)
        tiles.lines.append(f"tl.store({at}, {text}, mask={self.mask(axes)})")

    def backward(self) -> _Body:
        tiles, body = self.tiles(), _Body()
        of_taps = {
            w: g if is_number(g) else self.graph.apply("mul", g, x)
            for c, g in self.of_convs.items()
            for w, x in zip(c.weights, c.values, strict=True)
        }
        roots = [*self.gradients.values(), *self.of_convs.values(), *of_taps.values()]
        body.before = self.read_fixed(tiles, roots)
        sums = self.sums(tiles, of_taps)
        body.before += tiles.take()
        self.read_tokens(tiles, roots)
        below = set(walk(*roots))
        for name, node, d in zip(self.result_names, self.region.results, self.arriving, strict=True):
            if d is not None and d in below:
                first = self.row("token", node.dims)
                self.load(tiles, f"d_{name}", d, node, self.address(f"d_{name}_ptr", first, "t", node.dims))
        for x in self.tokens:
            if x in self.gradients:
                self.write(tiles, f"d_{x.name}", x.node, self.gradients[x])
        for c, g in self.of_convs.items():
            if not is_number(g):
                tiles.name(g, f"d_{c.flow}")
            self.write(tiles, f"d_{c.flow}", c.node, g)
        for x in sums:
            axes = "".join(a for a in AXES if a in "t" + x.total.axes or (a == "s" and a in self.groups))
            part = f"tl.where({self.mask(axes)}, {self.spread_out(tiles, x.gradient, axes)}, 0.0)"
            for a in [a for a in axes if a not in x.total.axes]:
                part, axes = f"tl.sum({part}, {axes.index(a)})", axes.replace(a, "")
            tiles.lines.append(f"{x.total.parts[0]} += {part}")
        body.each = tiles.take()
        body.after = [self.keep(x) for x in sums]
        return body

    def sums(self, tiles: SumTiles, of_taps: Mapping[Ref, Expr]) -> list[_Sum]:
        """Lines that begin the sums of what tokens share."""
        found: list[_Sum] = []

        def begin(gradient: Expr, name: str, node: Expr, tap: str = "", variable: str = "") -> None:
            axes = self.axes_of(node)
            total = tiles.assign(f"d_{variable or name}_sum", Tile((f"tl.zeros({shape(axes)}, DTYPE)",), axes))
            found.append(_Sum(gradient, name, node.dims, total, tap))

        for x in self.fixed:
            if x in self.gradients:
                begin(self.gradients[x], x.name, x.node)
        for c in self.of_convs:
            for j, w in enumerate(c.weights):
                last = c.node.width - 1 - j
                begin(of_taps[w], c.name, c.node, f" * {c.node.width}{f' + {last}' if last else ''}", f"{c.name}_{j}")
        return found

    def keep(self, x: _Sum) -> str:
        """The line that stores a sum for this program."""
        dims = self.slot(x.dims)
        size = self.product(d for d in dims if d != "*")
        first = "(row * BLOCKS + block)" if "*" in dims else "row"
        first = first if size == "1" else f"{first} * {_bracketed(size)}"
        pointer = f"d_{x.name}_ptr"
        at, axes = self.address("" if x.tap else pointer, first, "", tuple(d for d in dims if d != "*"))
        at = f"{pointer} + ({at.removeprefix(' + ')}){x.tap}" if x.tap else at
        return f"tl.store({at}, {x.total.parts[0]}{f', mask={self.mask(axes)}' if axes else ''})"

    def slot(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        """Dims of the memory that holds the gradient of something with `dims` before it is summed: all that are spread
        or, `*`, a number for each block of them; then its own."""
        own = [d for a, g in self.groups.items() if a != "s" for d in g if d in dims]
        return (*(self.region.spread if set(dims) & set(self.region.spread) else ("*",)), *own)

    # --- text ---

    def text(self) -> str:
        return "\n\n\n".join([self.kernel("forward", self.forward()), self.kernel("backward", self.backward())])

    def kernel(self, what: str, body: _Body) -> str:
        back = what == "backward"
        pointers = [p for x in self.tokens for p in (f"{x.name}_ptr", f"{x.name}_row")]
        pointers += [f"{x.name}_ptr" for x in self.fixed]
        pointers += [p for c in self.convs for p in (f"{c.name}_ptr", f"{c.past}_ptr")]
        pointers += [f"d_{n}_ptr" if back else f"{n}_ptr" for n in self.result_names]
        pointers += [f"d_{x.name}_ptr" for x in self.gradients] if back else []
        pointers += [f"d_{n}_ptr" for c in self.of_convs for n in (c.name, c.flow)] if back else []
        pointers += ["position_ptr", "sequence_ptr", "T", "TOKENS", "BLOCKS", *(["STEPS"] if body.after else [])]
        sizes = dict.fromkeys(["DTYPE", *self.sizes.values(), *self.number_names.values(), *self.counts.values(), "BT"])
        sizes |= dict.fromkeys(f"B{a.upper()}" for a in AXES if a in self.groups)
        sizes |= {"PACKED": None} if self.convs else {}
        head = [f"def {self.name}_{what}("]
        head += [*(f"    {n}," for n in pointers), *(f"    {n}: tl.constexpr," for n in sizes), "):"]
        lines = ["row = tl.program_id(0).to(tl.int64)", "block = tl.program_id(1)"]
        for a, axis in (("s", "outer"), ("n", "inner"), ("c", "lane")):
            if a in self.groups:
                block, count = f"B{a.upper()}", self.counts[a]
                lines.append(f"{axis} = {'block * BS + ' if a == 's' else ''}tl.arange(0, {block})")
                lines.append(f"real_{axis} = ({axis} < {count}) | ({count} % {block} == 0)")
        lines += self.masks("snc", [*body.before, *body.after])
        lines += body.before
        first = "(row * STEPS + step)" if body.after else "row"
        each = [f"token = {first} * BT + tl.arange(0, BT)", "real_token = token < TOKENS"]
        each += _PLACE if any("(place >= " in line for line in body.each) else []
        each += [*self.masks("tsnc", body.each), *body.each]
        lines += ["for step in range(0, STEPS):", *(f"    {x}" for x in each)] if body.after else each
        doc = docstring(self.told(back, bool(body.after)), "    ").split("\n")
        doc = [f"    {doc[0]}", *doc[1:]]
        text = pruned("\n".join([*head, *doc, *(f"    {x}" for x in [*lines, *body.after])])).split("\n")
        loose = ", ".join(quoted(n) for n in ("T", "TOKENS", "BLOCKS", "STEPS") if f"    {n}," in text)
        return "\n".join(wrap([f"@triton.jit(do_not_specialize=[{loose}])", *text]))

    def masks(self, axes: str, lines: Sequence[str]) -> list[str]:
        """Lines for the masks of tiles with several axes that other lines have."""
        text = "\n".join(lines)
        own = [a for a in axes if a == "t" or a in self.groups]
        found: list[str] = []
        for n in range(2, len(own) + 1):
            for chosen in combinations(own, n):
                whole = "".join(chosen)
                if "t" in axes and "t" not in chosen:
                    continue
                if re.search(rf"\b{self.mask(whole)}\b", text):
                    parts = [align(self.mask(a), Tile((self.mask(a),), a), whole) for a in chosen]
                    found.append(f"{self.mask(whole)} = {' & '.join(parts)}")
        return found

    def told(self, back: bool, summed: bool) -> str:
        region = self.region
        known = {**self.system.names, **{x.node: x.name for x in (*self.tokens, *self.fixed)}}
        equations = [
            cut(f"{name} = {expr_text(node, {n: x for n, x in known.items() if n is not node})}", 112)
            for name, node in zip(self.result_names, region.results, strict=True)
        ]
        has = [f"BS of {' and '.join(region.spread)}"] if region.spread else []
        has += [f"all of {' and '.join(g)}" for g in region.groups]
        has = ["BT tokens", *has]
        walk_text = (
            f"A program has {', '.join(has[:-1])} and {has[-1]}." if len(has) > 1 else f"A program has {has[0]}."
        )
        if summed:
            walk_text = walk_text.replace("BT tokens", "STEPS times BT tokens") + " It leaves sums over its own of what"
            walk_text += " tokens share."
        title = ["Gradients of what it reads, of", ""] if back else []
        return "\n".join([*title, *equations, "", *textwrap.wrap(walk_text, 112)])

    def registration(self, operator: str) -> list[str]:
        """Lines that register the kernels as an operator."""

        def dims(names: Iterable[str]) -> str:
            return several(quoted(self.sizes[d]) if d != "*" else quoted(d) for d in names)

        results = zip(self.result_names, self.region.results, self.region.uses, strict=True)
        groups = [g for a, g in self.groups.items() if a != "s"]
        fields = {
            "forward": f"{self.name}_forward",
            "backward": f"{self.name}_backward",
            "spread": dims(self.region.spread),
            "groups": several(dims(g) for g in groups),
            "lumps": several(several(map(str, x)) for x in self.region.lumps),
            "dims": dims(self.sizes),
            "tokens": mapping((x.name, dims(x.node.dims)) for x in self.tokens),
            "fixed": mapping((x.name, dims(x.node.dims)) for x in self.fixed),
            "learned": several(quoted(x.name) for x in self.gradients),
            "slots": mapping((x.name, dims(self.slot(x.node.dims))) for x in self.fixed if x in self.gradients),
            "convs": several(
                f"_Taps({', '.join(map(quoted, (c.name, c.leaf.name, c.past, c.flow)))}, {dims(c.node.dims)}, "
                f"{dims(self.slot(c.node.dims))})"
                for c in self.convs
            ),
            "numbers": several(map(quoted, self.number_names.values())),
            "results": mapping((n, several([dims(r.dims), quoted(r.kind), quoted(u)])) for n, r, u in results),
        }
        lines = [f"{self.name}_parts = _Region("]
        lines += [w for name, value in fields.items() for w in wrap([f"    {name}={value},"])]
        made = f"{self.name} = _region_operator(_OPERATORS, {quoted(operator)}, {self.name}_parts)"
        return [*lines, ")", *wrap([made])]

    def method(self, block: Block) -> list[str]:
        """The same by PyTorch, as a method of the class. `block` is for its code: one without names."""
        for x in (*self.tokens, *self.fixed):
            block.variables[x.node] = x.name
            block.names.taken.add(x.name)
        narrow = [x.name for x in self.tokens if x.node.kind == "real"]
        block.lines += [f"{name} = {name}.to(dtype)" for name in narrow]
        of = {c.node: c for c in self.convs}

        def convolved(node: Conv, text: str) -> str:
            return f"_conv(run, {text}, {of[node].past}, {of[node].name})"

        block.conv = convolved
        block.expect(*self.region.results)
        made = [block.aligned_code(r, r.dims) for r in self.region.results]
        names = [x.name for x in (*self.tokens, *self.fixed)] + [n for c in self.convs for n in (c.name, c.past)]
        given = ", ".join(f"{n}: Tensor" for n in names)
        head = f"def {self.method_name}(self, run: _Run, dtype: torch.dtype, {given}) -> tuple[Tensor, ...]:"
        doc = f'"""What `{self.name}` computes, in PyTorch."""'
        lines = [*wrap([head], 4), f"    {doc}", *(f"    {x}" for x in wrap(block.lines, 8))]
        return [*lines, *(f"    {x}" for x in wrap([f"return {several(made)}"], 8))]


def _bracketed(text: str) -> str:
    return text if text.isidentifier() else f"({text})"
