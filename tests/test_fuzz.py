"""The fuzzer: a small run passes, faults planted by hand are found, and what it says can be repeated."""

import re

import fuzz
import numpy as np
import pytest
from fuzz_memory import placed
from fuzz_problems import VERBS, Head, draw

from xsoftmax import backend
from xsoftmax.threads import get_num_threads
from xsoftmax.verbs import functions, losses
from xsoftmax.verify.oracle import FAMILIES

WAYS = fuzz.ways(["numpy"], ["array_api"])


def first(axis, x):
    """The first largest logit, and all that are smaller."""
    x = np.moveaxis(x, axis, -1).astype(np.float64)
    at_top = x == x.max(axis=-1, keepdims=True)
    return np.moveaxis(~at_top | (np.cumsum(at_top, axis=-1) == 1), -1, axis)


def swapped_label(f, x, t, **options):
    if np.ndim(t) == np.ndim(x) or t.dtype.kind != "i" or "ignore_index" in options or options["axis"] not in (-1,):
        return f(x, t, **options)
    return f(x, np.where((t >= 0) & (t < x.shape[-1]), x.shape[-1] - 1 - t, t), **options)


def dropped_tie(f, x, *, axis=-1, where=None, b=None, **options):
    if where is not None or b is not None or not isinstance(axis, int) or not x.size:
        return f(x, axis=axis, **options | {k: v for k, v in (("where", where), ("b", b)) if v is not None})
    return f(x, axis=axis, where=first(axis, x), **options)


def forgotten_mask(f, x, t, *, where=None, **options):
    return f(x, t, where=None if "z_loss" in options else where, **options)


def narrow_sum(f, x, **options):
    y = f(x, **options)
    return y if x.dtype != np.float64 or x.size < 50 else y.astype(np.float32).astype(np.float64)


def wrong_divisor(f, x, t, *, reduction="mean", sample_weight=None, **options):
    loss, grad = f(x, t, reduction=reduction, sample_weight=sample_weight, **options)
    if reduction != "mean" or sample_weight is None or not sample_weight.size:
        return losses.LossAndGrad(loss, grad)
    return losses.LossAndGrad((loss * (sample_weight.sum() / sample_weight.size)).astype(loss.dtype), grad)


def overwritten_input(f, p, q, **options):
    result = f(p, q, **options)
    if q.flags.writeable:
        q[...] = p
    return result


def warning(f, p, **options):
    np.log(np.zeros(1))
    return f(p, **options)


def unchecked_label(f, p, t, **options):
    return f(p, t % p.shape[options["axis"]] if t.ndim < p.ndim and "ignore_index" not in options else t, **options)


def by_threads(f, y, v, **options):
    return f(y, v, **options) * (1 if get_num_threads() == 1 else 1 + 2.0**-52)


FAULTS = {
    "cross_entropy": swapped_label,
    "logsumexp": dropped_tie,
    "cross_entropy_grad": forgotten_mask,
    "softmax": narrow_sum,
    "cross_entropy_and_grad": wrong_divisor,
    "kl_divergence": overwritten_input,
    "entropy": warning,
    "cross_entropy_from_probs": unchecked_label,
    "softmax_vjp": by_threads,
}
SAYS = {
    "kl_divergence": "q was changed",
    "entropy": "FloatingPointError",
    "cross_entropy_from_probs": "no error, expected ValueError",
    "softmax_vjp": "another number of threads",
}


@pytest.mark.parametrize("verb", FAULTS)
def test_a_planted_fault_is_found(monkeypatch, verb, capsys):
    module = losses if hasattr(losses, verb) else functions
    right, wrong = getattr(module, verb), FAULTS[verb]
    monkeypatch.setattr(module, verb, lambda *arrays, **options: wrong(right, *arrays, **options))
    report = fuzz.fuzz(range(2000), 1, WAYS, verbs=[verb])
    assert report.failures
    assert any(SAYS.get(verb, "") in what for _, what, _ in report.failures)
    _, what, repeat = report.failures[0]
    assert fuzz.main(repeat.split()[2:]) == 1
    assert what[:40] in capsys.readouterr().out
    monkeypatch.setattr(module, verb, right)
    assert fuzz.main(repeat.split()[2:]) == 0


def test_the_right_library_passes(capsys):
    assert fuzz.main(["--problems", "500", "--implementation", "array_api", "numpy_blocked", "--seed", "1"]) == 0
    assert re.search(r"5\d\d problems on \d+ inputs, 0 failures", capsys.readouterr().out)


def test_problems_depend_on_seed_and_number_alone():
    for number in range(40):
        one, other = draw(Head(1, number)), draw(Head(1, number))
        assert (one.verbs, one.raises, one.into) == (other.verbs, other.raises, other.into)
        for name, a in one.arrays.items():
            assert (a.dtype, a.tobytes()) == (other.arrays[name].dtype, other.arrays[name].tobytes())


def test_every_verb_and_option_is_drawn():
    problems = [draw(Head(2, number)) for number in range(1500)]
    assert {verb for p in problems for verb in p.verbs} == {verb for verbs in VERBS.values() for verb in verbs}
    assert set(VERBS) == set(FAMILIES)
    assert {name for p in problems for name in p.options} == {
        *("axis", "where", "temperature", "b", "keepdims", "return_sign", "weight", "sample_weight", "ignore_index"),
        *("label_smoothing", "softcap", "z_loss", "reduction", "linear_bias", "chunk_size"),
    }
    assert {p.raises for p in problems} == {"never", "always", "checked"}
    assert {p.into for p in problems} == {None, "new", "input"}


def test_dask_broadcasts_what_is_drawn():
    pytest.importorskip("dask")
    for seed in range(40):
        x = placed(backend("dask"), np.random.default_rng(seed), np.ones((1, 3)))
        assert (x + np.ones((2, 3))).compute().shape == (2, 3)


def test_nothing_judged_is_a_failure(capsys):
    assert fuzz.main(["--replay", "0:0", "--verb", "entropy" if draw(Head(0, 0)).verbs != ("entropy",) else "softmax"])
    assert "nothing was judged" in capsys.readouterr().out
