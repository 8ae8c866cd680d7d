"""Larger than memory: a loss, its calibration and a gradient from logits on disk, one block of rows at a time.

The logits lie in Zarr, in blocks, and are several times larger than the memory the script may use. Dask arrays of
them go through the same functions as arrays in memory and stay lazy; one pass over the blocks gives

- the mean cross-entropy,
- how often a class is right where it was given probability y, for every class and for the top prediction,
- the gradient by the weight and bias of the linear layer that made the logits,

for the logits as they are and, but for the gradient, divided by a temperature. They were made too sharp, so that the
first are overconfident and the second are not. Peak memory is measured, and the script fails if it was above the limit.

    python examples/out_of_core.py                                # 1 GB of logits in 256 MB
    python examples/out_of_core.py --cluster                      # the same in processes of dask.distributed
    python examples/out_of_core.py --rows 5_000_000 --memory 2GB  # 20 GB of logits in 2 GB, which takes a while
    python examples/out_of_core.py --classes 32_768 --rows 16_384 --memory 1GB --class-chunks 4096
"""

import argparse
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import dask
import dask.array as da
import matplotlib
import numpy as np
import psutil
import zarr
from dask.diagnostics import ProgressBar
from dask.utils import parse_bytes
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

import xsoftmax as xs

FEATURES = 64
SHARPNESS = 1.5  # the stored logits are those that the labels were drawn from, times this
TEMPERATURES = (1.0, SHARPNESS)
BINS = 16  # of the log-odds of a probability, each one nat wide but for the first and last, which are open
FIRST_ODDS = -10.0


# --- the data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    rows: int
    classes: int
    block_rows: int
    block_classes: int
    seed: int = 0

    @property
    def logits_bytes(self):
        return 4 * self.rows * self.classes


def blocks_within(memory, rows, classes, class_chunks, workers):
    """Blocks of which a worker can hold about 32: all classes of a row, unless they are to be split."""
    block_rows = max(1, min(rows, int(memory / (32 * workers * 4 * classes))))
    return Settings(rows, classes, block_rows, min(classes, class_chunks or classes))


def draw(settings):
    """Features, logits and labels of a linear layer, all lazy, with its weight and bias.

    A label is argmax(x + g) with g from the Gumbel distribution: a draw from softmax(x).
    """
    rng = np.random.default_rng(settings.seed)
    weight = rng.standard_normal((settings.classes, FEATURES), dtype=np.float32) * np.float32(3 / np.sqrt(FEATURES))
    bias = rng.standard_normal(settings.classes, dtype=np.float32)

    lazy_rng = da.random.default_rng(settings.seed)
    chunks = settings.block_rows, settings.block_classes
    features = lazy_rng.standard_normal((settings.rows, FEATURES), chunks=(chunks[0], FEATURES)).astype(np.float32)
    x = features @ da.from_array(weight.T, chunks=(FEATURES, chunks[1])) + da.from_array(bias, chunks=chunks[1])
    labels = da.argmax(x + lazy_rng.gumbel(size=x.shape, chunks=x.chunks), axis=1).astype(np.int32)
    lazy = {"features": features, "logits": SHARPNESS * x, "labels": labels}
    return lazy, {"weight": SHARPNESS * weight, "bias": SHARPNESS * bias}


def write(path, settings, compute):
    """Draw the data block by block into a new store."""
    group = zarr.create_group(path)
    lazy, small = draw(settings)
    targets = [
        group.create_array(name, shape=a.shape, chunks=a.chunksize, dtype=a.dtype, compressors=None)
        for name, a in lazy.items()
    ]
    for name, a in small.items():
        group.create_array(name, data=a)
    compute(da.store(list(lazy.values()), targets, lock=False, compute=False))
    group.attrs["settings"] = asdict(settings)  # last: an unfinished store matches nothing


def stored_settings(path):
    """The settings of a finished store, or None."""
    try:
        return Settings(**zarr.open_group(path, mode="r").attrs["settings"])
    except (FileNotFoundError, KeyError, TypeError):
        return None


# --- what a block of rows adds ----------------------------------------------------------------------------------------


def weight_gradient(gradient, features):
    """∂loss/∂W of logits = features Wᵀ + b."""
    return gradient.T @ features


def bias_gradient(gradient):
    return np.sum(gradient, axis=0, dtype=np.float64)


def loss_sum(losses):
    return np.sum(losses, dtype=np.float64)


