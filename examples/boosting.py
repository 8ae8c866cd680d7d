"""Gradient boosting: a custom objective for LightGBM that learns what its built-in multiclass objective learns.

A boosting round fits a tree per class to the gradient and the diagonal of the Hessian of the loss. For a row with
probabilities y = softmax(x) and target q these are

    g = y − q,     h = y (1 − y)

LightGBM multiplies its own h by C / (C − 1) for C classes, which shortens every step by (C − 1) / C: Friedman's factor
(2001) for scores of which one is redundant, since a constant added to all C of them changes nothing. With the same
factor both objectives grow the same trees; what the exact h does is shown beside them.

    python examples/boosting.py
"""

import argparse
from pathlib import Path

import lightgbm
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import xsoftmax as xs

CLASSES = 10
OBJECTIVES = {
    "built-in": "multiclass",
    "xsoftmax": CLASSES / (CLASSES - 1),
    "xsoftmax, exact h": 1.0,
}


def custom_objective(hessian_scale):
    """A LightGBM objective: scores (row, class) in, gradient and Hessian diagonal of the same shape out."""

    def objective(scores, dataset):
        labels = dataset.get_label().astype(np.int64)
        gradient, hessian = xs.cross_entropy_grad_and_hessian_diag(scores, labels, reduction="none")
        return gradient, hessian_scale * hessian

    return objective


def test_losses(objective, seed, rounds):
    """Mean test log-loss after every round."""
    data, labels = load_digits(return_X_y=True)
    data, test_data, labels, test_labels = train_test_split(
        data, labels, test_size=0.2, stratify=labels, random_state=seed
    )
    parameters = {
        "num_class": CLASSES,
        "num_leaves": 15,
        "learning_rate": 0.1,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "seed": seed,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    # The built-in objective starts from the logarithms of the class frequencies; a custom one starts where it is told.
    start = np.log(np.bincount(labels) / len(labels))
    if objective == "multiclass":
        booster = lightgbm.train(parameters | {"objective": objective}, lightgbm.Dataset(data, labels), rounds)
        start = 0.0  # already in its trees
    else:
        dataset = lightgbm.Dataset(data, labels, init_score=np.tile(start, (len(labels), 1)))
        booster = lightgbm.train(parameters | {"objective": custom_objective(objective)}, dataset, rounds)
    scores = (booster.predict(test_data, raw_score=True, num_iteration=k) for k in range(1, rounds + 1))
    return [xs.cross_entropy(start + score, test_labels) for score in scores]


def plot(losses, path):
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    styles = {"color": "C0", "linewidth": 5, "alpha": 0.35}, {"color": "C0"}, {"color": "C1", "linestyle": "--"}
    for (name, values), style in zip(losses.items(), styles, strict=True):
        mean = np.mean(values, axis=0)
        axes.plot(np.arange(1, len(mean) + 1), mean, label=name, **style)
    axes.set(xlabel="boosting round", ylabel=f"test log-loss, mean of {len(values)} seeds", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="LightGBM with xsoftmax's gradient and Hessian diagonal.")
    parser.add_argument("--seeds", type=int, default=5, help="number of splits and baggings (default: 5)")
    parser.add_argument("--rounds", type=int, default=60, help="boosting rounds (default: 60)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder for the picture")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    console = Console()

    losses = {name: [] for name in OBJECTIVES}
    for seed in track(range(options.seeds), "boosting", console=console):
        for name, objective in OBJECTIVES.items():
            losses[name].append(test_losses(objective, seed, options.rounds))
    final = {name: np.asarray(values)[:, -1] for name, values in losses.items()}
    ratios = {name: values.mean() / final["built-in"].mean() for name, values in final.items()}

    seeds = [f"seed {seed}" for seed in range(options.seeds)]
    table = Table("test log-loss", *seeds, "mean", "ratio")
    for name, values in final.items():
        table.add_row(name, *(f"{value:.4f}" for value in values), f"{values.mean():.4f}", f"{ratios[name]:.4f}")
    console.print(table)
    options.output.mkdir(parents=True, exist_ok=True)
    plot(losses, options.output / "boosting.png")
    console.print(f"picture in {options.output}")
    return ratios


if __name__ == "__main__":
    main()
