"""Eight devices of the host: what moves between them where rows or classes are cut, and the right digits all the same.

`test_jax_sharded.py` runs this in a process of its own, since JAX counts its devices when it starts.
"""

import math
import re
from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import xsoftmax as xs
from xsoftmax.libraries import sums
from xsoftmax.verify.cases import POSITIONAL
from xsoftmax.verify.compare import Arithmetic, judge
from xsoftmax.verify.oracle import expected

pytestmark = pytest.mark.backend("jax")

X64 = jax.config.jax_enable_x64
DTYPE = "float64" if X64 else "float32"
DEVICES = 8
ROWS, CLASSES, WIDTH = 8, 192, 4
FEW = 2 * ROWS * DEVICES  # numbers; a device holds 192 logits
GRADIENTS = CLASSES * (WIDTH + 1) + 1  # of the linear weight and bias, which are sums over rows, and a loss
MESH = Mesh(np.array(jax.devices()), ("devices",))

RNG = np.random.default_rng(8)
X = RNG.normal(scale=3.0, size=(ROWS, CLASSES)).astype(DTYPE)
LABELS = RNG.integers(CLASSES, size=ROWS)
X[0, LABELS[0]] = 40.0  # a confident row
X[1, :100] = 9.0  # ties
X[2] += 1000.0
MASK = RNG.random(X.shape) < 0.7
MASK[np.arange(ROWS), LABELS] = True
LOG_Y = (X - xs.logsumexp(X.astype("float64"), keepdims=True)).astype(DTYPE)
ARRAYS = {
    "x": X,
    "y": np.exp(LOG_Y),
    "log_y": LOG_Y,
    "v": RNG.normal(size=X.shape).astype(DTYPE),
    "labels": LABELS,
    "q": (RNG.dirichlet(np.full(CLASSES, 0.5), ROWS) * 1.5).astype(DTYPE),
    "where": MASK,
    "b": RNG.random(X.shape).astype(DTYPE),
    "weight": RNG.random(CLASSES).astype(DTYPE),
    "sample_weight": np.resize([0.5, 1.0, 0.0, 2.0], ROWS).astype(DTYPE),
    # whole numbers, of which no product rounds
    "input": RNG.integers(-4, 5, (ROWS, WIDTH)).astype(DTYPE),
    "linear_weight": RNG.integers(-3, 4, (CLASSES, WIDTH)).astype(DTYPE),
    "linear_bias": RNG.integers(-3, 4, CLASSES).astype(DTYPE),
}
OPTIONS = {  # an ellipsis: the array of that name
    "plain": {},
    "rows": {"reduction": "none"},
    "every": dict.fromkeys(("where", "weight", "sample_weight"), ...) | {"label_smoothing": 0.1, "z_loss": 0.01},
    "transformed": {"softcap": 20.0, "temperature": 0.7},
}
LOSSES = (
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_and_grad",
    "cross_entropy_hvp",
    "cross_entropy_grad_and_hessian_diag",
)
LINEAR = ("linear_cross_entropy", "linear_cross_entropy_and_grad")
BY_ROW = ("softmax", "logsumexp", "softmax_vjp", "cross_entropy_and_grad", *LINEAR)  # rows need each other in sums only
CALLS = [
    *((verb, ("x",), options) for verb in ("softmax", "log_softmax", "logsumexp") for options in ({}, {"where": ...})),
    ("softmax", ("x",), {"axis": None}),
    ("logsumexp", ("x",), {"b": ..., "return_sign": True}),
    *((f"softmax_{way}", ("y", "v"), {}) for way in ("vjp", "jvp")),
    *((f"log_softmax_{way}", ("log_y", "v"), {}) for way in ("vjp", "jvp")),
    *((verb, ("x", "labels"), OPTIONS["transformed"]) for verb in ("cross_entropy_and_grad", "jax.grad")),
    ("cross_entropy_hvp", ("x", "labels", "v"), OPTIONS["transformed"]),
    ("cross_entropy_and_grad", ("x", "labels"), OPTIONS["rows"]),
    ("cross_entropy_and_grad", ("x", "labels"), OPTIONS["every"] | {"ignore_index": int(LABELS[3])}),
    *(
        (verb, ("input", "linear_weight", targets), {"linear_bias": ...})
        for verb in LINEAR
        for targets in ("q", "labels")
    ),
    ("linear_cross_entropy_and_grad", ("input", "linear_weight", "labels"), {"linear_bias": ..., **OPTIONS["every"]}),
    *(("cross_entropy_from_probs", ("y", targets), {}) for targets in ("labels", "q")),
    ("entropy", ("y",), {}),
    ("kl_divergence", ("y", "y"), {}),
]


