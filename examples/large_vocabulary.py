"""Learn to predict the next of 20,000 words without ever holding the logits, on any array library.

The text is Python's own standard library, which is here already; whole files are held out. From the last k words, a
log-bilinear model (Mnih and Hinton, 2007) gives every word of the vocabulary a logit,

    h = E₁[last word] + E₂[the word before it] + … + Eₖ[…],      logits = W h + b

With k = 1 that is a bigram model of low rank. For N positions the logits are N × 20,000 numbers; xsoftmax makes some
rows of them at a time, and returns the loss with its gradients by h, W and b. The count models beside it are smoothed
by interpolated modified Kneser–Ney (Chen and Goodman, 1999), with discounts tuned on files of their own; they count the
whole training text, and the learned models see a fifth of it once. With the sources of Python 3.11, held-out perplexity
is 194 from the frequencies alone. From one word, it is 61 counted and 72 learned; from five, 43 learned. Counts of
three and four words, which see two and three, are lower still: 36 and 32.

    python examples/large_vocabulary.py                         # NumPy; two models, 5 minutes of one core
    python examples/large_vocabulary.py --backend torch         # PyTorch, CuPy, JAX, …
    python examples/large_vocabulary.py --words 5000 --dimensions 32 --tokens 100000        # half a minute of one core
"""

import argparse
import re
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator
from numpy.lib.stride_tricks import sliding_window_view
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from scipy.optimize import minimize

import xsoftmax as xs

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

UNFIT = ("dask", "cubed", "ndonnx", "sparse")  # a graph or a plan for each of 1500 steps, or no class indices
LEFT_OUT = {"test", "tests", "encodings", "site-packages"}  # often not installed; tables of codes; others' packages
WORD = re.compile(r"\w+|\n\s*|[^\w\s]")
LINE_END, UNKNOWN = "⏎", "‹unknown›"
MOST_WORDS = 50_000
LONGEST = 4  # words of an n-gram: 50,000⁴ keys fit 63 bits
BATCH = 512
RATE = 0.15
EVALUATIONS = 8
PROMPTS = (
    "import os\nimport sys\nimport",
    "def close(self):\n    self.",
    "\n    for i in range(",
    "\n    if value is",
    "\n    else:\n        raise",
    "\n    def __init__(",
    "\nif __name__ == '",
    "\n    except OSError as",
)


# --- the text ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Windows (position, word) of word numbers: the words before a position, farthest first, and the one in it."""

    words: list[str]  # the unknown word, then by falling frequency in the training files
    train: np.ndarray
    validation: np.ndarray
    held_out: np.ndarray

    def context(self, text):
        """The numbers of the last words of a text, after as many line ends as it takes."""
        length = self.train.shape[1] - 1
        tokens = [LINE_END] * length + split(text)
        return np.asarray([self.words.index(t) if t in self.words else 0 for t in tokens[-length:]])


def split(text):
    """Words, marks, and an end of line for any number of empty ones."""
    return [LINE_END if token[0] == "\n" else sys.intern(token) for token in WORD.findall(text)]


def source_files():
    folder = Path(sysconfig.get_paths()["stdlib"])
    relative = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    files = [folder / path for path in relative if LEFT_OUT.isdisjoint(path.split("/"))]
    if not files:
        raise FileNotFoundError(f"no sources of the standard library in {folder}")
    return files


def load_corpus(size, context, seed, evaluated):
    """Of the files in random order, a tenth are held out, a twentieth are for validation, and the others for training.

    The vocabulary has the most frequent words of the training files that are in them more than once; all others are the
    unknown word.
    """
    rng = np.random.default_rng(seed)
    files = source_files()
    texts = [[*split(files[i].read_text("utf-8", errors="replace")), LINE_END] for i in rng.permutation(len(files))]
    first, second = len(files) // 10, len(files) * 3 // 20
    counts = Counter()
    for text in texts[second:]:
        counts.update(text)
    words = [UNKNOWN, *(word for word, count in counts.most_common(size - 1) if count > 1)]
    numbers = {word: i for i, word in enumerate(words)}

    def windows(some):
        text = [numbers[LINE_END]] * context + [numbers.get(word, 0) for text in some for word in text]
        return sliding_window_view(np.asarray(text), context + 1)

    def drawn(windows):
        return windows[np.sort(rng.permutation(len(windows))[:evaluated])]

    train, validation, held_out = windows(texts[second:]), windows(texts[first:second]), windows(texts[:first])
    return Corpus(words, train, drawn(validation), drawn(held_out))


# --- counting ---------------------------------------------------------------------------------------------------------


