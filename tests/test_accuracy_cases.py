"""Adversarial inputs with answers known to 25 digits, in every dtype that holds the inputs."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import skip_inexact

import xsoftmax as xs
from xsoftmax.verify.compare import Arithmetic, judge
from xsoftmax.verify.exact import MP, Exact
from xsoftmax.verify.inputs import numpy_dtype

CASES = json.loads((Path(__file__).parent / "data" / "accuracy_cases.json").read_text())["cases"]
FLOATS = ("float16", "bfloat16", "float32", "float64")
KINDS = {"cross_entropy_grad": "gradient"}


def logits_of(case):
    """Distinct values, and how often each is repeated."""
    runs = case.get("input_rle") or [[value, 1] for value in case["input"]]
    return np.array([float.fromhex(value) for value, _ in runs]), [count for _, count in runs]


def probs_of(case):
    return np.array([float.fromhex(p) for p in case["args"].get("probs", [])])


def dtypes_of(case):
    """The dtypes in which the inputs are exact."""
    if case["dtype"] == "uint8":
        return ["uint8"]
    inputs = np.concatenate([logits_of(case)[0], probs_of(case)])
    with np.errstate(over="ignore"):
        return [name for name in FLOATS if np.array_equal(inputs.astype(numpy_dtype(name)), inputs, equal_nan=True)]


def exact_result(case, dtype, shape):
    exact = Exact(KINDS.get(case["op"], case["op"]), dtype)
    values = case.get("expected_rle") or case["expected"]
    units = case.get("ulp_scale") or ["0"] * len(values)
    codes = [exact.add(MP.mpf(value), MP.mpf(unit)) for value, unit in zip(values, units, strict=True)]
    repeats = logits_of(case)[1] if "expected_rle" in case else 1
    exact.index = np.repeat(codes, repeats).reshape(shape)
    return exact


def call(case, xb, x, dtype):
    verb, args = getattr(xs, case["op"]), case["args"]
    if not args:
        return verb(x)
    if "probs" in args:
        return verb(x, xb.asarray(probs_of(case), dtype=dtype))
    return verb(x, xb.asarray(np.asarray(args.get("target", args.get("target_run")))))


@pytest.mark.parametrize(
    "case, dtype",
    [pytest.param(case, dtype, id=f"{case['id']}-{dtype}") for case in CASES for dtype in dtypes_of(case)],
)
def test_accuracy(xb, case, dtype):
    if dtype in FLOATS and dtype not in xb.dtypes():
        pytest.skip(f"{xb.name} has no {dtype}")
    skip_inexact(xb)
    if not hasattr(xb.xp, "arange") and {"target", "target_run"} & set(case["args"]):
        pytest.skip(f"{xb.name} has no arange, which class indices need")
    values, counts = logits_of(case)
    if xb.name == "cubed" and sum(counts) > 10**5:
        pytest.skip("cubed takes at most 1 MB from memory")
    x = xb.asarray(np.repeat(values.astype(numpy_dtype(dtype)), counts))
    got = xb.to_numpy(call(case, xb, x, dtype))
    logits = dtype if dtype in FLOATS else got.dtype.name
    half_loss = case["op"] == "cross_entropy" and logits in ("float16", "bfloat16")
    exact = exact_result(case, "float32" if half_loss else logits, got.shape)
    verdict = judge(got, exact, Arithmetic(logits, xb.float64, xb.flushes_subnormals))
    assert verdict.failures == []
    assert verdict.compared > 0


def test_all_cases_are_here():
    assert len({case["id"] for case in CASES}) == 25