def spec(name, cut):
    """Where the parts of an array lie: on which axis it is cut."""
    rows, classes = ("devices", None) if cut == "rows" else (None, "devices")
    return PartitionSpec(
        *{
            "labels": (rows,),
            "sample_weight": (rows,),
            "weight": (classes,),
            "linear_bias": (classes,),
            "linear_weight": (classes, None),
            "input": (rows, None),
        }.get(name, (rows, classes))
    )


def placed(name, cut, mesh=MESH):
    return jax.device_put(jnp.asarray(ARRAYS[name]), NamedSharding(mesh, spec(name, cut)))


def function(verb, options):
    static = {name: value for name, value in options.items() if value is not ...}
    if verb == "jax.grad":
        return lambda x, t, **named: jax.grad(lambda x: xs.cross_entropy(x, t, **named, **static))(x)
    return partial(getattr(xs, verb), **static)


def call(verb, names, options, place):
    """The function of a verb with its numbers, and the arrays."""
    named = {name: place(name) for name, value in options.items() if value is ...}
    return function(verb, options), [place(name) for name in names], named


def collectives(program):
    """What a compiled program moves between devices: kind and number of elements of each transfer."""
    kinds = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all|ragged-all-to-all|collective-broadcast"
    found = re.findall(rf"= (.+?) ({kinds})(?:-start)?\(", program)
    for result, kind in found:
        shapes = re.findall(r"\w+\[([\d,]*)\]", result)
        yield kind, sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)


@cache
def exact(verb, names, options):
    """The oracle's results, where it has the verb and takes no minutes; else None."""
    options = dict(options)
    verb = "cross_entropy_grad" if verb == "jax.grad" else verb
    if "softcap" in options or verb == "linear_cross_entropy_and_grad":
        return None
    options = {name: ARRAYS[name] if value is ... else value for name, value in options.items()}
    arrays = dict(zip(POSITIONAL[verb], (ARRAYS[name] for name in names), strict=True))
    return expected((verb,), arrays, options)[verb]


def ids(a):
    return a if isinstance(a, str) else "-".join(map(str, a))


@pytest.mark.parametrize(
    "cut, verb, names, options",
    [
        *(("classes", *call) for call in CALLS),
        *(("rows", *call) for call in CALLS if call[0] in BY_ROW and "softcap" not in call[2]),
    ],
    ids=ids,
)
def test_no_logits_move(cut, verb, names, options):
    assert_no_logits_move(cut, verb, names, options)


@pytest.mark.parametrize("verb", [*LOSSES, "jax.grad"])
@pytest.mark.parametrize("targets", ["labels", "q"])
@pytest.mark.parametrize("options", ["plain", "every"])
def test_no_logits_of_losses_move(options, targets, verb):
    names = ("x", targets, "v") if verb.endswith("hvp") else ("x", targets)
    for cut in ("classes", "rows") if verb in BY_ROW else ("classes",):
        assert_no_logits_move(cut, verb, names, OPTIONS[options])


def assert_no_logits_move(cut, verb, names, options):
    f, arrays, named = call(verb, names, options, partial(placed, cut=cut))
    compiled = jax.jit(f).lower(*arrays, **named).compile()
    moved = list(collectives(compiled.as_text()))
    most = GRADIENTS if verb in LINEAR and cut == "rows" else FEW
    assert [(kind, n) for kind, n in moved if kind != "all-reduce" or n > most] == []
    assert moved or cut == "rows"
    results = jax.tree.leaves(compiled(*arrays, **named))
    assert_cut_like_logits(results, cut)
    assert_right(results, verb, names, options)


