"""Write the loss, its gradient and the probabilities into an ONNX model and run it without xsoftmax.

ndonnx is an array library whose arrays are nodes of an ONNX graph: the functions run once on arrays without values and
leave the graph behind. Any runtime for ONNX can then evaluate it, for batches of any length.

    python examples/export_onnx.py
"""

import argparse
from pathlib import Path

import ndonnx as ndx
import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

import xsoftmax as xs

CLASSES = 10


def outputs(logits, labels):
    loss, grad = xs.cross_entropy_and_grad(logits, labels, label_smoothing=0.1)
    return {"loss": loss, "grad": grad, "probs": xs.softmax(logits)}


def build_model():
    logits = ndx.argument(shape=("N", CLASSES), dtype=ndx.float64)
    labels = ndx.argument(shape=("N",), dtype=ndx.int64)
    return ndx.build({"logits": logits, "labels": labels}, outputs(logits, labels))


def run_model(path, logits, labels):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"logits": logits, "labels": labels}), strict=True))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Export the cross-entropy to ONNX and compare it with NumPy.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder for the model")
    options = parser.parse_args(arguments)
    console = Console()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "cross_entropy.onnx"
    model = build_model()
    path.write_bytes(model.SerializeToString())
    console.print(f"{path}: {len(model.graph.node)} nodes, {path.stat().st_size} bytes")

    rng = np.random.default_rng(0)
    table = Table("batch", "output", "shape", "largest value", "largest difference from NumPy")
    relative = []
    for n in (1, 7, 1000):
        logits, labels = 5 * rng.standard_normal((n, CLASSES)), rng.integers(0, CLASSES, n)
        expected = outputs(logits, labels)
        for name, value in run_model(path, logits, labels).items():
            difference, largest = np.max(np.abs(value - expected[name])), np.max(np.abs(expected[name]))
            table.add_row(str(n), name, str(value.shape), f"{largest:.1e}", f"{difference:.1e}")
            relative.append(difference / largest)
    console.print(table)
    return max(relative)


if __name__ == "__main__":
    main()
