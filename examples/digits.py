"""Train a neural network from scratch to read handwritten digits, on any array library.

The data are the 1797 grey images of 8 × 8 pixels that come with scikit-learn; nothing is downloaded. No framework is
involved: the forward pass, backpropagation and gradient descent are the short functions below, and xsoftmax gives the
loss together with its gradient.

    python examples/digits.py                      # NumPy; five networks
    python examples/digits.py --backend torch      # the same numbers from PyTorch, CuPy, JAX, array-api-strict, …
    python examples/digits.py --search             # repeat the search that chose the settings (7 minutes)
"""

import argparse
import itertools
import math
import os
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import RepeatedStratifiedKFold, train_test_split
from threadpoolctl import threadpool_limits

import xsoftmax as xs

CLASSES = 10
UNFIT = ("dask", "cubed", "ndonnx", "sparse")  # a graph or a plan for each of 13 200 small steps, or no indexing


# Products of 32 rows gain nothing from threads: on a busy machine, 142 s of CPU time with two and 8 s with one.
one_thread = threadpool_limits.wrap(limits=1)


@dataclass(frozen=True)
class Settings:
    """The defaults are what ``--search`` chose: 99.03 % right in validation. It never sees the test images."""

    hidden: tuple[int, ...] = (256,)
    learning_rate: float = 0.2
    weight_decay: float = 1e-4
    label_smoothing: float = 0.2
    momentum: float = 0.9
    batch_size: int = 32
    epochs: int = 60


GRID = {
    "hidden": [(256,), (128, 64)],
    "learning_rate": [0.1, 0.2, 0.4],
    "weight_decay": [1e-4, 1e-3],
    "label_smoothing": [0.0, 0.1, 0.2, 0.3],
}


def load_data():
    """80 % of every digit's images for training and 20 % for testing, pixels from 0 to 1."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images / 16, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return (train_images, train_labels), (test_images, test_labels)


def to_backend(backend, images, labels):
    """Move to the backend, in float64 where it has it."""
    return backend.asarray(images, "float64" if backend.float64 else "float32"), backend.asarray(labels)


# --- the network ------------------------------------------------------------------------------------------------------


def initial_parameters(rng, sizes):
    """[W₁, b₁, W₂, b₂, …]; a variance of 2 / inputs keeps the signal's size from layer to layer (He et al., 2015)."""
    layers = itertools.pairwise(sizes)
    return [p for n, m in layers for p in (rng.standard_normal((n, m)) * math.sqrt(2 / n), np.zeros(m))]


def forward(xp, parameters, images):
    """The input h of every layer, h₀ = images and then h ← max(0, h W + b), and the last layer's logits h W + b."""
    inputs = [images]
    *hidden, (weight, bias) = zip(parameters[::2], parameters[1::2], strict=True)
    for hidden_weight, hidden_bias in hidden:
        z = inputs[-1] @ hidden_weight + hidden_bias
        inputs.append(xp.where(z > 0, z, 0.0))
    return inputs, inputs[-1] @ weight + bias


def loss_and_gradients(xp, parameters, images, labels, label_smoothing):
    """The mean cross-entropy and its derivatives by W₁, b₁, W₂, b₂, …, by backpropagation."""
    inputs, logits = forward(xp, parameters, images)
    # δ = ∂loss/∂logits = (softmax(logits) − target) / N
    loss, delta = xs.cross_entropy_and_grad(logits, labels, label_smoothing=label_smoothing)
    gradients = []
    for h, weight in zip(reversed(inputs), reversed(parameters[::2]), strict=True):
        # z = h W + b gives ∂loss/∂W = hᵀ δ, ∂loss/∂b = Σ δ over the batch and ∂loss/∂h = δ Wᵀ,
        # which h = max(0, z) passes on where it is positive.
        gradients = [h.T @ delta, xp.sum(delta, axis=0), *gradients]
        delta = xp.where(h > 0, delta @ weight.T, 0.0)
    return loss, gradients


def batches(rng, n, settings):
    """Every epoch takes all n images in a new random order, but for a remainder that fills no batch."""
    for _ in range(settings.epochs):
        order = rng.permutation(n)
        for start in range(0, n - settings.batch_size + 1, settings.batch_size):
            yield order[start : start + settings.batch_size]