def assert_cut_like_logits(results, cut):
    for result in results:
        if result.shape == X.shape:
            assert result.sharding.is_equivalent_to(NamedSharding(MESH, spec("x", cut)), 2)


def assert_right(results, verb, names, options):
    if (reference := exact(verb, names, tuple(options.items()))) is None:
        f, arrays, named = call(verb, names, options, lambda name: jnp.asarray(ARRAYS[name]))
        for found, whole in zip(results, jax.tree.leaves(f(*arrays, **named)), strict=True):
            # either is within 8 ulp of the exact result, in ulps of its terms
            np.testing.assert_allclose(found, whole, rtol=0, atol=16 * np.finfo(DTYPE).eps * np.abs(whole).max())
        return
    for found, result in zip(results, reference, strict=True):
        verdict = judge(np.asarray(found), result, Arithmetic(DTYPE, X64, flushes=True))
        assert verdict.failures == []
        assert verdict.compared > 0


@pytest.mark.parametrize(
    "cut, verb", [*product(["classes", "rows"], ["softmax", "cross_entropy_and_grad"]), ("classes", "jax.grad")]
)
def test_arrays_that_hold_values(cut, verb):
    names, options = ("x",) if verb == "softmax" else ("x", "labels"), {}
    f, arrays, named = call(verb, names, options, partial(placed, cut=cut))
    results = jax.tree.leaves(f(*arrays, **named))
    assert_cut_like_logits(results, cut)
    assert_right(results, verb, names, options)


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="this JAX has no types that tell the sharding")
@pytest.mark.parametrize("verb", ["softmax", "cross_entropy_and_grad", "cross_entropy_hvp", "jax.grad"])
@pytest.mark.parametrize("cut", ["classes", "rows"])
def test_types_that_tell_the_sharding(cut, verb):
    options = {} if verb == "softmax" else OPTIONS["every"]
    names = {"softmax": ("x",), "cross_entropy_hvp": ("x", "labels", "v")}.get(verb, ("x", "labels"))
    mesh = jax.make_mesh((DEVICES,), ("devices",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        f, arrays, named = call(verb, names, options, partial(placed, cut=cut, mesh=mesh))
        results = jax.tree.leaves(jax.jit(f)(*arrays, **named))
        assert_cut_like_logits(results, cut)
        assert_right(results, verb, names, options)


def test_classes_in_front():
    x = jax.device_put(jnp.asarray(X.T), NamedSharding(MESH, PartitionSpec("devices")))
    compiled = jax.jit(partial(xs.softmax, axis=0)).lower(x).compile()
    assert {(kind, n <= FEW) for kind, n in collectives(compiled.as_text())} == {("all-reduce", True)}
    assert_right([compiled(x).T], "softmax", ("x",), {})


def test_classes_that_devices_do_not_share_evenly():
    """JAX takes them within a program alone, as a wish."""

    @jax.jit
    def softmax(x):
        x = jax.lax.with_sharding_constraint(x, NamedSharding(MESH, spec("x", "classes")))
        return xs.softmax(x)

    x = jnp.asarray(X[:, :-1])
    np.testing.assert_allclose(softmax(x), xs.softmax(x), rtol=16 * np.finfo(DTYPE).eps)


def test_sums_of_devices_add_up_exactly():
    x = RNG.uniform(size=(1000, DEVICES)).astype(DTYPE)
    cut = jax.device_put(jnp.asarray(x), NamedSharding(MESH, spec("x", "classes")))
    found = jax.jit(partial(sums.total, xp=jnp), static_argnums=1)(cut, (-1,), jnp.max(cut, axis=-1, keepdims=True))
    np.testing.assert_array_equal(found[:, 0], np.array([math.fsum(row) for row in x]).astype(DTYPE))
