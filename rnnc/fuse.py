"""Plan → Kernels: which recurrences a backend computes with everything elementwise around them in one kernel.

Goals: find the recurrences whose entries do not mix, join those that can run together, and draw the border of each
kernel: what it reads for each token (pre-activations rather than gates), what only parameters decide, what it writes.
Non-goals: how the kernel walks through time, and its text.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, replace

from rnnc.closure import Composable
from rnnc.derive import depends
from rnnc.ir import OPS, Apply, Conv, Expr, Graph, Linear, Reduce, Ref, walk
from rnnc.lower import Stream
from rnnc.plan import Loop, Plan, Pointwise, Scan, Step, is_number, needs, per_token
from rnnc.rank import RankChunks


@dataclass(frozen=True)
class Kernel:
    """States whose entries do not mix, computed together, and all that is elementwise around them.

    The states' dims come apart into `channels`, laid along threads, and `inner`, which `results` sum over (the states
    stay in registers then). `streams` are the values that it holds from token to token; `lags` says which of them are
    delays, of the value that stands before it, two or more tokens ago. `inputs` differ from token to token, `fixed` do
    not; both are computed before the kernel. `results` are written for each token beside the states that are `kept`,
    those whose values something else needs. `wide` says of each state whether its kept values enter further
    computations, and so keep the computing dtype, and `wide_results` of each result.
    """

    steps: tuple[Scan | Loop, ...]
    streams: tuple[Stream, ...]
    lags: tuple[int, ...]
    channels: tuple[str, ...]
    inner: tuple[str, ...]
    inputs: tuple[Expr, ...]
    fixed: tuple[Expr, ...]
    results: tuple[Expr, ...]
    kept: tuple[bool, ...]
    wide: tuple[bool, ...]
    wide_results: tuple[bool, ...]

    @property
    def scan(self) -> bool:
        """Whether tokens are composed, so that time may be cut into segments."""
        return all(isinstance(s, Scan) or _composed(s.maps) for s in self.steps)

    @property
    def scan_back(self) -> bool:
        """The same of the backward: affine in what flows back, whatever the forward is."""
        return all(isinstance(s, Scan) or _composed(s.flow) for s in self.steps)

    @property
    def tiled(self) -> bool:
        """Whether a tile of tokens is taken at a time, and composed; else one token after the other, all of the tile's
        entries being wanted for the states that stay in registers."""
        return not self.inner and self.scan and all(_safe(s) for s in self.steps)

    @property
    def tiled_back(self) -> bool:
        """The same of the backward, where it was proved that products of its coefficients cannot overflow."""
        return not self.inner and self.scan_back and all(s.contracting for s in self.steps)

    @property
    def verified(self) -> bool:
        """Whether the states that composed segments give are held against those that steps arrive at: nothing was
        proved that keeps the composed maps from overflowing where states do not."""
        return self.scan and not all(_safe(s) for s in self.steps)

    @property
    def verified_back(self) -> bool:
        return self.scan_back and not all(s.contracting for s in self.steps)

    @property
    def stored(self) -> bool:
        """Whether the backward reads the states of all tokens. Where nothing else needs them, those that enter each
        chunk of tokens are enough."""
        return self.tiled_back or any(self.kept)

    @property
    def form(self) -> str:
        """How the kernel walks through time, in words."""
        return _form(self.tiled, self.scan)

    @property
    def form_back(self) -> str:
        return _form(self.tiled_back, self.scan_back)


TENSOR = "chunks of tokens, on tensor cores"
"""How kernels compute what is `paired`."""


def paired(step: Step) -> bool:
    """Whether kernels compute a step by chunks of tokens: of real numbers."""
    return isinstance(step, Scan) and step.chunks is not None and step.stream.type.kind == "real"


SOLVED = "chunks of tokens, low-rank transitions solved, on tensor cores"
"""How kernels compute what is `ranked`."""
MOST_SUMS = 16
"""Sums of a state in one map for which kernels have room: the fewest tokens of a chunk."""


def ranked(step: Step) -> bool:
    """Whether kernels compute states with low-rank transitions by chunks of tokens."""
    return isinstance(step, Loop) and isinstance(step.chunks, RankChunks) and not unranked(step)


def unranked(step: Loop) -> str:
    """Why kernels do not compute chunks of low-rank transitions, in words, or nothing."""
    if len(step.streams) > 1:
        return "several states in one map"
    kind = next(s.type.kind for s in step.streams)
    if kind != "real":
        return f"{kind} states"
    return "" if step.contracting else "factors that were not proved to lie in [-1, 1]"


def streams_of(step: Step) -> tuple[Stream, ...]:
    return step.streams if isinstance(step, Loop) else (step.stream,)


def _form(tiled: bool, scan: bool) -> str:
    if tiled:
        return "fused scan over tiles of tokens"
    return "fused scan, token after token in segments" if scan else "fused loop over tokens"


def _scans(step: Step) -> bool:
    # Products of coefficients overflow where states need not: without the proof that they cannot, tokens are stepped.
    return isinstance(step, Scan) and step.contracting


LARGEST = 48
"""Numbers of a map that a thread can hold beside the next token's: a full matrix of 6 x 6 and its offset."""


