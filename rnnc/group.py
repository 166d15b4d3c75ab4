"""System → groups: streams that need each other, in dependency order.

A strongly connected component of "is read by, at any lag" is one recurrence; everything else is a cascade, and comes
apart (mLSTM's `m` before `C` and `n`).
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from rnnc.ir import Ref, walk
from rnnc.lower import System


@dataclass(frozen=True)
class Group:
    """Streams that need each other, in the order in which one step computes them.

    `recurrent` is false for a stream that does not reach its own past; `reads` are the earlier groups' streams it uses.
    """

    states: tuple[str, ...]
    recurrent: bool
    reads: tuple[str, ...]


def group(system: System) -> tuple[Group, ...]:
    """The groups of a system; equal ones keep the order of the file."""
    order = {s.name: i for i, s in enumerate(system.streams)}
    reads: nx.DiGraph[str] = nx.DiGraph()
    now: nx.DiGraph[str] = nx.DiGraph()
    reads.add_nodes_from(order)
    now.add_nodes_from(order)
    for stream in system.streams:
        for node in walk(stream.expr):
            if isinstance(node, Ref) and node.role == "state":
                reads.add_edge(node.name, stream.name)
                if node.lag == 0:
                    now.add_edge(node.name, stream.name)
    condensed = nx.condensation(reads)
    members: dict[int, set[str]] = {i: condensed.nodes[i]["members"] for i in condensed}
    first = {i: min(order[m] for m in ms) for i, ms in members.items()}
    groups: list[Group] = []
    for i in nx.lexicographical_topological_sort(condensed, key=first.__getitem__):
        names = members[i]
        inside = nx.lexicographical_topological_sort(now.subgraph(names), key=order.__getitem__)
        before = {p for n in names for p in reads.predecessors(n)} - names
        recurrent = len(names) > 1 or any(reads.has_edge(n, n) for n in names)
        groups.append(Group(tuple(inside), recurrent, tuple(sorted(before, key=order.__getitem__))))
    return tuple(groups)
