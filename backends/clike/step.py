"""A step of a group and its backward as stages, and what both read and write.

Goals: everything that a frame must know: arrays by role, the products with matrices that no token changes, the sums
over tokens that become one product after the loop, the dims along which the work can be cut.
Non-goals: memory and loops over tokens.

Roles of arrays, with `index` and `lag`:
  hoisted, fixed       values made before the loop (weights follow the fixed ones)
  past                 stream `index`, `lag` tokens ago
  new                  stream `index`, at this token: written by the step, read by its backward
  saved                a value besides, written by the step and read by its backward
  d_new, d_past        the cotangents of both; d_past is added to, but for that of the longest lag, the first
  d_hoisted, d_fixed   cotangents of hoisted and fixed values; d_fixed is added to
  left, right          operands of products over all tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from rnnc.derive import pull_back
from rnnc.ir import Apply, Expr, Graph, Linear, Reduce, Ref, walk
from rnnc.lower import Stream
from rnnc.plan import Loop, inside

from ..torch.block import NameTable
from .kept import kept
from .over import Over, Small, back_steps, small_step
from .scalar import RESERVED, identifier
from .stages import Array, Stager, Stages, Store, mixed_dims


class Unsupported(Exception):
    """A step that has no C text: the reason, for whoever reads the plan."""


@dataclass(frozen=True)
class Weighed:
    """The gradient of fixed value `index`, or a part of it: an einsum of two arrays of all tokens (axis `z`)."""

    index: int
    equation: str
    left: Array
    right: Array


@dataclass(frozen=True)
class Half:
    """The step, or its backward: stages, results, and the dim whose entries no stage mixes (the work may be cut)."""

    stages: Stages
    results: tuple[Store, ...]
    free: str | None
    hints: Mapping[Expr, str]
    overs: Mapping[Expr, Over]


@dataclass(frozen=True)
class Step:
    """A step and its backward. `weights` are the names of learned matrices, in the order of the loop's; `saved` is what
    the step writes for its backward beside its streams."""

    streams: tuple[Stream, ...]
    hoisted: tuple[Array, ...]
    fixed: tuple[Array, ...]
    weights: tuple[str, ...]
    forward: Half
    backward: Half
    weighed: tuple[Weighed, ...]
    saved: tuple[Array, ...]
    places: tuple[tuple[tuple[int, int], ...], ...]
    """For each axis of what is saved, which of the streams and fixed values has that dim, and where."""
    consts: tuple[str, ...]
    sizes: tuple[str, ...]


class StepMaker:
    """Derives a `Step` from a loop of the plan."""

    def __init__(self, graph: Graph, loop: Loop, hints: Mapping[Expr, str], weights: Mapping[str, tuple[str, ...]]):
        self.graph, self.loop = graph, loop
        self.body = inside(loop)
        self.hints = {n: identifier(h) for n, h in hints.items() if n in self.body}
        self.table = NameTable(RESERVED)
        self.streams = loop.streams
        self.given: dict[Expr, Array] = {}
        self.hoisted = tuple(self._enter(n, "hoisted", i, hints) for i, n in enumerate(loop.hoisted))
        plain = tuple(self._enter(n, "fixed", i, hints) for i, n in enumerate(loop.fixed))
        self.weight = {
            name: Array(self.table.new(identifier(name)), dims, "real", "fixed", len(plain) + i)
            for i, (name, dims) in enumerate(weights.items())
        }
        self.fixed = (*plain, *self.weight.values())
        names = {s.name: i for i, s in enumerate(self.streams)}
        self.pasts: dict[Expr, Array] = {}
        for s in self.streams:
            for node in walk(s.expr):
                past = isinstance(node, Ref) and node.role == "state" and node.name in names and node.lag
                if past and isinstance(node, Ref) and node not in self.pasts and node not in self.given:
                    self.pasts[node] = self._past(node, names[node.name])
        self.given |= self.pasts
        self.smalls: dict[Expr, Small] = {}
        """Small steps by what stands for their result."""
        self.updates = self._substituted(names)
        self.new = [
            Array(self.table.new(identifier(s.name)), s.type.dims, s.type.kind, "new", i)
            for i, s in enumerate(self.streams)
        ]
        self.saved: dict[Expr, Array] = {}
        self.places = self._places()

    def _enter(self, node: Expr, role: str, index: int, hints: Mapping[Expr, str]) -> Array:
        wanted = hints.get(node) or (node.name if isinstance(node, Ref) else f"{role}_{index}")
        self.given[node] = array = Array(self.table.new(identifier(wanted)), node.dims, node.kind, role, index)
        return array

    def _places(self) -> dict[str, tuple[int, int]]:
        """A stream or parameter that has each dim, and its axis there: other values may be without, and broadcast."""
        shapes = [("", "", *s.type.dims) for s in self.streams] + [a.dims for a in self.fixed]
        plain = range(len(self.streams), len(self.streams) + len(self.loop.fixed))
        whole = {i for i, n in zip(plain, self.loop.fixed, strict=True) if isinstance(n, Ref)}
        found: dict[str, tuple[int, int]] = {}
        for i, dims in enumerate(shapes):
            if i not in plain or i in whole:
                for axis, d in enumerate(dims):
                    found.setdefault(d, (i, axis))
        return found

    def _past(self, node: Ref, index: int) -> Array:
        name = f"{identifier(node.name)}_prev{node.lag if node.lag > 1 else ''}"
        type_ = self.streams[index].type
        return Array(self.table.new(name), type_.dims, type_.kind, "past", index, node.lag)

    def _substituted(self, names: Mapping[str, int]) -> list[Expr]:
        """The new value of each stream in terms of what comes in."""
        done: dict[Expr, Expr] = {}
        made: dict[str, Expr] = {}
        for s in self.streams:
            for node in walk(s.expr):
                if node in done:
                    continue
                if node in self.given or not node.children:
                    now = isinstance(node, Ref) and node.role == "state" and node.name in names and not node.lag
                    done[node] = made[node.name] if now and isinstance(node, Ref) else node
                else:
                    done[node] = self.graph.rebuild(node, tuple(done[c] for c in node.children))
            value = done[s.expr]
            if s.over:
                # No name of a program begins with this sign.
                result = self.graph.ref("state", f"∂over_{s.name}", s.type)
                self.smalls[result] = small_step(self.graph, s, value, self.hints)
                made[s.name] = result
                continue
            if set(value.dims) != set(s.type.dims):
                value = self.graph.apply("like", value, self.graph.ref("input", "", s.type))
            if s.type.kind == "complex" and value.kind != "complex":
                value = self.graph.apply("add", value, self.graph.lit(0j))
            made[s.name] = value
        self.hints = {**{done[n]: h for n, h in self.hints.items() if n in done}, **self.hints}
        return [made[s.name] for s in self.streams]

    def make(self) -> Step:
        try:
            backward, weighed = self._backward()
            forward = self._forward()
        except NotImplementedError as e:
            raise Unsupported(str(e)) from e
        overs = [o for h in (forward, backward) for o in h.overs.values()]
        inner = [e for o in overs for e in (*o.inputs, *o.inner)]
        graphs = _above([*(r.node for h in (forward, backward) for r in h.results), *inner], self.given)
        consts = dict.fromkeys(n.name for n in graphs if isinstance(n, Ref) and n.role == "const")
        arrays = [a for h in (forward, backward) for a in h.stages.values.values()]
        arrays += [*self.hoisted, *self.fixed, *(r.array for h in (forward, backward) for r in h.results)]
        arrays += [a for h in (forward, backward) for a in h.stages.scratch]
        sizes = dict.fromkeys(d for a in arrays for d in a.dims)
        sizes.update(dict.fromkeys(o.small.over for o in overs))
        sizes.update(dict.fromkeys(n.name for n in graphs if isinstance(n, Ref) and n.role == "size"))
        sizes.update(dict.fromkeys(d for n in graphs for d in n.dims))
        return Step(
            self.streams,
            self.hoisted,
            self.fixed,
            tuple(self.weight),
            forward,
            backward,
            weighed,
            tuple(self.saved.values()),
            tuple(tuple(self.places[d] for d in a.dims) for a in self.saved.values()),
            tuple(consts),
            tuple(sizes),
        )

    def _half(
        self,
        given: Mapping[Expr, Array],
        results: Sequence[Store],
        hints: Mapping[Expr, str],
        overs: Mapping[Expr, Over],
    ) -> Half:
        """`results` of small steps are made there, all others by the stages around them."""
        around = self._around(results, overs)
        stager = Stager(self.graph, given, self.weight, around, hints, self.table.new, overs)
        stages = stager.stages()
        inner = [e for o in overs.values() for e in (*o.inputs, *o.inner)]
        mixed = mixed_dims([*(r.node for r in results), *inner], given)
        dims = [set(r.array.dims) for r in results]
        common = [d for d in self.streams[0].type.dims if d not in mixed and all(d in x for x in dims)]
        hints = {**stager.hint, **{n: h for o in overs.values() for n, h in o.small.hints.items()}}
        return Half(stages, tuple(results), common[0] if common else None, hints, overs)

    def _forward(self) -> Half:
        results = [Store(a, e) for a, e in zip(self.new, self.updates, strict=True)]
        results += [Store(a, e) for e, a in self.saved.items()]
        overs: dict[Expr, Over] = {}
        for i, (s, new, update) in enumerate(zip(self.streams, self.new, self.updates, strict=True)):
            if s.over:
                overs[update] = Over(self.smalls[update], self._past_of(i), new)
        return self._half(self.given, results, self.hints, overs)

    def _past_of(self, index: int) -> Array:
        """The array of a stream a token ago, be it read or not."""
        s = self.streams[index]
        node = self.graph.ref("state", s.name, s.type, 1)
        if node not in self.given:
            self.given[node] = self.pasts[node] = self._past(node, index)
        return self.given[node]

    # --- backward ---

    def _backward(self) -> tuple[Half, tuple[Weighed, ...]]:
        graph = self.graph
        given = dict(self.given)
        arrivals: list[Expr | None] = []
        for i, (s, update, new) in enumerate(zip(self.streams, self.updates, self.new, strict=True)):
            if s.type.kind == "bool":
                arrivals.append(None)
                continue
            # No name of a program begins with this sign.
            arriving = graph.ref("state", f"∂{s.name}", s.type)
            arrivals.append(arriving)
            name = self.table.new(f"d_{identifier(s.name)}")
            given[arriving] = Array(name, s.type.dims, s.type.kind, "d_new", i)
            if (update.children or s.over) and update not in given:
                given[update] = new
        results: list[Store] = []
        weighed: list[Weighed] = []
        found, watch, overs = self._pulled(arrivals, results, weighed)
        hints = {**self.hints}
        for n, h in self.hints.items():
            if n in found and found[n].children:
                hints.setdefault(found[n], f"d_{h}")
        flows = [(node, a) for node, a in self.given.items() if node in found and a.role in ("hoisted", "past")]
        for node, array in flows:
            role = f"d_{array.role}"
            d = Array(self.table.new(f"d_{array.name}"), array.dims, array.kind, role, array.index, array.lag)
            # The first cotangent that reaches a token comes from the farthest one behind.
            far = max(a.lag for _, a in flows if (a.role, a.index) == (array.role, array.index))
            results.append(Store(d, found[node], array.lag < far))
        for node in watch:
            if node in found:
                weighed.append(self._of_map(node, found[node], results))
        for node, array in self.given.items():
            if node in found and array.role == "fixed":
                for term in _terms(found[node]):
                    self._of_fixed(array, term, results, weighed)
        self._save(given, results, [a for a in arrivals if a is not None], overs)
        return self._half({**given, **self.saved}, results, hints, overs), tuple(weighed)

    def _save(
        self,
        given: Mapping[Expr, Array],
        results: Sequence[Store],
        arrivals: Sequence[Expr],
        overs: Mapping[Expr, Over],
    ) -> None:
        """Finds what the step is to write."""
        around = self._around(results, overs)
        stager = Stager(self.graph, given, self.weight, around, self.hints, self.table.new, overs)
        roots = [*(r.node for r in stager.results), *(e for inputs in stager.inputs.values() for e in inputs)]
        for i, node in enumerate(kept(roots, given, {*arrivals, *overs}, stager.matrices, self.places)):
            name = self.table.new(stager.hint.get(node) or "saved")
            self.saved[node] = Array(name, node.dims, "real", "saved", i)

    def _around(self, results: Sequence[Store], overs: Mapping[Expr, Over]) -> list[Store]:
        """The results that the stages around small steps make."""
        own = {a for o in overs.values() for a in (o.out, *(a for a, _ in o.kept))}
        return [r for r in results if r.array not in own]

    def _pulled(
        self, arrivals: Sequence[Expr | None], results: list[Store], weighed: list[Weighed]
    ) -> tuple[dict[Expr, Expr], list[Linear], dict[Expr, Over]]:
        """Cotangents of what is given and of learned maps, those maps, and the backward of updates over a dim."""
        graph = self.graph
        below = _above([*self.updates, *(n for s in self.smalls.values() for n in s.given.values())], self.given)
        targets = [n for n in below if (n in self.given or n in self.smalls) and n.kind != "bool"]
        watch = [n for n in below if isinstance(n, Linear) and n not in self.given]
        found: dict[Expr, Expr] = {}
        pending: dict[Expr, Expr] = {}
        overs: dict[Expr, Over] = {}

        def add(total: dict[Expr, Expr], node: Expr, value: Expr) -> None:
            total[node] = graph.apply("add", total[node], value) if node in total else value

        def pull() -> None:
            for n, d in pull_back(graph, pending, targets, watch).items():
                add(found, n, d)
            pending.clear()

        # A state is read by those behind it.
        last = len(self.streams)
        for i in range(last - 1, -1, -1):
            arriving, result = arrivals[i], self.updates[i]
            if result not in self.smalls or arriving is None:
                continue
            for update, d in zip(self.updates[i + 1 : last], arrivals[i + 1 : last], strict=True):
                if d is not None:
                    add(pending, update, d)
            last = i
            pull()
            if result in found:
                arriving = graph.apply("add", found.pop(result), arriving)
            small = self.smalls[result]
            flowing, flows, cotangent, maps = back_steps(graph, self.streams[i], small, arriving)
            for node, value in flowing.items():
                add(found if node in self.given else pending, node, value)
            kept = [pair for m, d in maps.items() for pair in self._of_small_map(small, m, d, results, weighed)]
            over = Over(small, self._past_of(i), None, arriving, cotangent, flows, kept)
            overs.update(dict.fromkeys(flows, over))
        for update, d in zip(self.updates[:last], arrivals[:last], strict=True):
            if d is not None:
                add(pending, update, d)
        pull()
        return found, watch, overs

    def _of_small_map(
        self, small: Small, node: Expr, cotangent: Expr, results: list[Store], weighed: list[Weighed]
    ) -> list[tuple[Array, Expr]]:
        """What small steps store of a learned map, so that its gradient is one product of all of them."""
        assert isinstance(node, Linear)
        letters = iter(ascii_lowercase[:-1])
        each = next(letters)
        whole = self.weight[node.weight].dims
        kept = "".join(each if d == small.over else next(letters) for d in whole[: len(small.maps[node].kept)])
        outs, ins = ("".join(next(letters) for _ in dims) for dims in (node.outs, node.ins))
        sides = [(node.outs, outs), (node.ins, ins)]
        parts: list[tuple[Array, Expr]] = []
        texts: list[str] = []
        for role, value, (dims, text) in zip(
            ("left", "right"), (node.arg, cotangent), sides[:: 1 if node.transposed else -1], strict=True
        ):
            count = sum(r.array.role in ("left", "right") for r in results)
            kind = value.kind if value.kind != "bool" else "real"
            array = Array(self.table.new(f"{role}_{count}"), (small.over, *node.kept, *dims), kind, role, count)
            results.append(Store(array, value))
            parts.append((array, value))
            texts.append(f"z{each}{kept.replace(each, '')}{text}")
        equation = f"{','.join(texts)}->{kept}{outs}{ins}"
        weighed.append(Weighed(self.weight[node.weight].index, equation, parts[0][0], parts[1][0]))
        return parts

    def _operand(self, node: Expr, dims: tuple[str, ...], role: str, results: list[Store]) -> Array:
        """The array of all tokens' values of a node; one that is written anyway if there is one."""
        for r in results:
            written = r.array.role in ("d_hoisted", "left", "right") and not r.add
            if written and r.node is node and r.array.dims == dims:
                return r.array
        count = sum(r.array.role in ("left", "right") for r in results)
        kind = node.kind if node.kind != "bool" else "real"
        array = Array(self.table.new(f"{role}_{count}"), dims, kind, role, count)
        results.append(Store(array, node))
        return array

    def _of_map(self, node: Expr, cotangent: Expr, results: list[Store]) -> Weighed:
        assert isinstance(node, Linear)
        letters = iter(ascii_lowercase[:-1])
        kept, outs, ins = ("".join(next(letters) for _ in dims) for dims in (node.kept, node.outs, node.ins))
        x, y = (outs, ins) if node.transposed else (ins, outs)
        x_dims, y_dims = (node.outs, node.ins) if node.transposed else (node.ins, node.outs)
        left = self._operand(node.arg, (*node.kept, *x_dims), "left", results)
        right = self._operand(cotangent, (*node.kept, *y_dims), "right", results)
        equation = f"z{kept}{x},z{kept}{y}->{kept}{outs}{ins}"
        return Weighed(self.weight[node.weight].index, equation, left, right)

    def _of_fixed(self, array: Array, term: Expr, results: list[Store], weighed: list[Weighed]) -> None:
        """One term of the gradient of a fixed value: a product over all tokens if it is one of two smaller values."""
        parts = _parted(self.graph, term, array.dims)
        if parts is not None and array.kind == "real" == parts[0].kind == parts[1].kind:
            dims = dict.fromkeys((*parts[0].dims, *parts[1].dims, *array.dims))
            letters = {d: ascii_lowercase[i] for i, d in enumerate(dims)}
            left, right = (
                self._operand(p, p.dims, role, results) for p, role in zip(parts, ("left", "right"), strict=True)
            )
            texts = ["".join(letters[d] for d in dims) for dims in (left.dims, right.dims, array.dims)]
            weighed.append(Weighed(array.index, f"z{texts[0]},z{texts[1]}->{texts[2]}", left, right))
            return
        for i, r in enumerate(results):
            if r.array.role == "d_fixed" and r.array.index == array.index:
                results[i] = Store(r.array, self.graph.apply("add", r.node, term), True)
                return
        d = Array(self.table.new(f"d_{array.name}"), array.dims, array.kind, "d_fixed", array.index)
        results.append(Store(d, term, True))