class Level(NamedTuple):
    """N-grams of one length, sorted by their keys: numbers with a digit for each word."""

    keys: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray  # the keys without their last digits
    totals: np.ndarray  # of a context: the sum of its counts
    kinds: np.ndarray  # of a context: how many of its counts are 1, 2, and more


class CountModel:
    """Interpolated modified Kneser–Ney. With u′ the context u without its first word,

        P(w | u) = (c(uw) − D(c(uw)) + P(w | u′) Σᵥ D(c(uv))) / Σᵥ c(uv),      P(w | u) = P(w | u′) where that is 0 / 0

    c counts the longest n-grams themselves; for shorter ones it counts the different words that come before them.
    D(0) = 0, D(1), D(2) and D(3) = D(4) = … are tuned for each length. With no context left, P(w | u′) = 1 / V.
    """

    def __init__(self, ngrams, size):
        self.size = size
        self.levels = []
        keys, counts = np.unique(self._keys(ngrams), return_counts=True)
        for n in range(ngrams.shape[1], 0, -1):
            contexts, starts = np.unique(keys // size, return_index=True)
            kinds = (np.minimum(counts, 3)[:, None] == [1, 2, 3]).astype(np.int64)
            totals, kinds = np.add.reduceat(counts, starts), np.add.reduceat(kinds, starts, axis=0)
            self.levels.insert(0, Level(keys, counts, contexts, totals, kinds))
            keys, counts = np.unique(keys % size ** (n - 1), return_counts=True)
        self.discounts = np.tile([0.5, 1.0, 1.5], (len(self.levels), 1))

    def _keys(self, ngrams):
        return ngrams @ self.size ** np.arange(ngrams.shape[1])[::-1]

    def _found(self, ngrams):
        """The counts, totals and kinds of some n-grams, shortest first."""
        found = []
        for n, level in enumerate(self.levels, start=1):
            keys = self._keys(ngrams[:, -n:])
            i = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
            j = np.minimum(np.searchsorted(level.contexts, keys // self.size), len(level.contexts) - 1)
            seen, known = level.keys[i] == keys, level.contexts[j] == keys // self.size
            found.append((seen * level.counts[i], known * level.totals[j], known[:, None] * level.kinds[j]))
        return found

    def _probabilities(self, found, discounts):
        p = 1 / self.size
        for (counts, totals, kinds), d in zip(found, discounts, strict=True):
            kept = counts - np.asarray([0, *d])[np.minimum(counts, 3)]
            p = np.where(totals > 0, (kept + p * (kinds @ d)) / np.maximum(totals, 1), p)
        return p

    def tune(self, ngrams):
        """Choose the discounts under which some n-grams are the most probable."""
        found, shape = self._found(ngrams), self.discounts.shape

        def cross_entropy(d):
            return -np.mean(np.log(self._probabilities(found, d.reshape(shape))))

        bounds = [(0.01, 1), (0.01, 2), (0.01, 3)] * len(self.levels)
        self.discounts = minimize(cross_entropy, self.discounts.ravel(), bounds=bounds).x.reshape(shape)

    def cross_entropy(self, ngrams):
        return -np.mean(np.log(self._probabilities(self._found(ngrams), self.discounts)))

    def probabilities(self, context):
        """Those of all words after a context."""
        ngrams = np.column_stack([np.tile(np.asarray(context, dtype=np.int64), (self.size, 1)), np.arange(self.size)])
        return self._probabilities(self._found(ngrams), self.discounts)


# --- learning ---------------------------------------------------------------------------------------------------------


def adagrad(xp, rows, gradient, sums, rate):
    """Rows x ← x − η g / √Σ mean(g²), with the sum over all steps so far (Duchi et al., 2011, a rate for each row).

    A row without a gradient stays where it is, so that a step need only know of the others.
    """
    sums = sums + xp.mean(gradient * gradient, axis=1, keepdims=True)
    return rows - rate * gradient / (xp.sqrt(sums) + 1e-10), sums


class LogBilinear:
    """The model. W and b are the backend's; E is NumPy's, as the array API cannot add to some rows of an array."""

    def __init__(self, backend, unigram, context, dimensions, seed):
        self.backend, self.context, self.size = backend, context, len(unigram)
        rng = np.random.default_rng(seed)
        self.embeddings = (0.1 * rng.standard_normal((context * self.size, dimensions))).astype(np.float32)
        self.embedding_sums = np.zeros((len(self.embeddings), 1), np.float32)
        # With W = 0 and the log-frequencies as b, training starts from the unigram model.
        self.weight = backend.asarray(np.zeros((self.size, dimensions)), "float32")
        self.bias = backend.asarray(np.log(unigram)[:, None], "float32")
        self.weight_sums = self.bias_sums = backend.xp.zeros_like(self.bias)

    def rows(self, contexts):
        """Of each word its row of E = [E₁; E₂; …]; contexts may have more words than the model sees."""
        return contexts[:, ::-1][:, : self.context] + self.size * np.arange(self.context)

    def layer(self, rows):
        """What makes the logits: h, W and b."""
        return self.backend.asarray(np.sum(self.embeddings[rows], axis=1)), self.weight, self.bias[:, 0]

    def step(self, windows, rate):
        xp = self.backend.xp
        rows, targets = self.rows(windows[:, :-1]), self.backend.asarray(windows[:, -1])
        h, weight, bias = self.layer(rows)
        loss, grad_h, grad_weight, grad_bias = xs.linear_cross_entropy_and_grad(h, weight, targets, linear_bias=bias)
        self.weight, self.weight_sums = adagrad(xp, weight, grad_weight, self.weight_sums, rate)
        self.bias, self.bias_sums = adagrad(xp, self.bias, grad_bias[:, None], self.bias_sums, rate)
        # ∂loss/∂Eⱼ[v] is the sum of ∂loss/∂h over the positions whose j-th word back is v
        touched, inverse = np.unique(rows, return_inverse=True)
        gradient = np.zeros((len(touched), self.embeddings.shape[1]), np.float32)
        np.add.at(gradient, inverse, self.backend.to_numpy(grad_h)[:, None, :])
        self.embeddings[touched], self.embedding_sums[touched] = adagrad(
            np, self.embeddings[touched], gradient, self.embedding_sums[touched], rate
        )
        return float(loss)

    def cross_entropy(self, windows):
        h, weight, bias = self.layer(self.rows(windows[:, :-1]))
        return float(xs.linear_cross_entropy(h, weight, self.backend.asarray(windows[:, -1]), linear_bias=bias))

    def probabilities(self, context):
        """Those of all words after a context."""
        h, weight, bias = self.layer(self.rows(context[None, :]))
        return self.backend.to_numpy(xs.softmax(h @ weight.T + bias))[0]


def training_steps(model, windows, tokens, epochs, seed):
    """Yields the words seen and the loss after every step, the last ones shorter and shorter.

    An epoch takes so many positions of the text, in a new random order.
    """
    rng = np.random.default_rng(seed)
    starts = range(0, min(tokens, len(windows)) - BATCH + 1, BATCH)
    steps = len(starts) * epochs
    for step in range(steps):
        if step % len(starts) == 0:
            order = rng.permutation(len(windows))
        start = starts[step % len(starts)]
        yield (step + 1) * BATCH, model.step(windows[order[start : start + BATCH]], RATE * (1 - step / steps))


def learn(model, corpus, options, progress, name):
    """The words seen and the held-out cross-entropy then, from before the first step to after the last."""
    total = min(options.tokens, len(corpus.train)) // BATCH * BATCH * options.epochs
    curve = [(0, model.cross_entropy(corpus.held_out))]
    smooth = curve[0][1]
    bar = progress.add_task(name, total=total, loss=smooth)
    for seen, loss in training_steps(model, corpus.train, options.tokens, options.epochs, options.seed):
        smooth += 0.05 * (loss - smooth)
        progress.update(bar, completed=seen, loss=smooth)
        if seen >= total * (len(curve) / EVALUATIONS) ** 2:  # oftener at first, where it falls most
            curve.append((seen, model.cross_entropy(corpus.held_out)))
    return curve


# --- showing ----------------------------------------------------------------------------------------------------------


def counted_name(n):
    return {1: "unigram", 2: "smoothed bigram"}.get(n, f"smoothed {n}-gram")


def learned_name(context):
    return "learned bigram" if context == 1 else "learned log-bilinear"


def share_unknown(windows):
    return np.mean(windows[:, -1] == 0)


def print_continuations(console, corpus, models, count=4):
    table = Table("after", *models, title="the most probable next words")
    for prompt in PROMPTS:
        context = corpus.context(prompt)
        cells = []
        for model in models.values():
            p = model.probabilities(context)
            best = np.argsort(-p, kind="stable")[:count]
            cells.append(Text("  ".join(f"{corpus.words[i]} {p[i]:.0%}" for i in best)))
        table.add_row(Text(" ".join(split(prompt))), *cells)
    console.print(table)


def print_results(console, results):
    table = Table("model", "words it sees", "held-out perplexity", "nats a word", "÷ smoothed bigram")
    for column in table.columns[1:]:
        column.justify = "right"
    _, bigram = results[counted_name(2)]
    for name, (context, nats) in sorted(results.items(), key=lambda result: -result[1][1]):
        style = "bold" if name.startswith("learned") else None
        ratio = f"{np.exp(nats - bigram):.2f}"
        table.add_row(name, str(context), f"{np.exp(nats):.1f}", f"{nats:.3f}", ratio, style=style)
    console.print(table)


def print_memory(console, options, size):
    """What the logits would have had in float32, beside what the process has had."""

    def megabytes(size):
        return f"{size / 1e6:,.0f} MB"

    console.print(
        f"logits that were never in memory: {megabytes(4 * options.evaluated * size)} for the held-out positions, "
        f"{megabytes(4 * options.tokens * size)} for the training positions, {megabytes(4 * BATCH * size)} for a step"
    )
    if resource is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        console.print(f"the most that the whole process had: {megabytes(peak)}")


def plot(curves, counted, path):
    """Held-out perplexity of what is learned, over the words it has seen, among those of the counts."""
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    end = max(seen for curve in curves.values() for seen, _ in curve)
    for (k, curve), color in zip(curves.items(), ("C1", "C0"), strict=False):
        seen, perplexity = np.asarray(curve).T[0], np.exp(np.asarray(curve).T[1])
        axes.plot(seen, perplexity, ".-", color=color)
        label = f"{learned_name(k)}, sees {k} word{'s' * (k > 1)}"
        middle = len(curve) // 2
        place = {"xytext": (8, 6), "textcoords": "offset points"}
        axes.annotate(label, (seen[middle], perplexity[middle]), **place, color=color, weight="bold")
    for name, (k, nats) in counted.items():
        axes.axhline(np.exp(nats), color="grey", linewidth=1, linestyle="--")
        label = f"{name}, sees {k} word{'s' * (k != 1)}"
        axes.text(end, np.exp(nats) * 1.01, label, color="dimgrey", fontsize=9, ha="right", va="bottom")
    axes.set(xlabel="words seen in training", ylabel="perplexity of held-out words", yscale="log", xlim=(0, 1.02 * end))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def between(least, most):
    def number(text):
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value}, expected {least} to {most}")
        return value

    return number


def main(arguments=None):
    parser = argparse.ArgumentParser(description="A next-word model whose logits are never in memory as a whole.")

    def option(name, default, meaning, least=1, most=10**9):
        parser.add_argument(name, type=between(least, most), default=default, help=f"{meaning} (default: {default})")

    parser.add_argument("--backend", default="numpy", help="array library to train with (default: numpy)")
    option("--words", 20_000, "size of the vocabulary", 10, MOST_WORDS)
    option("--context", 5, "words that the larger model sees")
    option("--dimensions", 64, "numbers of an embedding")
    option("--tokens", 400_000, "training positions an epoch", BATCH)
    option("--epochs", 1, "times that so many are taken")
    option("--evaluated", 20_000, "held-out positions")
    option("--seed", 0, "of files, positions and embeddings", 0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder for the picture")
    options = parser.parse_args(arguments)
    if options.backend in UNFIT:
        parser.error(f"--backend {options.backend}: expected an eager library of dense arrays, not {', '.join(UNFIT)}")

    matplotlib.use("Agg")
    backend = xs.backend(options.backend)
    console = Console()
    corpus = load_corpus(options.words, options.context, options.seed, options.evaluated)
    size = len(corpus.words)
    console.print(
        f"backend {backend.name}; {len(corpus.train):,} words of training text, {len(corpus.held_out):,} held-out "
        f"positions; {size:,} different words, unknown {share_unknown(corpus.train):.1%} and "
        f"{share_unknown(corpus.held_out):.1%}"
    )

    counts = {}
    for n in range(1, min(LONGEST, options.context + 1) + 1):
        counts[n] = CountModel(corpus.train[:, -n:], size)
        counts[n].tune(corpus.validation[:, -n:])
    models, curves = {}, {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console) as progress:
        for k in sorted({1, options.context}):
            models[k] = LogBilinear(backend, counts[1].probabilities([]), k, options.dimensions, options.seed)
            curves[k] = learn(models[k], corpus, options, progress, learned_name(k))

    print_continuations(console, corpus, {counted_name(2): counts[2], learned_name(k): models[k]})
    options.output.mkdir(parents=True, exist_ok=True)
    results = {counted_name(n): (n - 1, model.cross_entropy(corpus.held_out[:, -n:])) for n, model in counts.items()}
    plot(curves, results, options.output / "large_vocabulary.png")
    console.print(f"picture in {options.output}")
    results |= {learned_name(k): (k, curve[-1][1]) for k, curve in curves.items()}
    print_results(console, results)
    print_memory(console, options, size)
    return {name: nats for name, (_, nats) in results.items()}


if __name__ == "__main__":
    main()
