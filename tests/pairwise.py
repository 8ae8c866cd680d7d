"""Thinned products of parameters: `pytest --pairs`."""

from collections import defaultdict
from itertools import combinations
from zlib import crc32

WHO = ("xb", "implementation")  # parameters that say who computes: each has all pairs of the others


def pairs(items):
    """Enough of each product for every two values of two parameters to meet, with each of `WHO`.

    In an order that is the same everywhere and has no system, so that no value stands for the others.
    """
    met, kept = defaultdict(set), set()
    for item in sorted(items, key=lambda item: crc32(item.nodeid.encode())):
        values = parameters(item)
        test = item.nodeid.partition("[")[0], *(values.pop(name, None) for name in WHO)
        found = set(combinations(values.items(), 2)) - met[test]
        if found or len(values) < 3:
            met[test] |= found
            kept.add(item)
    return [item for item in items if item in kept]


def parameters(item):
    """Which value each has; what one list gives together is one."""
    given = {name: id(value) for name, value in item.callspec.params.items()} if hasattr(item, "callspec") else {}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if not isinstance(mark.args[0], str) else mark.args[0].replace(",", " ").split()
        if len(names) > 1:
            given[tuple(names)] = tuple(given.pop(name) for name in names)
    return given
