"""DTensors of two processes: the results of whole tensors, placed as the logits are, of which none moves.

``python dtensors.py rows`` or ``classes``, the axis that is cut; run by test_torch_dtensor.py.
"""

import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

import xsoftmax as xs

PROCESSES = 2
ROWS, CLASSES, WIDTH = 8, 192, 4
FEW = 2 * ROWS * PROCESSES  # numbers; a process holds 768 logits
GRADIENTS = CLASSES * WIDTH
LOOKED_UP = ("cross_entropy_and_grad", "cross_entropy_hvp", "backward")  # weights of classes, wherever a label's lies

_RANDOM = torch.Generator().manual_seed(3)


def normal(*shape):
    return torch.randn(shape, generator=_RANDOM)


X, LABELS = 3.0 * normal(ROWS, CLASSES), torch.randint(CLASSES, (ROWS,), generator=_RANDOM)
X[0, LABELS[0]] = 40.0  # a confident row
X[1, :100] = 9.0  # ties
MASK = torch.rand(X.shape, generator=_RANDOM) < 0.7
MASK[torch.arange(ROWS), LABELS] = True
ARRAYS = {
    "x": X,
    "v": normal(*X.shape),
    "y": torch.softmax(X, -1),
    "q": torch.softmax(normal(*X.shape), -1),
    "log_y": torch.log_softmax(X, -1),
    "labels": LABELS,
    "where": MASK,
    "weight": torch.rand(CLASSES, generator=_RANDOM),
    "sample_weight": torch.rand(ROWS, generator=_RANDOM),
    "input": normal(ROWS, WIDTH),
    "linear_weight": normal(CLASSES, WIDTH),
}
EVERY = {"label_smoothing": 0.1, "softcap": 20.0, "temperature": 0.7, "z_loss": 0.01}


def gradient(f, *tensors, create_graph=False):
    """Of the sum of what `f` returns."""
    leaves = [t.detach().requires_grad_() if not t.requires_grad else t for t in tensors]
    return torch.autograd.grad(f(*leaves).sum(), leaves, create_graph=create_graph)


def options(a):
    return EVERY | {name: a[name] for name in ("where", "weight", "sample_weight")}


CALLS = {
    "softmax": lambda a: xs.softmax(a["x"]),
    "softmax where": lambda a: xs.softmax(a["x"], where=a["where"]),
    "softmax, all axes": lambda a: xs.softmax(a["x"], axis=None),
    "log_softmax": lambda a: xs.log_softmax(a["x"], temperature=0.5),
    "logsumexp": lambda a: xs.logsumexp(a["x"]),
    "logsumexp, signed": lambda a: xs.logsumexp(a["x"], b=a["v"], return_sign=True),
    "softmax_vjp": lambda a: xs.softmax_vjp(a["y"], a["v"]),
    "log_softmax_vjp": lambda a: xs.log_softmax_vjp(a["log_y"], a["v"]),
    "log_softmax_jvp": lambda a: xs.log_softmax_jvp(a["log_y"], a["v"]),
    "cross_entropy": lambda a: xs.cross_entropy(a["x"], a["labels"], ignore_index=int(LABELS[2])),
    "cross_entropy, probabilities": lambda a: xs.cross_entropy(a["x"], a["y"], **options(a)),
    "cross_entropy_grad": lambda a: xs.cross_entropy_grad(a["x"], a["labels"], reduction="none"),
    "cross_entropy_and_grad": lambda a: xs.cross_entropy_and_grad(a["x"], a["labels"], **options(a)),
    "cross_entropy_hvp": lambda a: xs.cross_entropy_hvp(a["x"], a["labels"], a["v"], **options(a)),
    "cross_entropy_grad_and_hessian_diag": lambda a: xs.cross_entropy_grad_and_hessian_diag(a["x"], a["labels"]),
    "cross_entropy_from_probs": lambda a: xs.cross_entropy_from_probs(a["y"], a["labels"]),
    "entropy": lambda a: xs.entropy(a["y"]),
    "kl_divergence": lambda a: xs.kl_divergence(a["y"], a["q"]),
    "backward of softmax": lambda a: gradient(lambda x: xs.softmax(x) * a["v"], a["x"]),
    "backward": lambda a: gradient(lambda x: xs.cross_entropy(x, a["labels"], **options(a)), a["x"]),
    "backward twice": lambda a: gradient(
        lambda x: gradient(lambda x: xs.cross_entropy(x, a["labels"]), x, create_graph=True)[0] * a["v"], a["x"]
    ),
    "linear": lambda a: tuple(xs.linear_cross_entropy_and_grad(a["input"], a["linear_weight"], a["labels"]))[:3],
    "backward of linear": lambda a: gradient(
        lambda x, w: xs.linear_cross_entropy(x, w, a["labels"]), a["input"], a["linear_weight"]
    ),
}


class Moved(TorchDispatchMode):
    """What collectives are given, in numbers."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented  # until it is an operation on what a process holds
        if op.namespace.startswith("_c10d_functional") and "wait" not in str(op):
            self.sizes.append(args[0].numel())
        return op(*args, **kwargs or {})


def placements(name, cut):
    axis = {"labels": "rows", "sample_weight": "rows", "weight": "classes", "linear_weight": "classes", "input": "rows"}
    if name in axis:
        return [Shard(0) if axis[name] == cut else Replicate()]
    return [Shard(0 if cut == "rows" else 1)]


def parts(results):
    return results if isinstance(results, tuple) else (results,)


def failures(mesh, cut):
    cut_arrays = {name: distribute_tensor(a, mesh, placements(name, cut)) for name, a in ARRAYS.items()}
    for name, call in CALLS.items():
        with Moved() as moved:
            found = parts(call(cut_arrays))
        most = GRADIENTS if "linear" in name else CLASSES if name in LOOKED_UP else FEW
        if any(size > most for size in moved.sizes) or (cut == "classes" and not moved.sizes):
            yield f"{name}: moves {moved.sizes}"
        for one, whole in zip(found, parts(call(ARRAYS)), strict=True):
            if whole.shape == X.shape and list(one.placements) != placements("x", cut):
                yield f"{name}: placed as {one.placements}"
            # products are the library's own; all else is float64 inside and rounded once
            ulps = 8 if "linear" in name else 1
            error = (one.full_tensor() - whole).abs().max() / (torch.finfo(whole.dtype).eps * whole.abs().max())
            if not error <= ulps:
                yield f"{name}: off by {error} eps"
    yield from refusals(cut_arrays)
    out = torch.zeros_like(cut_arrays["x"])
    if xs.softmax(cut_arrays["x"], out=out) is not out or not out.full_tensor().any():
        yield "out: not written to"


def refusals(a):
    for kind, words, call in (
        (TypeError, "logits is a DTensor and targets is not", lambda: xs.cross_entropy(a["x"], LABELS)),
        (TypeError, "where is a DTensor and x is not", lambda: xs.softmax(X, where=a["where"])),
        (
            NotImplementedError,
            "chunk_size is given for a DTensor",
            lambda: xs.linear_cross_entropy(a["input"], a["linear_weight"], a["labels"], chunk_size=3),
        ),
    ):
        try:
            call()
        except kind as error:
            if words in str(error):
                continue
            yield f"{words}: {error}"
        else:
            yield f"{words}: no error"


def run(rank, cut, path):
    warnings.simplefilter("error", RuntimeWarning)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=PROCESSES)
    found = list(failures(init_device_mesh("cpu", (PROCESSES,)), cut))
    dist.destroy_process_group()
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run, (sys.argv[1], f"{folder}/meeting"), PROCESSES)
