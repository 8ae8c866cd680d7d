"""Softmax and cross-entropy from the definition to the last digit of the gradient, in numbers.

Every step is a formula, followed by what it gives:

    python examples/tour.py
    python examples/tour.py --backend torch
"""

import argparse
import os
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console

import xsoftmax as xs


def finite_differences(function, point):
    """∂f/∂xⱼ ≈ (f(x + h eⱼ) − f(x − h eⱼ)) / 2h, stacked along a last axis; NumPy in and out."""
    step = np.finfo(point.dtype).eps ** (1 / 3)
    columns = []
    for index in np.ndindex(point.shape):
        shift = np.zeros_like(point)
        shift[index] = step
        columns.append((function(point + shift) - function(point - shift)) / (2 * step))
    return np.stack(columns, axis=-1)


class Tour:
    """Each method is one step: it prints its numbers and returns those worth checking."""

    def __init__(self, backend, console):
        self.backend, self.console = backend, console
        self.dtype = np.dtype("float64" if backend.float64 else "float32")

    def array(self, values):
        return self.backend.asarray(np.asarray(values, dtype=self.dtype))

    def numpy(self, array):
        return self.backend.to_numpy(array)

    def title(self, text):
        self.console.print(f"\n{text}", style="bold", markup=False, highlight=False, soft_wrap=True)

    def show(self, name, values):
        text = np.array2string(np.asarray(values), precision=8, prefix=" " * 36, max_line_width=120)
        self.console.print(f"   {name:<32} {text}", markup=False, highlight=False, soft_wrap=True)

    def naive_softmax(self):
        self.title("1. Softmax as defined, yᵢ = exp(xᵢ) / Σ exp(xⱼ), overflows")
        x = np.asarray([1000, 1001, 1002], dtype=self.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            w = np.exp(x)
            y = w / np.sum(w)
        self.show("x", x)
        self.show("exp(x)", w)
        self.show("exp(x) / Σ exp(x)", y)
        return y

    def stable_softmax(self):
        self.title("2. exp(xᵢ − c) / Σ exp(xⱼ − c) is the same for every c; with c = max x no exponent is above 0")
        x = self.array([1000, 1001, 1002])
        w = self.backend.xp.exp(x - self.backend.xp.max(x))
        y = self.numpy(w / self.backend.xp.sum(w))
        self.show("exp(x − c)", self.numpy(w))
        self.show("exp(x − c) / Σ exp(x − c)", y)
        self.show("xs.softmax(x)", self.numpy(xs.softmax(x)))
        self.show("xs.softmax(x − 1000)", self.numpy(xs.softmax(x - 1000)))
        return y, self.numpy(xs.softmax(x))

    def jacobian(self):
        self.title("3. Its derivatives are ∂yᵢ/∂xⱼ = yᵢ (δᵢⱼ − yⱼ)")
        x = np.asarray([0.5, -1, 2], dtype=self.dtype)
        exact = self.numpy(xs.softmax_jacobian(xs.softmax(self.array(x))))
        difference = finite_differences(lambda x: self.numpy(xs.softmax(self.array(x))), x)
        self.show("xs.softmax_jacobian(y)", exact)
        self.show("finite differences", difference)
        self.show("largest difference", np.max(np.abs(exact - difference)))
        return exact, difference

    def cross_entropy(self):
        self.title("4. The cross-entropy H(q, y) = −Σ qᵢ log yᵢ compares a prediction y with a target q")
        y, q = self.array([0.228, 0.619, 0.153]), self.array([0, 1, 0])
        one = float(xs.cross_entropy_from_probs(y, q))
        self.show("prediction y", self.numpy(y))
        self.show("target q", self.numpy(q))
        self.show("H(q, y) = −log 0.619", one)

        batch = self.array([[0.228, 0.619, 0.153], [0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
        labels = self.backend.asarray(np.asarray([1, 0, 0]))
        rows = self.numpy(xs.cross_entropy_from_probs(batch, labels, reduction="none"))
        mean = float(xs.cross_entropy_from_probs(batch, labels))
        self.show("three rows with labels 1, 0, 0", rows)
        self.show("their mean, the batch's loss", mean)
        return one, rows, mean

    def gradient(self):
        self.title("5. By the logits, the derivative of H(q, softmax(x)) is y − q: prediction minus target")
        x, q = np.asarray([0.5, 1.5, 0.1], dtype=self.dtype), self.array([0, 1, 0])
        # Σⱼ ∂H/∂yⱼ ∂yⱼ/∂xᵢ = −Σⱼ (qⱼ / yⱼ) yⱼ (δᵢⱼ − yᵢ) = yᵢ Σⱼ qⱼ − qᵢ, and a target's entries sum to 1
        exact = self.numpy(xs.cross_entropy_grad(self.array(x), q))
        difference = finite_differences(lambda x: float(xs.cross_entropy(self.array(x), q)), x)
        self.show("softmax(x) − q", self.numpy(xs.softmax(self.array(x)) - q))
        self.show("xs.cross_entropy_grad(x, q)", exact)
        self.show("finite differences", difference)
        self.show("largest difference", np.max(np.abs(exact - difference)))
        return exact, difference

    def confident(self):
        self.title("6. Computed as p − 1, a confident prediction's gradient is lost; −(sum of the others) / Σ is not")
        x, label = self.array([40, 0, 0]), self.backend.asarray(np.asarray(0))
        lost = float(xs.softmax(x)[0] - 1)
        loss, gradient = xs.cross_entropy_and_grad(x, label)
        kept = float(gradient[0])
        self.show("x, with label 0", self.numpy(x))
        self.show("−log p", abs(np.log(float(xs.softmax(x)[0]))))
        self.show("p − 1", lost)
        self.show("xs.cross_entropy", float(loss))
        self.show("xs.cross_entropy_grad at label 0", kept)
        self.show("exactly, −2 e⁻⁴⁰ / (1 + 2 e⁻⁴⁰)", -2 / (np.exp(40.0) + 2))
        return lost, kept

    def temperature(self, path):
        self.title("7. A temperature T divides the logits: softmax(x / T) is sharper for T < 1 and flatter for T > 1")
        x = self.array([2, 1, 0, -1])
        temperatures = np.geomspace(0.1, 100, 61)
        y = np.stack([self.numpy(xs.softmax(x, temperature=float(t))) for t in temperatures])
        for t in (0.25, 1.0, 4.0):
            self.show(f"xs.softmax(x, temperature={t})", self.numpy(xs.softmax(x, temperature=t)))
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for line, logit in zip(y.T, self.numpy(x), strict=True):
            axes.plot(temperatures, line, label=f"x = {logit:.0f}".replace("-", "−"))
        axes.axhline(1 / 4, color="grey", linestyle=":", linewidth=1)
        axes.axvline(1, color="grey", linewidth=0.8)
        axes.text(1.05, 0.97, "T = 1", color="grey")
        axes.text(95, 0.285, "all equal", color="grey", ha="right")
        axes.text(0.105, 0.85, "winner takes all", color="grey")
        axes.set(xlabel="temperature T", ylabel="softmax(x / T)", xscale="log", xlim=(0.1, 100), ylim=(0, 1.04))
        axes.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        axes.legend()
        figure.savefig(path, dpi=150)
        plt.close(figure)
        return y


def main(arguments=None):
    parser = argparse.ArgumentParser(description="The derivation of softmax and cross-entropy in numbers.")
    parser.add_argument("--backend", default="numpy", help="array library to compute with (default: numpy)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder for the picture")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    os.environ.setdefault("JAX_ENABLE_X64", "1")  # read when JAX is first imported, by xs.backend
    console = Console()
    tour = Tour(xs.backend(options.backend), console)
    tour.naive_softmax()
    tour.stable_softmax()
    tour.jacobian()
    tour.cross_entropy()
    tour.gradient()
    tour.confident()
    options.output.mkdir(parents=True, exist_ok=True)
    tour.temperature(options.output / "tour_temperature.png")
    console.print(f"\npicture in {options.output}")


if __name__ == "__main__":
    main()