def reliability(y, labels, classes):
    """[rows, Σ y, rows of this label] for each class and each bin of its probability y: (class, BINS, 3)."""
    with np.errstate(divide="ignore"):  # y = 0 and y = 1 belong to the open bins
        odds = np.log(y)
        odds -= np.log1p(-y)
    odds -= FIRST_ODDS
    bins = np.clip(odds, 0, BINS - 1, out=odds).astype(np.intp)
    bins += BINS * np.arange(classes.shape[1])
    parts = bins.ravel(), bins.ravel(), bins[labels == classes]
    weights = None, y.ravel(), None
    sums = [np.bincount(b, w, minlength=BINS * classes.shape[1]) for b, w in zip(parts, weights, strict=True)]
    return np.stack(sums, axis=-1)


def block_sums(function, x, *others, size):
    """function(blocks) of each block of x as a row: (blocks of rows, classes · size)."""
    return da.map_blocks(
        lambda *blocks: function(*blocks).astype(np.float64).reshape(1, -1),
        x,
        *others,
        chunks=((1,) * x.numblocks[0], tuple(size * n for n in x.chunks[1])),
        meta=np.empty((0, 0)),
    )


# --- the pass over the data -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """Losses and counts have a first axis of the two temperatures; counts are [rows, Σ y, rows of this label]."""

    losses: np.ndarray
    class_counts: np.ndarray  # (temperature, class, BINS, 3)
    top_counts: np.ndarray  # (temperature, BINS, 3)
    weight_gradient: np.ndarray
    bias_gradient: np.ndarray


def lazy_sums(logits, labels, features):
    """Everything that is summed over the rows, as one lazy vector, and the name and shape of each piece of it."""
    classes = logits.shape[1]
    column, class_row = labels[:, None], da.arange(classes, chunks=(logits.chunks[1],))[None, :]
    right = (da.argmax(logits, axis=1) == labels)[:, None]

    # Row by row: the mean's divisor is a sum over all labels, and a block that waits for it waits in memory.
    loss, gradient = xs.cross_entropy_and_grad(logits, labels, reduction="none")
    pieces = {
        ("weight_gradient", (classes, FEATURES)): block_sums(weight_gradient, gradient, features, size=FEATURES),
        ("bias_gradient", (classes,)): block_sums(bias_gradient, gradient, size=1),
    }
    for t in TEMPERATURES:
        if t != 1:
            loss = xs.cross_entropy(logits, labels, temperature=t, reduction="none")
        y = xs.softmax(logits, temperature=t)
        top = da.max(y, axis=1, keepdims=True)
        pieces |= {
            (f"loss {t}", ()): block_sums(loss_sum, loss[:, None], size=1),
            (f"classes {t}", (classes, BINS, 3)): block_sums(reliability, y, column, class_row, size=3 * BINS),
            (f"top {t}", (BINS, 3)): block_sums(reliability, top, right, da.ones((1, 1)), size=3 * BINS),
        }
    # All that a block of rows adds meets in one task before it is summed: Dask finishes a block, then reads the next.
    # Summed apart, 64 blocks left up to 335 pieces waiting in memory; so there are 16. They are added two at a time,
    # because those of 32 768 classes have 42 MB.
    together = da.concatenate(list(pieces.values()), axis=1).rechunk((1, -1))
    return da.sum(together, axis=0, split_every=2), list(pieces)


def one_pass(group, compute):
    arrays = [da.from_zarr(group[name]) for name in ("logits", "labels", "features")]
    rows = arrays[0].shape[0]
    lazy, pieces = lazy_sums(*arrays)
    ends = np.cumsum([int(np.prod(shape)) for _, shape in pieces])
    values = np.split(compute(lazy), ends[:-1])
    found = {name: value.reshape(shape) for (name, shape), value in zip(pieces, values, strict=True)}
    return Results(
        losses=np.stack([found[f"loss {t}"] for t in TEMPERATURES]) / rows,
        class_counts=np.stack([found[f"classes {t}"] for t in TEMPERATURES]),
        top_counts=np.stack([found[f"top {t}"] for t in TEMPERATURES]),
        weight_gradient=found["weight_gradient"] / rows,
        bias_gradient=found["bias_gradient"] / rows,
    )


def small_case():
    """The whole work on four rows: loads and compiles everything, so that what is measured afterwards is the data."""
    lazy, _ = draw(Settings(rows=4, classes=3, block_rows=2, block_classes=3))
    sums, _ = lazy_sums(lazy["logits"], lazy["labels"], lazy["features"])
    sums.compute(scheduler="synchronous")