def _above(roots: Sequence[Expr], stop: Mapping[Expr, Array]) -> list[Expr]:
    """The nodes down to those of `stop`, these included, in a fixed order."""
    found: dict[Expr, None] = {}
    stack = list(roots)[::-1]
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = None
            if node not in stop:
                stack.extend(node.children[::-1])
    return list(found)


def _terms(node: Expr) -> list[Expr]:
    out: list[Expr] = []
    stack = [node]
    while stack:
        e = stack.pop()
        if isinstance(e, Apply) and e.op == "add":
            stack.extend(e.args[::-1])
        else:
            out.append(e)
    return out


def _parted(graph: Graph, node: Expr, dims: tuple[str, ...]) -> tuple[Expr, Expr] | None:
    """A product of two values, neither with all of `dims`, summed over what they have besides."""
    inner = node.arg if isinstance(node, Reduce) and node.op == "sum" else node
    if not isinstance(inner, Apply) or inner.op != "mul" or set(node.dims) != set(dims):
        return None
    factors: list[Expr] = []
    stack: list[Expr] = [inner]
    while stack:
        e = stack.pop()
        if isinstance(e, Apply) and e.op == "mul":
            stack.extend(e.args[::-1])
        else:
            factors.append(e)
    first = max(factors, key=lambda f: len(f.dims))
    left = [f for f in factors if set(f.dims) <= set(first.dims)]
    right = [f for f in factors if f not in left]
    if not right:
        return None
    parts = [group[0] for group in (left, right)]
    for k, group in enumerate((left, right)):
        for f in group[1:]:
            parts[k] = graph.apply("mul", parts[k], f)
    whole = any(set(dims) <= set(p.dims) for p in parts)
    return None if whole else (parts[0], parts[1])
