"""Plot the error of a confident, right row's loss against its margin: what each library returns for −log softmax(x)_t.

python benchmarks/accuracy.py            # writes docs/images/accuracy.png
"""

import argparse
from pathlib import Path

import matplotlib
import mpmath
import numpy as np
import scipy.special
from matplotlib import pyplot as plt

import xsoftmax as xs

CLASSES, ROWS = 10, 64


def contenders():
    """Name → loss of each row, for logits whose target is class 0."""
    found = {
        "NumPy, x − max": lambda x: (
            -(x[:, 0] - x.max(-1) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, dtype=x.dtype)))
        ),
        "SciPy log_softmax": lambda x: -scipy.special.log_softmax(x, axis=-1)[:, 0],
        "SciPy logsumexp(x) − x_t": lambda x: scipy.special.logsumexp(x, axis=-1) - x[:, 0],
    }
    try:
        import torch

        found["PyTorch cross_entropy"] = lambda x: torch.nn.functional.cross_entropy(
            torch.from_numpy(x), torch.zeros(len(x), dtype=torch.int64), reduction="none"
        ).numpy()
    except ImportError:
        pass
    labels = np.zeros(ROWS, dtype=np.int64)
    found["xsoftmax cross_entropy"] = lambda x: xs.cross_entropy(x, labels, reduction="none")
    return found


def exact(row):
    """log Σ exp(x_i − x_0) at 60 digits."""
    with mpmath.workdps(60):
        return mpmath.log1p(mpmath.fsum(mpmath.exp(mpmath.mpf(float(x)) - float(row[0])) for x in row[1:]))


def worst_ulps(loss, x):
    """The largest error in units in the last place of the exact loss."""
    errors = []
    for found, row in zip(loss, x, strict=True):
        truth = exact(row)
        ulp = np.spacing(x.dtype.type(truth))
        errors.append(float(abs(mpmath.mpf(float(found)) - truth) / float(ulp)))
    return max(errors)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "accuracy.png")
    output = parser.parse_args(argv).output
    matplotlib.use("Agg")
    rng = np.random.default_rng(0)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=False)
    for ax, dtype, largest in zip(axes, (np.float32, np.float64), (86, 700), strict=True):
        margins = np.linspace(1, largest, 44)
        for name, loss in contenders().items():
            worst = []
            for margin in margins:
                x = rng.normal(size=(ROWS, CLASSES)).astype(dtype)
                x[:, 0] = x[:, 1:].max(-1) + dtype(margin)
                worst.append(max(worst_ulps(loss(x), x), 0.4))
            ours = name.startswith("xsoftmax")
            ax.semilogy(margins, worst, label=name, linewidth=2.5 if ours else 1.2, color="black" if ours else None)
        ax.set(
            title=f"{np.dtype(dtype).name}, {CLASSES} classes",
            xlabel="margin of the right class over the runner-up",
            ylabel="worst error of the loss in ulps",
        )
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    print(output)


if __name__ == "__main__":
    main()