def training_steps(backend, images, labels, settings, seed):
    """Stochastic gradient descent with momentum: yields (loss, parameters) after every step.

    All random numbers come from NumPy, so that every backend sees the same start and the same batches.
    """
    xp = backend.xp
    rng = np.random.default_rng(seed)
    sizes = (images.shape[1], *settings.hidden, CLASSES)
    parameters = [backend.asarray(p, images.dtype) for p in initial_parameters(rng, sizes)]
    velocities = [xp.zeros_like(p) for p in parameters]

    n = labels.shape[0]
    steps = settings.epochs * (n // settings.batch_size)
    for step, batch in enumerate(batches(rng, n, settings)):
        batch = backend.asarray(batch)
        x, t = xp.take(images, batch, axis=0), xp.take(labels, batch, axis=0)
        loss, gradients = loss_and_gradients(xp, parameters, x, t, settings.label_smoothing)
        # v ← μ v − η (∂loss/∂p + λ p) and p ← p + v, where η falls to 0 along half a cosine
        rate = settings.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        velocities = [
            settings.momentum * v - rate * (g + settings.weight_decay * p)
            for v, g, p in zip(velocities, gradients, parameters, strict=True)
        ]
        parameters = [p + v for p, v in zip(parameters, velocities, strict=True)]
        yield loss, parameters


# --- choosing the settings --------------------------------------------------------------------------------------------


@one_thread
def search(console, images, labels, *, grid=GRID, settings=None, splits=5, repeats=2):
    """(validation accuracy, settings) of every combination in the grid, best first; images are for training only."""
    backend = xs.backend("numpy")
    folds = RepeatedStratifiedKFold(n_splits=splits, n_repeats=repeats, random_state=0)
    results = []
    for values in track(list(itertools.product(*grid.values())), "searching", console=console):
        candidate = replace(settings or Settings(), **dict(zip(grid, values, strict=True)))
        accuracies = []
        for seed, (fit, validate) in enumerate(folds.split(images, labels)):
            [(_, parameters)] = deque(training_steps(backend, images[fit], labels[fit], candidate, seed), maxlen=1)
            _, logits = forward(backend.xp, parameters, images[validate])
            accuracies.append(np.mean(np.argmax(logits, axis=1) == labels[validate]))
        results.append((np.mean(accuracies), candidate))
    return sorted(results, key=lambda result: result[0], reverse=True)


def print_search(console, results, rows=10):
    table = Table(*GRID, "validation accuracy", title=f"the best of {len(results)} combinations")
    for accuracy, candidate in results[:rows]:
        table.add_row(*(str(getattr(candidate, name)) for name in GRID), f"{accuracy:.2%}")
    console.print(table)


# --- training and testing ---------------------------------------------------------------------------------------------


@one_thread
def train_and_test(console, backend, train, test, settings, seeds):
    """A network per seed: losses (seed, epoch, [training, test]) and test probabilities (seed, image, class)."""
    xp = backend.xp
    images, labels = to_backend(backend, *train)
    test_images, test_labels = to_backend(backend, *test)
    steps_per_epoch = labels.shape[0] // settings.batch_size
    losses, probabilities = np.zeros((seeds, settings.epochs, 2)), []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        for seed in range(seeds):
            bar = progress.add_task(f"network {seed}, epoch", total=settings.epochs)
            for step, (loss, parameters) in enumerate(training_steps(backend, images, labels, settings, seed), start=1):
                epoch = (step - 1) // steps_per_epoch
                losses[seed, epoch, 0] += float(loss) / steps_per_epoch
                if step % steps_per_epoch == 0:
                    _, logits = forward(xp, parameters, test_images)
                    test_loss = xs.cross_entropy(logits, test_labels, label_smoothing=settings.label_smoothing)
                    losses[seed, epoch, 1] = float(test_loss)
                    progress.advance(bar)
            probabilities.append(backend.to_numpy(xs.softmax(logits)))
    return losses, np.stack(probabilities)


# --- pictures ---------------------------------------------------------------------------------------------------------


def plot_losses(losses, settings, path):
    # H(target, y) = H(target) + KL(target‖y): what the network can lower is the loss above the targets' own entropy.
    target = (1 - settings.label_smoothing) * np.eye(CLASSES)[0] + settings.label_smoothing / CLASSES
    excess = losses - xs.entropy(target)
    epochs = np.arange(1, losses.shape[1] + 1)
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for part, name in enumerate(("training", "test")):
        axes.plot(epochs, excess[:, :, part].T, color=f"C{part}", alpha=0.3, linewidth=0.8)
        axes.plot(epochs, excess[:, :, part].mean(axis=0), color=f"C{part}", label=f"{name}, mean of {len(losses)}")
    axes.set(xlabel="epoch", ylabel="cross-entropy − entropy of the targets", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_confusion(labels, predictions, path):
    figure, axes = plt.subplots(figsize=(5.2, 5.4), layout="constrained")
    display = ConfusionMatrixDisplay.from_predictions(
        np.tile(labels, len(predictions)),
        predictions.ravel(),
        ax=axes,
        cmap="Blues",
        colorbar=False,
        im_kw={"norm": LogNorm(0.3, predictions.size / CLASSES)},
    )
    for text in display.text_.flat:
        text.set_visible(text.get_text() != "0")
    title = f"{len(labels)} test images × {len(predictions)} networks"
    axes.set(title=title, xlabel="predicted digit", ylabel="true digit")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_mistakes(images, labels, probabilities, path, rows=3, columns=4):
    """The test images of the highest mean loss over all networks, each beside its mean probabilities."""
    losses = np.mean([xs.cross_entropy_from_probs(p, labels, reduction="none") for p in probabilities], axis=0)
    wrong = np.sum(np.argmax(probabilities, axis=2) != labels, axis=0)
    worst = np.argsort(-losses)[: rows * columns]
    figure, axes = plt.subplots(rows, 2 * columns, figsize=(2.8 * columns, 2.1 * rows), layout="constrained")
    for (picture, bars), i in zip(axes.reshape(-1, 2), worst, strict=True):
        y = np.mean(probabilities[:, i], axis=0)
        picture.imshow(images[i].reshape(8, 8), cmap="Greys")
        picture.set_title(f"true digit: {labels[i]}", fontsize=10)
        picture.set_axis_off()
        bars.barh(range(CLASSES), y, color=["C2" if digit == labels[i] else "C3" for digit in range(CLASSES)])
        for digit in {labels[i], np.argmax(y)}:
            bars.text(y[digit] + 0.03, digit, f"{y[digit]:.2f}", va="center", fontsize=8)
        bars.set(xlim=(0, 1), xticks=[0, 1], yticks=range(CLASSES), ylim=(9.6, -0.6))
        bars.tick_params(labelsize=8)
        bars.set_title(f"{wrong[i]} of {len(probabilities)} wrong", fontsize=10)
    for bars in axes[-1, 1::2]:
        bars.set_xlabel("probability", fontsize=8, labelpad=-6)
    figure.suptitle("The worst test images and their probabilities: green the true digit, red the others")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Train networks on handwritten digits, gradients by xsoftmax.")
    parser.add_argument("--backend", default="numpy", help="array library to train with (default: numpy)")
    parser.add_argument("--seeds", type=int, default=5, help="number of networks (default: 5)")
    parser.add_argument("--epochs", type=int, default=Settings.epochs, help=f"default: {Settings.epochs}")
    parser.add_argument("--search", action="store_true", help="choose the settings by cross-validation, then train")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder for the pictures")
    options = parser.parse_args(arguments)
    if options.backend in UNFIT:
        parser.error(f"--backend {options.backend}: expected an eager library of dense arrays, not {', '.join(UNFIT)}")

    matplotlib.use("Agg")
    os.environ.setdefault("JAX_ENABLE_X64", "1")  # read when JAX is first imported, by xs.backend
    backend = xs.backend(options.backend)
    console = Console()
    settings = Settings(epochs=options.epochs)
    train, test = load_data()
    if options.search:
        results = search(console, *train, settings=settings)
        print_search(console, results)
        settings = results[0][1]
    console.print(f"backend {backend.name}; {len(train[1])} training and {len(test[1])} test images; {settings}")

    losses, probabilities = train_and_test(console, backend, train, test, settings, options.seeds)
    predictions = np.argmax(probabilities, axis=2)
    accuracies = np.mean(predictions == test[1], axis=1)

    options.output.mkdir(parents=True, exist_ok=True)
    plot_losses(losses, settings, options.output / "digits_loss.png")
    plot_confusion(test[1], predictions, options.output / "digits_confusion.png")
    plot_mistakes(*test, probabilities, options.output / "digits_mistakes.png")
    console.print(f"pictures in {options.output}")

    table = Table("network", "test accuracy")
    for seed, accuracy in enumerate(accuracies):
        table.add_row(str(seed), f"{accuracy:.2%}")
    table.add_section()
    table.add_row("mean", f"{accuracies.mean():.2%}", style="bold")
    console.print(table)
    return accuracies


if __name__ == "__main__":
    main()