def _composed(maps: Composable | None) -> bool:
    """Whether a kernel composes these maps."""
    return maps is not None and sum(1 + (p.kind == "complex") for p in maps.parameters) <= LARGEST


def _safe(step: Scan | Loop) -> bool:
    if isinstance(step, Scan):
        return step.contracting
    return step.maps is not None and not step.maps.grows(step.contracting)


def held(graph: Graph, step: Scan | Loop) -> list[tuple[Stream, int]]:
    """The values that a step holds from token to token, each as a stream that reaches back one, and its lag.

    What is read from further back goes through delays: `y 2` is the value of `y` one token earlier.
    """
    if isinstance(step, Scan) or (step.maps or step.flow) is None:
        return [(s, 1) for s in streams_of(step)]
    family = step.maps or step.flow
    assert family is not None
    by_name = {s.name: s for s in step.streams}
    out: list[tuple[Stream, int]] = []
    for name, lag in family.components:
        stream = by_name[name]
        if lag > 1:
            before = graph.ref("state", out[-1][0].name, stream.type, 1)
            stream = Stream(delay(name, lag), stream.type, before, None, 1, False)
        out.append((stream, lag))
    return out


def delay(name: str, lag: int) -> str:
    """What the stream is called that holds a state of `lag` tokens ago. No program has such a name."""
    return name if lag == 1 else f"{name} {lag}"


def updates(step: Scan | Loop) -> tuple[Expr, ...]:
    """What a step computes: the coefficients of a scan, the new values of a loop."""
    if isinstance(step, Scan):
        return (step.closure.a,) if step.closure.b is None else (step.closure.a, step.closure.b)
    return tuple(s.expr for s in step.streams)


def _computed(step: Scan | Loop) -> tuple[Expr, ...]:
    """What a kernel computes for a step: its updates, and the maps that tokens are composed by."""
    maps = step.maps if isinstance(step, Loop) else None
    return (*updates(step), *(maps.parameters if maps else ()))


def fuse(plan: Plan) -> tuple[Kernel, ...]:
    """The kernels of a plan, in the order of their first step."""
    return _Fusion(plan).kernels()


