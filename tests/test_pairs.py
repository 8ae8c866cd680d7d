"""What `pytest --pairs` leaves of a product."""

from itertools import combinations, product

import pytest
from pairwise import pairs

VALUES = {"verb": ["a", "b", "c"], "dtype": ["d", "e"], "option": ["f", "g", "h", "i"]}


class Item:
    """As much of pytest's as is asked for."""

    def __init__(self, backend, marks=(), **params):
        self.nodeid = f"test[{backend}-{'-'.join(params.values())}]"
        self.params, self.marks = params | {"xb": backend}, marks
        self.callspec = self

    def iter_markers(self, name):
        return self.marks


def items(backend, names=tuple(VALUES), marks=()):
    values = product(*(VALUES[name] for name in names))
    return [Item(backend, marks, **dict(zip(names, chosen, strict=True))) for chosen in values]


def test_every_two_values_meet_on_every_backend():
    given = items("one") + items("other")
    kept = pairs(given)
    assert kept == [item for item in given if item in kept]
    assert len(kept) < len(given)
    for backend in ("one", "other"):
        met = {pair for item in kept if item.params["xb"] == backend for pair in combinations(item.params.values(), 2)}
        for one, other in combinations(VALUES.values(), 2):
            assert set(product(one, other)) <= met


def test_two_parameters_are_left_whole():
    given = items("one", ("verb", "option"))
    assert pairs(given) == given


def test_what_one_list_gives_together_is_one_parameter():
    given = items("one", marks=[pytest.mark.parametrize("verb, dtype", []).mark])
    assert pairs(given) == given
