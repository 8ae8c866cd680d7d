"""Exact results on disk are those of the oracle, whatever lies there."""

import numpy as np
import pytest
from kept_oracle import kept, name_of

from xsoftmax.verify import run
from xsoftmax.verify.cases import DTYPES, Case, cases

CASE = next(case for case in cases("float32") if case.name == "where" and "softmax" in case.verbs)


def refuse(*_):
    raise RuntimeError("computed")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for verb, parts in expected.items():
        for one, other in zip(found[verb], parts, strict=True):
            np.testing.assert_array_equal(one.index, other.index)
            np.testing.assert_array_equal(one.pairs, other.pairs)
            assert list(map(repr, one.values)) == list(map(repr, other.values))
            assert (one.kind, one.dtype, one.axes, one.slack) == (other.kind, other.dtype, other.axes, other.slack)


def test_a_case_is_computed_once(tmp_path):
    expected = kept(run.exact_results, tmp_path)(CASE, "float64")
    assert_same(expected, run.exact_results(CASE, "float64"))
    assert_same(kept(refuse, tmp_path)(CASE, "float64"), expected)


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_a_file_that_is_not_as_it_was_written_is_written_anew(tmp_path, spoil):
    kept(run.exact_results, tmp_path)(CASE, "float64")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    with pytest.raises(RuntimeError, match="computed"):
        kept(refuse, tmp_path)(CASE, "float64")
    kept(run.exact_results, tmp_path)(CASE, "float64")
    assert path.read_bytes() == whole


def test_what_cannot_be_kept_is_computed(tmp_path):
    case = next(case for case in cases("float32") if case.name == "temperature 0.7")
    assert_same(kept(run.exact_results, tmp_path)(case, "float64"), run.exact_results(case, "float64"))
    assert not list(tmp_path.iterdir())


def test_every_case_has_a_name_of_its_own():
    every = [case for dtype in DTYPES for case in cases(dtype)]
    contents = {name_of(case, default) for case in every for default in ("float32", "float64")}
    assert len(contents) == 2 * len(every)


def test_a_name_is_of_the_contents():
    x, options = CASE.arrays["x"], dict(CASE.options)
    again = Case("another name", CASE.dtype, CASE.verbs, {"x": x.copy()}, options)
    assert name_of(again, "float64") == name_of(CASE, "float64")
    for other in (
        Case("", CASE.dtype, CASE.verbs[:1], {"x": x}, options),
        Case("", CASE.dtype, CASE.verbs, {"x": x[::-1]}, options),
        Case("", CASE.dtype, CASE.verbs, {"x": x.astype(np.float64)}, options),
        Case("", CASE.dtype, CASE.verbs, {"x": x}, {**options, "axis": 0}),
        Case("", CASE.dtype, CASE.verbs, {"x": x}, {"where": ~options["where"]}),
    ):
        assert name_of(other, "float64") != name_of(CASE, "float64")
