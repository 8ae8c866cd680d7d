"""What can be asked of a benchmark on the command line; importing this imports no array library."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

VERBS = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_and_grad")
WITH_OUT = ("softmax", "log_softmax", "cross_entropy_and_grad")  # results of the logits' size
DTYPES = ("float32", "float64", "bfloat16")
SMALL = (4, 10)  # what a call costs, whatever the size
QUICK = {"shape": (SMALL, (1000, 10), (65_536, 128), (8_192, 1_000)), "dtype": ("float32",), "repeats": 5}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options with the names of Plan's fields."""
    add_choices(parser, DTYPES, "scipy, xsoftmax:numpy_numba")
    parser.add_argument("--threads", type=_positive, help="of every contender; default: the processors there are")
    parser.add_argument("--memory", type=_amount, default=3.0, help="gigabytes of arrays; default: %(default)g")
    parser.add_argument("--pause", type=_amount, default=5.0, help="milliseconds before each run; default: %(default)g")


def add_choices(parser: argparse.ArgumentParser, dtypes: Sequence[str], contenders: str) -> None:
    """What is timed; the defaults of verbs, shapes, dtypes and repeats are the caller's."""
    parser.add_argument("--verb", nargs="+", choices=VERBS)
    parser.add_argument(
        "--shape", nargs="+", type=_shape, metavar="N,C", help="of the logits; classes on axis 1 of more than two"
    )
    parser.add_argument("--dtype", nargs="+", choices=dtypes)
    parser.add_argument("--contender", nargs="+", metavar="NAME", help=f"{contenders}, …; default: all")
    parser.add_argument("--repeats", type=_positive, help="runs of each")


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has to be two or more sizes, such as 1000,10")
    return shape


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has to be at least 1")
    return number


def _amount(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} has to be a finite number >= 0")
    return number