class _Fusion:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.system = plan, plan.system
        self.place = {s.name: i for i, step in enumerate(plan.steps) for s in streams_of(step)}
        self.recurrent = {s.name for step in plan.steps if not isinstance(step, Pointwise) for s in streams_of(step)}
        self.made = self._made()
        self.written: set[Expr] = set()
        """Results of earlier kernels whose states are not there to compute them again."""

    def _made(self) -> set[Expr]:
        """What PyTorch computes in any case: the operands of learned maps and convolutions."""
        roots = [e for step in self.plan.steps for e in needs(step)] + [e for _, e in self.system.outputs]
        return {c for n in walk(*roots) if isinstance(n, Linear | Conv) for c in n.children}

    def kernels(self) -> tuple[Kernel, ...]:
        joined: list[tuple[int, list[Scan | Loop]]] = []
        for i, step in enumerate(self.plan.steps):
            if not self.fits(step):
                continue
            assert isinstance(step, Scan | Loop)
            home = next((members for at, members in joined if self.joins(step, at, members)), None)
            if home is None:
                joined.append((i, [step]))
            else:
                home.append(step)
        taken = {id(s) for _, members in joined for s in members}
        others: list[Expr] = [e for _, e in self.system.outputs] + [c.arg for c in self.system.convs.values()]
        others += [e for step in self.plan.steps if id(step) not in taken for e in needs(step)]
        borders = [self.border([e for s in members for e in _computed(s)], _names(members)) for _, members in joined]
        out: list[Kernel] = []
        for k, (at, members) in enumerate(joined):
            around = others + [e for j, b in enumerate(borders) if j != k for e in b]
            out.append(self.kernel(at, members, around))
        return self.read(out, others)

    def read(self, kernels: list[Kernel], others: list[Expr]) -> tuple[Kernel, ...]:
        """The kernels without results that nothing reads: a later kernel may have computed them again."""
        while True:
            made = {r for k in kernels for r in k.results}
            seen = reached(others + [e for k in kernels for e in (*k.inputs, *k.fixed)], made)
            if made <= seen:
                return tuple(kernels)
            for i, k in enumerate(kernels):
                results = tuple(r for r in k.results if r in seen)
                wide = tuple(w for r, w in zip(k.results, k.wide_results, strict=True) if r in seen)
                read = self.border([*(e for s in k.steps for e in _computed(s)), *results], _names(k.steps))
                inputs, fixed = (tuple(n for n in read if per_token(n) is token) for token in (True, False))
                kernels[i] = replace(k, results=results, wide_results=wide, inputs=inputs, fixed=fixed)

    # --- what fits, and together ---

    def fits(self, step: Step) -> bool:
        """Whether no entry of the states reaches another one, and the kernel has all operations."""
        if isinstance(step, Pointwise):
            return False
        streams = streams_of(step)
        dims = streams[0].type.dims
        if any(s.over or s.type.kind == "bool" or s.type.dims != dims for s in streams) or not dims:
            return False
        if isinstance(step, Scan):
            return not paired(step)
        if step.flow is None and (len(streams) > 1 or any(s.depth > 1 for s in streams)):
            return False
        exprs = updates(step)
        own = [n for n in walk(*exprs) if isinstance(n, Ref) and n.name in _names([step])]
        return all(isinstance(n, Ref) or elementwise(n) for n in depends(exprs, own))

    def joins(self, step: Scan | Loop, at: int, members: list[Scan | Loop]) -> bool:
        """Whether a scan can run in the kernel that `members` make at place `at`."""
        if not all(_scans(s) for s in (step, *members)):
            return False
        same = streams_of(step)[0].type.dims == streams_of(members[0])[0].type.dims
        return same and all(self.available(e, at) for e in updates(step))

    def available(self, node: Expr, at: int) -> bool:
        """Whether a value can be computed before the step at place `at`."""
        stack, seen = [node], set[Expr]()
        while stack:
            root = stack.pop()
            for n in walk(root):
                if n in seen or not isinstance(n, Ref) or n.role != "state":
                    continue
                seen.add(n)
                if n.name not in self.recurrent:
                    stack.append(self.system.stream(n.name).expr)
                elif self.place[n.name] >= at:
                    return False
        return True

    # --- the border ---

    def border(self, exprs: Iterable[Expr], own: set[str]) -> list[Expr]:
        """What a kernel with the states `own` reads to compute `exprs`."""
        exprs = list(exprs)
        mine = depends(exprs, [n for n in walk(*exprs) if isinstance(n, Ref) and n.role == "state" and n.name in own])
        found: dict[Expr, None] = {}
        stack = list(reversed(exprs))
        seen: set[Expr] = set()
        while stack:
            node = stack.pop()
            if node in seen or is_number(node):
                continue
            seen.add(node)
            if isinstance(node, Ref) and node in mine:
                continue
            if node in mine or (elementwise(node) and node not in self.made and node not in self.written):
                stack.extend(reversed(node.children))
            else:
                found[node] = None
        return list(found)

    def kernel(self, at: int, members: list[Scan | Loop], around: list[Expr]) -> Kernel:
        streams = [s for step in members for s in streams_of(step)]
        own = _names(members)
        dims = streams[0].type.dims
        sources = [n for n in walk(*around) if isinstance(n, Ref) and n.role == "state" and n.name in own]
        reach = depends(around, sources)
        inner: tuple[str, ...] = ()
        edge = self.frontier(at, own, dims, (), around, reach)
        for node in walk(*around):
            if isinstance(node, Reduce) and node.op == "sum" and node in reach and set(node.over) < set(dims):
                tried = self.frontier(at, own, dims, node.over, around, reach)
                if not any(isinstance(n, Ref) or set(n.dims) & set(node.over) for n in tried):
                    inner, edge = node.over, tried
                    break
        results = tuple(n for n in edge if not isinstance(n, Ref))
        needed = {n.name for n in edge if isinstance(n, Ref)}
        read = self.border([*(e for s in members for e in _computed(s)), *results], own)
        if any(s.name not in needed for s in streams):
            self.written |= set(results)
        values = [v for step in members for v in held(self.system.graph, step)]
        summed = self.meets_params([*(e for s in members for e in _computed(s)), *results], own)
        return Kernel(
            tuple(members),
            tuple(s for s, _ in values),
            tuple(lag for _, lag in values),
            tuple(d for d in dims if d not in inner),
            inner,
            tuple(n for n in read if per_token(n)),
            tuple(n for n in read if not per_token(n)),
            results,
            tuple(s.name in needed for s, _ in values),
            tuple(summed or self.wide({n for n in sources if n.name == s.name}, around) for s, _ in values),
            tuple(self.wide({r}, around) for r in results),
        )

    def frontier(
        self,
        at: int,
        own: set[str],
        dims: tuple[str, ...],
        inner: tuple[str, ...],
        around: list[Expr],
        reach: set[Expr],
    ) -> list[Expr]:
        """The last values that the kernel can compute of what depends on its states, in order."""
        inside: set[Expr] = set()
        sources: set[Expr] = set()
        for node in walk(*around):
            if node not in reach:
                continue
            if isinstance(node, Ref):
                sources.add(node)
                if node.lag <= 1:
                    inside.add(node)
            elif (
                (elementwise(node) or (isinstance(node, Reduce) and node.op == "sum" and node.over == inner))
                and set(node.dims) <= set(dims)
                and all(c in inside if c in reach else self.available(c, at) for c in node.children)
            ):
                inside.add(node)
        edge: dict[Expr, None] = {}
        for node in walk(*around):
            if node in reach and isinstance(node, Ref) and node not in inside:
                edge[node] = None
            if node not in inside:
                edge.update((c, None) for c in node.children if c in inside)
        edge.update((n, None) for n in around if n in inside)
        # The parts of a complex state are views of it: what is written is the state.
        views = (n.args[0] if isinstance(n, Apply) and n.op in _VIEWS and n.args[0] in sources else n for n in edge)
        return list(dict.fromkeys(views))

    def meets_params(self, exprs: list[Expr], own: set[str]) -> bool:
        """Whether a learned value is a factor beside a state: its gradient, a sum over all tokens, reads the states as
        they were kept, and their roundings with them."""
        mine = depends(exprs, [n for n in walk(*exprs) if isinstance(n, Ref) and n.role == "state" and n.name in own])
        learned = {p.name for p in self.system.cell.params if p.learned}
        beside = {c for n in mine if isinstance(n, Apply) and n.op not in _SUMS for c in n.args if c not in mine}
        fixed = [c for c in beside if not per_token(c)]
        return any(isinstance(n, Ref) and n.role == "param" and n.name in learned for n in walk(*fixed))

    def wide(self, nodes: set[Expr], around: list[Expr]) -> bool:
        """Whether one of `nodes` enters anything but outputs as they are and learned maps."""
        outputs = {e for _, e in self.system.outputs}
        read = any(any(c in nodes for c in n.children) and not isinstance(n, Linear) for n in walk(*around))
        return read or any(n in nodes and n not in outputs for n in around)


_VIEWS = frozenset({"real", "imag"})
_SUMS = frozenset({"add", "sub", "neg", "where", "only", "like"})


def elementwise(node: Expr) -> bool:
    """Whether a kernel computes the node from its operands, entry by entry."""
    return isinstance(node, Apply) and node.op in OPS


def reached(roots: Iterable[Expr], made: Set[Expr]) -> set[Expr]:
    """What is read to compute `roots` where what is `made` is there."""
    stack, seen = list(roots), set[Expr]()
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(() if node in made else node.children)
    return seen


def _names(steps: Iterable[Scan | Loop]) -> set[str]:
    return {s.name for step in steps for s in streams_of(step)}
