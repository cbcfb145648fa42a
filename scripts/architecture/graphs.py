"""Circles, floors and back edges of a directed graph of names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

Arrow = tuple[str, str]


def circles(edges: Iterable[Arrow]) -> list[list[str]]:
    """Return the strongly connected components of more than one node (Tarjan 1972), sorted."""
    return sorted(sorted(one) for one in components(edges) if len(one) > 1)


def components(edges: Iterable[Arrow]) -> list[list[str]]:
    """Return all strongly connected components, those that others lead to first."""
    graph: dict[str, list[str]] = {}
    for start, end in sorted(set(edges)):
        graph.setdefault(start, []).append(end)
        graph.setdefault(end, [])
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []
    for root in graph:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        stack.append(root)
        work = [(root, iter(graph[root]))]
        while work:
            node, rest = work[-1]
            following = next(rest, None)
            if following is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    at = stack.index(node)
                    found.append(stack[at:])
                    del stack[at:]
            elif following not in index:
                index[following] = low[following] = len(index)
                stack.append(following)
                work.append((following, iter(graph[following])))
            elif following in stack:
                low[node] = min(low[node], index[following])
    return found


def longest_paths(nodes: Collection[str], edges: Collection[Arrow]) -> dict[str, int]:
    """Return the floor of each node, from 1: one above the highest that it leads to.

    The nodes of a circle share a floor.
    """
    order = components([*edges, *((one, one) for one in nodes)])
    floors: dict[str, int] = {}
    for members in order:
        below = {end for start, end in edges if start in members} - set(members)
        floors.update(dict.fromkeys(members, 1 + max((floors[one] for one in below), default=0)))
    return floors


def feedback(members: Collection[str], edges: Collection[Arrow]) -> set[Arrow]:
    """Return few edges without which a circle is open (Eades, Lin and Smyth 1993)."""
    left, head, tail = set(members), [], []
    inner = [(a, b) for a, b in edges if a in left and b in left and a != b]
    while left:
        out = Counter(a for a, b in inner if a in left and b in left)
        into = Counter(b for a, b in inner if a in left and b in left)
        sink = next((one for one in sorted(left) if not out[one]), None)
        if sink is not None:
            tail.append(sink)
            left.remove(sink)
            continue
        best = max(sorted(left), key=lambda one: out[one] - into[one] if into[one] else len(inner))
        head.append(best)
        left.remove(best)
    place = {one: number for number, one in enumerate([*head, *reversed(tail)])}
    return {(a, b) for a, b in inner if place[a] > place[b]}
