"""Small calls enter few Python functions, whatever the axis, layout and options; no noise touches their number."""

import sys
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest

import xsoftmax as xs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 10)).astype(np.float32)
DEEP = RNG.normal(size=(4, 8, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, 32)
TARGETS = RNG.dirichlet(np.ones(10), 32).astype(np.float32)
WEIGHT, SAMPLE_WEIGHT = RNG.random(10).astype(np.float32), RNG.random(32).astype(np.float32)
WHERE = RNG.random((32, 10)) < 0.8
WHERE[np.arange(32), LABELS] = True
NUMBERS = {"temperature": 0.7, "softcap": 5.0, "z_loss": 0.01, "label_smoothing": 0.1}
ARRAYS = {"where": WHERE, "weight": WEIGHT, "sample_weight": SAMPLE_WEIGHT}

LIKE_LOGITS = [
    *((DEEP, {"axis": axis}) for axis in (0, 1, -1, (0, 2), None)),
    (X, {}),
    (X, {"axis": None}),
    (X.T, {}),
    (X[::-1, ::2], {}),
    (X, {"where": WHERE}),
    (X, {"axis": 0, "where": WHERE[:, :1]}),
]
OPTIONS = [
    {},
    *({name: number} for name, number in NUMBERS.items()),
    *({name: array} for name, array in ARRAYS.items()),
    {"ignore_index": 3},
    {"reduction": "none"},
    {"ignore_index": 3, **NUMBERS, **ARRAYS},
]


@pytest.fixture(params=["numpy_numba", "numpy_blocked"], autouse=True)
def implementation(request):
    """With Numba, and by NumPy alone; PyTorch's tensors go to these."""
    if request.param == "numpy_numba" and find_spec("numba") is None:
        pytest.skip("Numba is not installed")
    with xs.use_implementation(request.param):
        yield request.param


def entered(call):
    """How many Python functions a call enters, once everything is found and compiled."""
    for _ in range(2):
        call()
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


@pytest.fixture
def most(xb):
    """The limits: of a call on logits, and of a loss."""
    if xb.name not in ("numpy", "torch"):
        pytest.skip("others have no entries")
    return {"numpy": (25, 40), "torch": (60, 60)}[xb.name]


@pytest.fixture
def put(xb):
    return lambda a: a if a is None or xb.name == "numpy" else xb.asarray(np.ascontiguousarray(a))


@pytest.mark.parametrize("verb", [xs.softmax, xs.log_softmax, xs.logsumexp])
def test_calls_on_logits(most, put, verb):
    calls = [
        (put(x), {name: put(a) if name == "where" else a for name, a in options.items()}) for x, options in LIKE_LOGITS
    ]
    if verb is not xs.logsumexp:
        calls.append((put(X), {"temperature": 0.7}))
    for x, options in calls:
        assert entered(partial(verb, x, **options)) <= most[0], options


@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
@pytest.mark.parametrize("targets", [LABELS, TARGETS], ids=["labels", "probabilities"])
def test_losses(implementation, most, put, targets, options):
    given = {name: put(a) if isinstance(a, np.ndarray) else a for name, a in options.items()}
    if targets is TARGETS:
        given.pop("ignore_index", None)
    x, t = put(X), put(targets)
    for verb in (xs.cross_entropy, xs.cross_entropy_grad, xs.cross_entropy_and_grad):
        assert entered(partial(verb, x, t, **given)) <= most[1]
    if implementation == "numpy_blocked":
        return  # Hessians are the formulas' there
    assert entered(partial(xs.cross_entropy_grad_and_hessian_diag, x, t, **given)) <= most[1]
    assert entered(partial(xs.cross_entropy_hvp, x, t, x, **given)) <= most[1]


@pytest.mark.backend("torch")
@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
def test_loss_and_backward(options):
    torch = pytest.importorskip("torch")
    x, labels = torch.tensor(X, requires_grad=True), torch.tensor(LABELS)
    given = {name: torch.tensor(a) if isinstance(a, np.ndarray) else a for name, a in options.items()}

    def step():
        loss = xs.cross_entropy(x, labels, **given)
        (loss if loss.ndim == 0 else loss.sum()).backward()

    assert entered(step) <= 150
