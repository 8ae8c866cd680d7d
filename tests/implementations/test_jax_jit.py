"""One compiled program for a verb on JAX arrays; whatever is traced joins the program around it instead."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import xsoftmax as xs  # noqa: E402
from xsoftmax import choose  # noqa: E402
from xsoftmax.implementations.jax import jit as jax_jit  # noqa: E402

pytestmark = pytest.mark.backend("jax")

RNG = np.random.default_rng(7)
X, V = (jnp.asarray(a, dtype=jnp.float32) for a in RNG.normal(size=(2, 3, 5)))
Y, LOG_Y = jax.nn.softmax(X), jax.nn.log_softmax(X)
MASK = jnp.asarray(RNG.uniform(size=(3, 5)) < 0.7).at[:, 0].set(True)
LABELS = jnp.array([4, 0, 2])  # of the dtype to which labels are widened
WEIGHT, SAMPLE_WEIGHT = jnp.array([0.5, 1.0, 2.0, 0.7, 1.5]), jnp.array([0.7, 0.0, 2.0])
CAPPED = {"temperature": 1.5, "softcap": 3.0, "z_loss": 0.05, "label_smoothing": 0.1}
WEIGHTED = {"where": MASK, "weight": WEIGHT, "sample_weight": SAMPLE_WEIGHT}

CALLS = {
    "softmax": lambda: xs.softmax(X, where=MASK),
    "log_softmax": lambda: xs.log_softmax(X, temperature=0.3),
    "logsumexp": lambda: xs.logsumexp(X, axis=None),
    "signed logsumexp": lambda: xs.logsumexp(X, b=V, return_sign=True),
    "softmax_vjp": lambda: xs.softmax_vjp(Y, V, axis=0),
    "softmax_jvp": lambda: xs.softmax_jvp(Y, V),
    "softmax_jacobian": lambda: xs.softmax_jacobian(Y, axis=0),
    "log_softmax_vjp": lambda: xs.log_softmax_vjp(LOG_Y, V),
    "log_softmax_jvp": lambda: xs.log_softmax_jvp(LOG_Y, V),
    "cross_entropy": lambda: xs.cross_entropy(X, LABELS),
    "cross_entropy_grad": lambda: xs.cross_entropy_grad(X, LABELS, ignore_index=2, **WEIGHTED),
    "cross_entropy_and_grad": lambda: xs.cross_entropy_and_grad(X, Y, **CAPPED),
    "cross_entropy_hvp": lambda: xs.cross_entropy_hvp(X, LABELS, V, **CAPPED, **WEIGHTED),
    "cross_entropy_grad_and_hessian_diag": lambda: xs.cross_entropy_grad_and_hessian_diag(X, Y, reduction="none"),
    "cross_entropy_from_probs": lambda: xs.cross_entropy_from_probs(Y, LABELS),
    "entropy": lambda: xs.entropy(Y),
    "kl_divergence": lambda: xs.kl_divergence(Y, Y[::-1]),
    "no class axis": lambda: xs.softmax(X[0, 0], axis=None),
    "no rows": lambda: xs.cross_entropy(X[:0], LABELS[:0]),
}


@pytest.fixture
def traces(monkeypatch):
    """The verbs traced into a program since the last `clear`, on the long way."""
    seen = []
    monkeypatch.setattr(choose, "_SMALL", 0)

    def program(p, call, verb, *options, xp, run):
        if run is jax_jit._formulas:
            seen.append(p.verb)
        return original(p, call, verb, *options, xp=xp, run=run)

    original = jax_jit._FORMULAS["program"]
    monkeypatch.setitem(jax_jit._FORMULAS, "program", program)
    jax_jit._program.clear_cache()
    return seen


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_traced_once_and_equal_to_the_formulas(call, traces):
    found = call()
    assert len(traces) == 1
    np.testing.assert_array_equal(jax.tree.leaves(found)[0], jax.tree.leaves(call())[0])
    assert len(traces) == 1
    with xs.use_implementation("array_api"):
        expected = call()
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        # both keep the contract: a few ulps of float32 of terms below 8
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert len(traces) == 1


def test_one_program_for_the_whole_verb():
    """Checks, weights, rows and reduction: nothing is dispatched beside the program."""
    jax.clear_caches()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    xs.cross_entropy_and_grad(X, LABELS, label_smoothing=0.1, ignore_index=0)
    jax.monitoring.clear_event_listeners()
    assert sum("backend_compile" in name for name in compiled) == 1


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_the_kinds_settle_is_the_program_of_the_long_way(call, monkeypatch):
    found = call()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    again = call()
    jax.monitoring.clear_event_listeners()
    assert [name for name in compiled if "compile" in name] == []
    monkeypatch.setattr(choose, "_SMALL", 0)
    for results in zip(*map(jax.tree.leaves, (found, again, call())), strict=True):
        assert len({(a.dtype, a.shape, type(a)) for a in results}) == 1
        np.testing.assert_array_equal(*results[:2])
        np.testing.assert_allclose(*results[1:], rtol=1e-6, atol=1e-6)  # another program may fuse in another way


def test_what_makes_another_program(traces):
    for call, count in (
        (lambda: xs.softmax(X), 1),
        (lambda: xs.softmax(V), 1),
        (lambda: xs.softmax(X[:2]), 2),
        (lambda: xs.softmax(X, axis=0), 3),
        (lambda: xs.softmax(X, where=MASK), 4),
        (lambda: xs.softmax(X.astype(jnp.float16)), 5),
        (lambda: xs.softmax(X, where=~MASK), 5),
    ):
        call()
        assert len(traces) == count


@pytest.mark.parametrize("verb", [xs.softmax, lambda x, **options: xs.cross_entropy_grad(x, LABELS, **options)])
def test_any_temperature_but_1_is_one_program(verb, traces):
    verb(X)
    for temperature in (0.1, 0.5, 3.0):
        found = verb(X, temperature=temperature)
        with xs.use_implementation("array_api"):
            expected = verb(X, temperature=temperature)
        np.testing.assert_allclose(found, expected, rtol=4e-6, atol=1e-7)
    assert len(traces) == 2


def test_a_loss_of_probabilities_is_never_minus_0():
    certain = jnp.array([[1.0, 0.0, 0.0]])
    for loss in (xs.cross_entropy_from_probs, jax.jit(xs.cross_entropy_from_probs)):
        assert not np.signbit(loss(certain, jnp.array([0])))


def test_traced_arrays_go_to_the_formulas(traces):
    for transformed in (jax.jit(xs.softmax), jax.vmap(xs.softmax), jax.jacfwd(xs.softmax)):
        assert np.isfinite(transformed(X)).all()
    assert "_program" not in str(jax.make_jaxpr(xs.softmax)(X))
    assert traces == []


def test_logits_that_are_not_traced_among_weights_that_are(traces):
    """The loss Σ_i −w_i log y_i by w, where i are the labels."""
    gradient = jax.grad(lambda weight: xs.cross_entropy(X, LABELS, weight=weight, reduction="sum"))(WEIGHT)
    expected = jnp.zeros(5).at[LABELS].set(-LOG_Y[jnp.arange(3), LABELS])
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert traces == []


def test_explain_names_it():
    assert xs.explain("entropy", Y).implementation == "jax_jit"
    for verb, *arrays in (("softmax", X), ("cross_entropy", X, LABELS)):
        explanation = xs.explain(verb, *arrays)
        assert (explanation.implementation, explanation.derivatives) == ("jax_jit", "jax_native")
    seen = []
    jax.make_jaxpr(lambda x: seen.append(xs.explain("softmax", x)) or x)(X)
    assert seen[0].implementation == "array_api"
    assert "program" in seen[0].refused["jax_jit"][0]


def test_forced(traces):
    with xs.use_implementation("array_api"):
        xs.softmax(X)
    assert traces == []
    with xs.use_implementation("jax_jit"):
        np.testing.assert_allclose(xs.softmax(X), Y, rtol=1e-6)
        assert traces == ["softmax"]
        assert xs.explain("softmax", X).derivatives == "jax_native"
        with pytest.raises(ValueError, match=r"jax_jit was asked for but refuses: .*Tracer"):
            jax.grad(xs.logsumexp)(X[0])


def test_the_rules_stay_in_front():
    """The formulas differentiated as written split a tie's derivative in the maximum."""
    v = jnp.arange(4.0)
    gradient = jax.grad(lambda x: xs.softmax(x) @ v)(jnp.zeros(4))
    np.testing.assert_allclose(gradient, (np.arange(4.0) - 1.5) / 4.0, rtol=1e-6)


def test_results_stay_on_the_device_of_the_logits():
    for device in jax.devices():
        x = jax.device_put(X, device)
        loss, grad = xs.cross_entropy_and_grad(x, jax.device_put(LABELS, device))
        assert loss.devices() == grad.devices() == {device}


def test_sharded_arrays_stay_sharded():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    y = xs.softmax(jax.device_put(jnp.tile(X, (len(jax.devices()), 1)), sharding))
    assert y.sharding.is_equivalent_to(sharding, y.ndim)
