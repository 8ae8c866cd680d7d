"""Multinomial logistic regression by Newton's method, with exact Hessian products instead of a Hessian.

    f(W, b) = C Σₙ loss(xₙ W + b, tₙ) + ½ ‖W‖²        (scikit-learn's objective; the intercept b is not penalised)

SciPy's Newton-CG needs the gradient of f and the product of its Hessian with a vector. For the logits Z = X W + b both
follow from the derivatives of the loss by the chain rule: X stands on either side of them. The result is compared
with scikit-learn's LogisticRegression.

    python examples/logistic_regression.py
    python examples/logistic_regression.py --backend torch
"""

import argparse
import os
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import xsoftmax as xs


class Objective:
    """f, its gradient and its Hessian products at p = [W; b]: flat NumPy arrays outside, the backend's inside."""

    def __init__(self, backend, data, labels, inverse_penalty):
        self.backend, self.inverse_penalty = backend, inverse_penalty
        # A last column of ones makes [X 1] [W; b] = X W + b.
        self.data = backend.asarray(np.column_stack([data, np.ones(len(data))]))
        self.labels = backend.asarray(labels)
        self.shape = data.shape[1] + 1, labels.max() + 1
        penalised = np.ones(self.shape)
        penalised[-1] = 0
        self.penalised = backend.asarray(penalised)

    def matrix(self, flat):
        return self.backend.asarray(flat.reshape(self.shape))

    def value_and_gradient(self, flat):
        p = self.matrix(flat)
        loss, gradient = xs.cross_entropy_and_grad(self.data @ p, self.labels, reduction="sum")
        value = self.inverse_penalty * loss + self.backend.xp.sum(self.penalised * p * p) / 2
        # Z = X p:   ∇f = C Xᵀ ∂loss/∂Z + p
        gradient = self.inverse_penalty * (self.data.T @ gradient) + self.penalised * p
        return float(value), self.backend.to_numpy(gradient).ravel()

    def hessian_product(self, flat, direction):
        p, v = self.matrix(flat), self.matrix(direction)
        # ∇²f v = C Xᵀ (∂²loss/∂Z² · X v) + v
        product = xs.cross_entropy_hvp(self.data @ p, self.labels, self.data @ v, reduction="sum")
        product = self.inverse_penalty * (self.data.T @ product) + self.penalised * v
        return self.backend.to_numpy(product).ravel()


def fit(objective, method):
    """The minimiser and the gradient's largest entry after every iteration."""
    history = []

    def record(flat):
        _, gradient = objective.value_and_gradient(flat)
        history.append(np.max(np.abs(gradient)))

    newton = {"hessp": objective.hessian_product, "options": {"xtol": 1e-8}}
    quasi_newton = {"options": {"maxiter": 10_000, "maxfun": 20_000, "ftol": 0, "gtol": 1e-6}}
    result = minimize(
        objective.value_and_gradient,
        np.zeros(objective.shape).ravel(),
        jac=True,
        method=method,
        callback=record,
        **(newton if method == "Newton-CG" else quasi_newton),
    )
    return result.x.reshape(objective.shape), history


def plot(histories, coefficients, path):
    figure = plt.figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    axes = left.subplots()
    for name, history in histories.items():
        axes.plot(np.arange(1, len(history) + 1), history, ".-", label=name)
    axes.set(xlabel="iteration", ylabel="largest entry of the gradient", xscale="log", yscale="log")
    axes.set_xticks([1, 10, 100], ["1", "10", "100"])
    axes.legend(loc="lower left")
    limit = np.max(np.abs(coefficients))
    panels = right.subplots(2, 5)
    for digit, panel in enumerate(panels.flat):
        image = panel.imshow(coefficients[:-1, digit].reshape(8, 8), cmap="RdBu", vmin=-limit, vmax=limit)
        panel.set_title(str(digit))
        panel.set_axis_off()
    right.colorbar(image, ax=panels, location="bottom", label="coefficient of each pixel, digit by digit", aspect=40)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Logistic regression by Newton-CG with exact Hessian products.")
    parser.add_argument("--backend", default="numpy", help="array library to compute with (default: numpy)")
    parser.add_argument("--inverse-penalty", type=float, default=0.1, help="scikit-learn's C (default: 0.1)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder for the picture")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    os.environ.setdefault("JAX_ENABLE_X64", "1")  # read when JAX is first imported, by xs.backend
    backend = xs.backend(options.backend)
    if not backend.float64:
        parser.error(f"{backend.name} has no float64, without which Newton-CG cannot reach 1e-5")
    console = Console()

    data, labels = load_digits(return_X_y=True)
    data = StandardScaler().fit_transform(data)
    objective = Objective(backend, data, labels, options.inverse_penalty)
    coefficients, history = fit(objective, "Newton-CG")
    _, slower = fit(objective, "L-BFGS-B")

    reference = LogisticRegression(C=options.inverse_penalty, solver="newton-cg", tol=1e-10, max_iter=1000)
    reference.fit(data, labels)
    difference = np.max(np.abs(coefficients - np.vstack([reference.coef_.T, reference.intercept_])))

    table = Table("method", "iterations", "largest entry of the gradient", title=f"backend {backend.name}")
    histories = {"Newton-CG": history, "L-BFGS-B": slower}
    for name, values in histories.items():
        table.add_row(name, str(len(values)), f"{values[-1]:.1e}")
    console.print(table)
    console.print(f"largest difference from scikit-learn's coefficients: {difference:.1e}")

    options.output.mkdir(parents=True, exist_ok=True)
    plot(histories, coefficients, options.output / "logistic_regression.png")
    console.print(f"picture in {options.output}")
    return difference


if __name__ == "__main__":
    main()