def calibration_error(counts):
    """Expected calibration error, Σ over bins of rows in it / rows · |share that is right − mean y|."""
    rows, y, right = np.moveaxis(counts, -1, 0)
    return np.sum(np.abs(right - y), axis=-1) / np.sum(rows, axis=-1)


# --- schedulers and memory --------------------------------------------------------------------------------------------


class Peak:
    """The most memory that this process and its children hold, above what they hold at the start; read every 5 ms."""

    def __enter__(self):
        process = psutil.Process()
        self._processes = [process, *process.children(recursive=True)]
        self.baseline = self._held()
        self.above = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()

    def _held(self):
        try:
            return sum(p.memory_info().rss for p in self._processes)
        except psutil.NoSuchProcess:  # a worker was ended, and with it the run
            return 0

    def _watch(self):
        stopped = False
        while not stopped:
            stopped = self._stop.wait(0.005)
            self.above = max(self.above, self._held() - self.baseline)


@contextmanager
def threads(workers, _memory):
    """Threads of this process; each block is the work of one."""

    def compute(lazy):
        with ProgressBar():
            return dask.compute(lazy, scheduler="threads", num_workers=workers)[0]

    before = xs.get_num_threads()
    xs.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield compute
    finally:
        xs.set_num_threads(before)


@contextmanager
def cluster(workers, memory):
    """Processes that dask.distributed ends when they hold more than their share beyond what Python itself takes."""
    from distributed import Client, KilledWorker, LocalCluster, progress

    def compute(lazy):
        futures = client.compute(lazy)
        progress(futures, scheduler=client.scheduler.address)
        try:
            return client.gather(futures)
        except KilledWorker as error:
            raise SystemExit(f"a worker held more than its share of the memory and was ended: {error}") from error

    # What a worker takes without data is about what this process takes.
    own = psutil.Process().memory_info().rss
    limits = {"target": False, "spill": False, "pause": False, "terminate": 1.0}  # neither to disk nor waiting
    config = {f"distributed.worker.memory.{name}": value for name, value in limits.items()}
    with (
        dask.config.set({**config, "distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=own + memory // workers, dashboard_address=":0"
        ) as local,
        Client(local, set_as_default=False) as client,
    ):
        client.run(xs.set_num_threads, 1)
        client.run(small_case)
        yield compute


# --- the picture ------------------------------------------------------------------------------------------------------


def plot(results, path):
    figure, (top, classes, errors) = plt.subplots(1, 3, figsize=(13, 4.7), layout="constrained")
    names = ["logits as stored" if t == 1 else f"divided by {t:g}" for t in TEMPERATURES]
    styles = [{"color": "C3", "marker": "o"}, {"color": "C0", "marker": "s"}]
    series = list(zip(names, styles, results.top_counts, results.class_counts, strict=True))
    logit_ticks = {1e-4: "0.0001", 1e-3: "0.001", 0.01: "0.01", 0.1: "0.1", 0.5: "0.5", 0.9: "0.9", 0.99: "0.99"}
    ends = 3e-5, 0.998

    for name, style, counts, _ in series:
        rows, y, right = counts[counts[:, 1] >= 100].T
        top.plot(y / rows, right / rows, markersize=5, label=f"{name}: ECE {calibration_error(counts):.2%}", **style)
    top.plot([0, 1], [0, 1], color="grey", linewidth=0.8, zorder=0)
    top.set(xlim=(0, 1), ylim=(0, 1), title="The top prediction")
    top.set(xlabel="mean probability in a bin", ylabel="share that is right")

    for name, style, _, counts in series:
        rows, y, right = np.moveaxis(counts, -1, 0)
        often = np.sum(y, axis=0) >= 100
        x, mean = (np.sum(a[:, often], axis=0) / np.sum(rows[:, often], axis=0) for a in (y, right))
        classes.plot(x, mean, markersize=5, label=name, **style)
        # the spread of the classes that expect 30 rows in the bin, where there are ten
        share = np.divide(right, rows, out=np.full_like(rows, np.nan), where=y >= 30)
        common = np.count_nonzero(y >= 30, axis=0) >= 10
        if np.any(common):
            low, high = np.clip(np.nanquantile(share[:, common], [0.05, 0.95], axis=0), *ends)
            at = np.sum(y[:, common], axis=0) / np.sum(rows[:, common], axis=0)
            classes.fill_between(at, low, high, color=style["color"], alpha=0.2, linewidth=0)
    classes.plot(ends, ends, color="grey", linewidth=0.8, zorder=0)
    classes.set(xscale="logit", yscale="logit", xlim=ends, ylim=ends, title="Every class (shaded: 90 % of them)")
    classes.set(xlabel="mean probability in a bin", ylabel="share with this label")
    for axis in (classes.xaxis, classes.yaxis):
        axis.set_ticks(list(logit_ticks), list(logit_ticks.values()))
        axis.set_minor_locator(NullLocator())

    frequency = np.sum(results.class_counts[0, ..., 2], axis=1) / np.sum(results.class_counts[0, 0, :, 0])
    for name, style, _, counts in series:
        error = calibration_error(counts)
        errors.plot(frequency, error, linestyle="none", markersize=3, alpha=0.5, label=name, **style)
    errors.set(xscale="log", yscale="log", title="Each class by its share of the rows")
    errors.set(xlabel="share of the rows", ylabel="expected calibration error")
    for axes in (top, classes, errors):
        axes.set_box_aspect(1)
        axes.legend(loc="upper left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def print_results(console, results):
    table = Table("temperature", "mean cross-entropy", "ECE of the top prediction", "ECE of a class, mean")
    rows = zip(TEMPERATURES, results.losses, results.top_counts, results.class_counts, strict=True)
    for t, loss, top, classes in rows:
        error = np.mean(calibration_error(classes))
        table.add_row(f"{t:g}", f"{loss:.4f}", f"{calibration_error(top):.2%}", f"{error:.2e}")
    console.print(table)
    for name, gradient in (("∂loss/∂W", results.weight_gradient), ("∂loss/∂b", results.bias_gradient)):
        console.print(f"{name}: shape {gradient.shape}, norm {np.linalg.norm(gradient):.3e}", highlight=False)


def megabytes(n):
    return f"{n / 1e6:.0f} MB"


def check_space(parser, path, settings):
    Path(path).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path).free
    if free < 1.1 * settings.logits_bytes:
        parser.error(f"{path} has {megabytes(free)} left: {megabytes(settings.logits_bytes)} are needed, and some more")


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Loss, calibration and gradient from logits larger than memory.")
    parser.add_argument("--rows", type=int, default=250_000, help="default: 250 000")
    parser.add_argument("--classes", type=int, default=1000, help="default: 1000")
    parser.add_argument("--memory", type=parse_bytes, default="256MB", help="the limit (default: 256MB)")
    parser.add_argument("--class-chunks", type=int, metavar="K", help="split the classes too, into blocks of K")
    parser.add_argument("--workers", type=int, default=2, help="threads, or processes with --cluster (default: 2)")
    parser.add_argument("--cluster", action="store_true", help="run in the processes of a LocalCluster")
    parser.add_argument("--store", type=Path, help="folder of the data, used again if it fits (default: temporary)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder for the picture")
    options = parser.parse_args(arguments)
    settings = blocks_within(options.memory, options.rows, options.classes, options.class_chunks, options.workers)
    stored = options.store and stored_settings(options.store)
    if stored is None and options.store and options.store.exists() and any(options.store.iterdir()):
        parser.error(
            f"--store {options.store}: expected a folder that is new, empty or written to the end by this script"
        )
    if stored not in (None, settings):
        parser.error(f"--store {options.store} holds {stored}, expected {settings}")

    matplotlib.use("Agg")
    console = Console()
    small_case()
    folder = nullcontext(options.store) if options.store else tempfile.TemporaryDirectory()
    with folder as path, (cluster if options.cluster else threads)(options.workers, options.memory) as compute:
        if stored is None:
            check_space(parser, path, settings)
        with Peak() as peak:
            times = [time.perf_counter()]
            if stored is None:
                console.print(f"drawing {settings} into {path}", highlight=False)
                write(path, settings, compute)
            times.append(time.perf_counter())
            console.print("one pass over the data")
            results = one_pass(zarr.open_group(path, mode="r"), compute)
            times.append(time.perf_counter())

    print_results(console, results)
    options.output.mkdir(parents=True, exist_ok=True)
    plot(results, options.output / "out_of_core.png")
    console.print(f"picture in {options.output}")
    writing, passing = np.diff(times)
    console.print(
        f"{megabytes(settings.logits_bytes)} of logits; written in {writing:.0f} s, one pass in {passing:.0f} s\n"
        f"peak memory: {megabytes(peak.above)} of {megabytes(options.memory)}, "
        f"above the {megabytes(peak.baseline)} that Python takes without data",
        highlight=False,
    )
    if peak.above > options.memory:
        raise SystemExit(f"the peak of {megabytes(peak.above)} is above the limit of {megabytes(options.memory)}")
    return results


if __name__ == "__main__":
    main()
