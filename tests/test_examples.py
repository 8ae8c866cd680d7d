"""Every example runs, and what it claims is true."""

import importlib.util
import math
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

import xsoftmax as xs

EXTRA = 'pip install ".[examples]"'
plt = pytest.importorskip("matplotlib.pyplot", reason=EXTRA)
Console = pytest.importorskip("rich.console", reason=EXTRA).Console
pytest.importorskip("sklearn", reason=EXTRA)

UNFIT = {
    "cubed": "every operation makes and runs a plan of its own, which takes minutes",
    "ndonnx": "every operation runs a model of its own, which takes minutes",
    "sparse": "it has no class indices and no indexing by arrays",
}
EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def fit_backend(request):
    if "xb" in request.fixturenames:
        name = request.getfixturevalue("xb").name
        if name in UNFIT:
            pytest.skip(f"{name}: {UNFIT[name]}")


def check_picture(path):
    pixels = plt.imread(path)[..., :3]
    drawn = np.mean(np.any(pixels < 0.99, axis=-1))
    assert min(pixels.shape[:2]) >= 500
    assert 0.01 < drawn < 0.9
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


@pytest.fixture
def tour(xb):
    return load("tour").Tour(xb, Console(quiet=True))


class TestTour:
    def test_picture(self, tmp_path, capsys):
        load("tour").main(["--output", str(tmp_path)])
        check_picture(tmp_path / "tour_temperature.png")
        assert "0.47965001" in capsys.readouterr().out

    def test_overflow(self, tour):
        assert np.all(np.isnan(tour.naive_softmax()))
        expected = np.exp([-2, -1, 0]) / np.sum(np.exp([-2, -1, 0]))
        for y in tour.stable_softmax():
            np.testing.assert_array_almost_equal_nulp(y, expected.astype(y.dtype), 6)

    @pytest.mark.parametrize("step", ["jacobian", "gradient"])
    def test_derivatives(self, tour, step):
        exact, difference = getattr(tour, step)()
        # With step h = eps^⅓ a central difference is off by O(h²).
        assert np.max(np.abs(exact)) > 0.1
        assert np.max(np.abs(exact - difference)) < 2 * np.finfo(tour.dtype).eps ** (2 / 3)

    def test_cross_entropy(self, tour):
        one, rows, mean = tour.cross_entropy()
        expected = -np.log([0.619, 0.7, 0.1])
        eps = float(np.finfo(tour.dtype).eps)
        assert one == pytest.approx(0.47965000629754095, rel=4 * eps, abs=0)
        np.testing.assert_allclose(rows, expected, rtol=4 * eps)
        assert mean == pytest.approx(np.mean(expected), rel=4 * eps, abs=0)

    def test_confident(self, tour):
        lost, kept = tour.confident()
        assert lost == 0
        assert kept == pytest.approx(-2 / (np.exp(40.0) + 2), rel=8 * float(np.finfo(tour.dtype).eps), abs=0)

    def test_temperature(self, tour, tmp_path):
        y = tour.temperature(tmp_path / "picture.png")
        assert np.all(np.diff(y[:, 0]) <= 0)  # the winner's share falls as the temperature rises
        np.testing.assert_allclose(y[-1], 0.25, atol=0.01)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def numpy_run(digits):
    """Losses and test probabilities of one network trained with NumPy."""
    return digits.train_and_test(Console(quiet=True), xs.backend("numpy"), *digits.load_data(), digits.Settings(), 1)


class TestDigits:
    def test_accuracy_and_pictures(self, digits, tmp_path, capsys):
        accuracies = digits.main(["--output", str(tmp_path)])
        assert len(accuracies) == 5
        assert np.mean(accuracies) >= 0.97
        for name in ("loss", "confusion", "mistakes"):
            check_picture(tmp_path / f"digits_{name}.png")
        assert f"{np.mean(accuracies):.2%}" in capsys.readouterr().out

    def test_split_is_stratified(self, digits):
        (_, train), (_, test) = digits.load_data()
        share = np.bincount(test) / (np.bincount(train) + np.bincount(test))
        np.testing.assert_allclose(share, 0.2, atol=1 / 174)  # the rarest digit has 174 images

    def test_backpropagation(self, digits):
        rng = np.random.default_rng(0)
        parameters = digits.initial_parameters(rng, (4, 6, 5, 3))
        images, labels = rng.random((7, 4)), rng.integers(0, 3, 7)

        def loss():
            return digits.loss_and_gradients(np, parameters, images, labels, 0.1)[0]

        _, gradients = digits.loss_and_gradients(np, parameters, images, labels, 0.1)
        assert [g.shape for g in gradients] == [p.shape for p in parameters]
        for p, g in zip(parameters, gradients, strict=True):
            for index in np.ndindex(p.shape):
                original, step = p[index], 1e-6
                p[index] = original + step
                above = loss()
                p[index] = original - step
                below = loss()
                p[index] = original
                assert g[index] == pytest.approx((above - below) / (2 * step), abs=1e-8)

    def test_first_steps_agree(self, digits, xb):
        if not xb.float64:
            pytest.skip(f"{xb.name} has no float64 here")
        train, _ = digits.load_data()

        def first_steps(backend):
            steps = digits.training_steps(backend, *digits.to_backend(backend, *train), digits.Settings(), seed=0)
            losses, parameters = zip(*islice(steps, 20), strict=True)
            return np.asarray([float(loss) for loss in losses]), [backend.to_numpy(p) for p in parameters[-1]]

        losses, parameters = first_steps(xb)
        expected_losses, expected_parameters = first_steps(xs.backend("numpy"))
        assert expected_losses[-1] < expected_losses[0]
        np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=1e-10)
        for p, expected in zip(parameters, expected_parameters, strict=True):
            np.testing.assert_allclose(p, expected, rtol=0, atol=1e-10)

    def test_final_accuracy_agrees(self, digits, numpy_run, xb):
        if xb.name in digits.UNFIT:
            pytest.skip(f"the example refuses {xb.name}")
        train, test = digits.load_data()
        _, probabilities = digits.train_and_test(Console(quiet=True), xb, train, test, digits.Settings(), 1)
        accuracy, expected = (np.mean(np.argmax(p[0], axis=1) == test[1]) for p in (probabilities, numpy_run[1]))
        assert accuracy == pytest.approx(expected, abs=0.005)

    @pytest.mark.parametrize("name", ["dask", "sparse"])
    def test_unfit_backends_are_refused(self, digits, name, capsys):
        with pytest.raises(SystemExit) as error:
            digits.main(["--backend", name])
        assert error.value.code == 2
        assert "expected an eager library" in capsys.readouterr().err

    def test_search_ranks_by_validation_accuracy(self, digits):
        train, _ = digits.load_data()
        settings = digits.Settings(epochs=3)
        grid = {"learning_rate": [1e-5, 0.2], "label_smoothing": [0.1]}
        (best, chosen), (worst, _) = digits.search(
            Console(quiet=True), *train, grid=grid, settings=settings, splits=2, repeats=1
        )
        assert chosen == digits.Settings(epochs=3, learning_rate=0.2, label_smoothing=0.1)
        assert best > 0.8 > worst

    def test_search_sees_training_images_only(self, digits, monkeypatch, tmp_path):
        seen = []

        def search(console, images, labels, *, settings):
            seen.append(images)
            return [(1.0, settings)]

        monkeypatch.setattr(digits, "search", search)
        digits.main(["--search", "--seeds", "1", "--epochs", "1", "--output", str(tmp_path)])
        (train_images, _), _ = digits.load_data()
        assert len(seen) == 1
        np.testing.assert_array_equal(seen[0], train_images)


class TestLogisticRegression:
    @pytest.fixture
    def problem(self):
        rng = np.random.default_rng(0)
        p, v = rng.standard_normal((2, 12))
        return (rng.standard_normal((20, 3)), rng.integers(0, 3, 20), 0.7), p, v

    def test_derivatives(self, problem):
        (data, labels, inverse_penalty), p, v = problem
        objective = load("logistic_regression").Objective(xs.backend("numpy"), data, labels, inverse_penalty)
        step = 1e-6
        (above, above_gradient), (below, below_gradient) = (
            objective.value_and_gradient(p + sign * step * v) for sign in (1, -1)
        )
        _, gradient = objective.value_and_gradient(p)
        assert gradient @ v == pytest.approx((above - below) / (2 * step), rel=1e-7, abs=0)
        product = objective.hessian_product(p, v)
        np.testing.assert_allclose(product, (above_gradient - below_gradient) / (2 * step), rtol=1e-7, atol=1e-7)

    def test_backends_agree(self, xb, problem):
        if not xb.float64:
            pytest.skip(f"{xb.name} has no float64 here")
        values = problem[0]
        ours, expected = (load("logistic_regression").Objective(b, *values) for b in (xb, xs.backend("numpy")))
        _, p, v = problem
        value, gradient = ours.value_and_gradient(p)
        expected_value, expected_gradient = expected.value_and_gradient(p)
        assert value == pytest.approx(expected_value, rel=1e-14, abs=0)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12)
        np.testing.assert_allclose(ours.hessian_product(p, v), expected.hessian_product(p, v), rtol=1e-12)

    def test_equals_scikit_learn(self, xb, tmp_path):
        if xb.name == "dask":
            pytest.skip("a graph for each of 700 products takes a minute")
        arguments = ["--backend", xb.name, "--output", str(tmp_path)]
        if not xb.float64:
            with pytest.raises(SystemExit):
                load("logistic_regression").main(arguments)
            return
        assert load("logistic_regression").main(arguments) < 1e-5
        check_picture(tmp_path / "logistic_regression.png")


@pytest.fixture(scope="module")
def vocabulary():
    return load("large_vocabulary")


@pytest.fixture(scope="module")
def corpus(vocabulary):
    return vocabulary.load_corpus(3000, 3, seed=0, evaluated=4000)


@pytest.fixture(scope="module")
def unigram(vocabulary, corpus):
    model = vocabulary.CountModel(corpus.train[:, -1:], len(corpus.words))
    model.tune(corpus.validation[:, -1:])
    return model


class TestLargeVocabulary:
    def test_words_and_marks(self, vocabulary):
        assert vocabulary.split("def f(x_1):\n\n    return 10\n") == [
            *("def", "f", "(", "x_1", ")", ":", "⏎", "return", "10", "⏎")
        ]  # fmt: skip

    @pytest.fixture
    def small_corpus(self, vocabulary, monkeypatch, tmp_path):
        """Each of 40 files has a word of its own twice, and another once."""
        for i in range(40):
            (tmp_path / f"{i}.py").write_text(f"word{i} word{i} once{i}")
        monkeypatch.setattr(vocabulary, "source_files", lambda: sorted(tmp_path.iterdir()))
        return lambda seed: vocabulary.load_corpus(100, 2, seed, evaluated=100)

    def test_held_out_files_are_not_seen(self, small_corpus):
        corpus = small_corpus(0)
        assert len(corpus.words) == 2 + 34
        assert not any(word.startswith("once") for word in corpus.words)
        assert len(np.unique(corpus.train[:, -1])) == 2 + 34
        line_end = corpus.words.index("⏎")
        for part, files in ((corpus.train, 34), (corpus.validation, 2), (corpus.held_out, 4)):
            assert part.shape == (4 * files, 3)
            assert files == 34 or set(part[:, -1]) == {0, line_end}

    def test_seed_chooses_files(self, small_corpus):
        chosen, same, other = small_corpus(0), small_corpus(0), small_corpus(1)
        assert chosen.words == same.words
        assert set(chosen.words) != set(other.words)
        for name in ("train", "validation", "held_out"):
            np.testing.assert_array_equal(getattr(chosen, name), getattr(same, name))

    def test_counts_equal_the_formula(self, vocabulary):
        rng = np.random.default_rng(0)
        size, text = 6, rng.choice(5, 60, p=[0.5, 0.2, 0.15, 0.1, 0.05])  # the last word is never seen
        bigrams = list(pairwise(text))
        model = vocabulary.CountModel(np.asarray(bigrams), size)
        lower, upper = model.discounts = np.asarray([[0.7, 1.1, 1.3], [0.4, 0.9, 2.5]])

        def smoothed(counts, d, below):
            discounts = [0 if c == 0 else d[min(c, 3) - 1] for c in counts]
            total = sum(counts)
            return [(c - e + sum(discounts) * b) / total for c, e, b in zip(counts, discounts, below, strict=True)]

        continuations = smoothed([sum(v == w for _, v in set(bigrams)) for w in range(size)], lower, [1 / size] * size)
        for u in range(5):
            expected = smoothed([bigrams.count((u, w)) for w in range(size)], upper, continuations)
            np.testing.assert_allclose(model.probabilities([u]), expected, rtol=1e-13)
        np.testing.assert_allclose(model.probabilities([5]), continuations, rtol=1e-13)

    @pytest.mark.parametrize("n", [1, 2, 3, 4])
    def test_counts_sum_to_one(self, vocabulary, corpus, n):
        model = vocabulary.CountModel(corpus.train[:, -n:], len(corpus.words))
        before = model.cross_entropy(corpus.validation[:, -n:])
        model.tune(corpus.validation[:, -n:])
        assert n == 1 or model.cross_entropy(corpus.validation[:, -n:]) < before  # no word here is rare
        rare = len(corpus.words) - 1
        for context in (*corpus.held_out[:5, :-1], [rare, rare, rare], [rare, 1, 1]):
            p = model.probabilities(context)
            assert np.all(p > 0)
            assert np.sum(p) == pytest.approx(1, abs=1e-12)

    def test_training_starts_from_the_unigram_model(self, vocabulary, corpus, unigram, xb):
        p = unigram.probabilities([])
        model = vocabulary.LogBilinear(xb, p, 3, 8, seed=0)
        # float32 logits of up to 15 are off by up to 5e-7
        assert model.cross_entropy(corpus.held_out) == pytest.approx(
            unigram.cross_entropy(corpus.held_out[:, -1:]), abs=1e-6
        )
        np.testing.assert_allclose(model.probabilities(corpus.held_out[0, :-1]), p, rtol=2e-6)

    def test_steps_equal_dense_ones(self, vocabulary, xb):
        """Two steps of Adagrad on the whole of E, W and b, with logits in float64 and one-hot contexts."""
        rng = np.random.default_rng(0)
        size, context, rate = 7, 2, 0.1
        model = vocabulary.LogBilinear(xb, np.full(size, 1 / size), context, 4, seed=0)
        model.weight = xb.asarray(0.5 * rng.standard_normal((size, 4)), "float32")
        parameters = [np.float64(xb.to_numpy(a)) for a in (model.embeddings, model.weight, model.bias)]
        sums = [0, 0, 0]
        for windows in rng.integers(0, size - 1, (2, 12, context + 2)):  # a word more than the model sees
            e, w, b = parameters
            last, before, target = np.eye(size)[windows[:, [-2, -3, -1]].T]
            contexts = np.hstack([last, before])
            h = contexts @ e
            logits = h @ w.T + b.T
            y = np.exp(logits) / np.sum(np.exp(logits), axis=1, keepdims=True)
            g = (y - target) / 12
            gradients = contexts.T @ (g @ w), g.T @ h, g.sum(axis=0)[:, None]
            sums = [s + np.mean(a * a, axis=1, keepdims=True) for s, a in zip(sums, gradients, strict=True)]
            parameters = [
                p - rate * a / np.sqrt(np.where(s > 0, s, 1))
                for p, a, s in zip(parameters, gradients, sums, strict=True)
            ]
            expected = -np.mean(np.log(np.sum(y * target, axis=1)))
            assert model.step(windows, rate) == pytest.approx(expected, rel=1e-5)
        for ours, expected in zip((model.embeddings, model.weight, model.bias), parameters, strict=True):
            np.testing.assert_allclose(xb.to_numpy(ours), expected, atol=1e-5)  # steps of 0.1 with float32 gradients

    def test_same_seed_same_bits(self, vocabulary, corpus, unigram):
        def losses(seed):
            model = vocabulary.LogBilinear(xs.backend("numpy"), unigram.probabilities([]), 2, 8, seed)
            return [loss for _, loss in vocabulary.training_steps(model, corpus.train, 2048, 2, seed)]

        first = losses(0)
        assert len(first) == 8
        assert losses(0) == first
        assert losses(1) != first

    def test_small_run(self, vocabulary, xb, tmp_path, capsys):
        if xb.name in vocabulary.UNFIT:
            pytest.skip(f"the example refuses {xb.name}")
        small = ["--words=500", "--context=2", "--dimensions=16", "--tokens=15360", "--evaluated=3000"]
        nats = vocabulary.main(["--backend", xb.name, "--output", str(tmp_path), *small])
        counted = {"unigram", "smoothed bigram", "smoothed 3-gram"}
        assert nats.keys() == counted | {"learned bigram", "learned log-bilinear"}
        assert nats["learned log-bilinear"] < nats["learned bigram"] < nats["unigram"] - 0.3
        assert nats["smoothed 3-gram"] < nats["smoothed bigram"] < nats["learned bigram"]
        check_picture(tmp_path / "large_vocabulary.png")
        printed = capsys.readouterr().out
        assert all(f"{np.exp(value):.1f}" in printed for value in nats.values())
        assert "6 MB for the held-out positions" in printed

    @pytest.mark.backend("numpy")
    def test_more_context_beats_smoothed_bigrams(self, vocabulary, corpus, unigram):
        size = len(corpus.words)
        bigram = vocabulary.CountModel(corpus.train[:, -2:], size)
        bigram.tune(corpus.validation[:, -2:])
        model = vocabulary.LogBilinear(xs.backend("numpy"), unigram.probabilities([]), 3, 32, seed=0)
        for _ in vocabulary.training_steps(model, corpus.train, 120_000, 1, seed=0):
            pass
        learned, counted = model.cross_entropy(corpus.held_out), bigram.cross_entropy(corpus.held_out[:, -2:])
        assert np.exp(learned) < 0.95 * np.exp(counted)

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["--backend", "dask"], "expected an eager library"),
            (["--words", "50001"], "50001, expected 10 to 50000"),
            (["--tokens", "511"], "511, expected 512"),
        ],
    )
    def test_unfit_arguments(self, vocabulary, arguments, message, capsys):
        with pytest.raises(SystemExit) as error:
            vocabulary.main(arguments)
        assert error.value.code == 2
        assert message in capsys.readouterr().err


class TestBoosting:
    def test_equals_built_in(self, tmp_path):
        pytest.importorskip("lightgbm", reason=EXTRA)
        ratios = load("boosting").main(["--output", str(tmp_path)])
        assert ratios["xsoftmax"] == pytest.approx(1, abs=0.01)
        assert ratios["xsoftmax, exact h"] != ratios["xsoftmax"]
        check_picture(tmp_path / "boosting.png")


class TestExportOnnx:
    def test_equals_numpy(self, tmp_path):
        pytest.importorskip("ndonnx", reason=EXTRA)
        pytest.importorskip("onnxruntime", reason=EXTRA)
        example = load("export_onnx")
        # Both sides are within 6 ulp of the exact result.
        assert example.main(["--output", str(tmp_path)]) < 12 * np.finfo(np.float64).eps

        logits, labels = np.asarray([[40.0] + 9 * [0.0]]), np.asarray([0])
        values = example.run_model(tmp_path / "cross_entropy.onnx", logits, labels)
        assert values.keys() == {"loss", "grad", "probs"}
        np.testing.assert_allclose(values["probs"], xs.softmax(logits), rtol=1e-15)


@pytest.fixture(scope="module")
def out_of_core():
    for name in ("dask.array", "distributed", "psutil", "zarr"):
        pytest.importorskip(name, reason=EXTRA)
    return load("out_of_core")


@pytest.fixture(scope="module")
def cluster(out_of_core):
    with out_of_core.cluster(2, 10**9) as compute:
        yield compute


@pytest.fixture
def threads(out_of_core):
    with out_of_core.threads(2, 10**9) as compute:
        yield compute


class TestOutOfCore:
    @pytest.fixture(params=["threads", pytest.param("cluster", marks=pytest.mark.slow)])
    def compute(self, request):
        return request.getfixturevalue(request.param)

    @pytest.fixture(params=[12, 5], ids=["classes-whole", "classes-split"])
    def settings(self, out_of_core, request):
        return out_of_core.Settings(rows=500, classes=12, block_rows=64, block_classes=request.param)

    @staticmethod
    def stored(path):
        import zarr

        group = zarr.open_group(path, mode="r")
        return group, {name: group[name][:] for name in ("features", "logits", "labels", "weight", "bias")}

    def test_equals_numpy(self, out_of_core, compute, settings, tmp_path):
        out_of_core.write(tmp_path, settings, compute)
        group, data = self.stored(tmp_path)
        results = out_of_core.one_pass(group, compute)

        logits, labels = data["logits"].astype(np.float64), data["labels"]
        hits = labels[:, None] == np.arange(settings.classes)
        edges = 1 / (1 + np.exp(-(out_of_core.FIRST_ODDS + np.arange(1, out_of_core.BINS))))
        for i, temperature in enumerate(out_of_core.TEMPERATURES):
            w = np.exp(logits / temperature)
            y = w / np.sum(w, axis=1, keepdims=True)
            assert results.losses[i] == pytest.approx(-np.mean(np.log(y[hits])), rel=1e-7)
            top, right = np.max(y, axis=1), np.argmax(y, axis=1) == labels
            for b in range(out_of_core.BINS):
                inside = np.digitize(y, edges) == b
                parts = inside, np.where(inside, y, 0), inside & hits
                expected = np.stack([np.sum(part, axis=0) for part in parts], axis=-1)
                np.testing.assert_allclose(results.class_counts[i, :, b], expected, rtol=1e-6)
                inside = np.digitize(top, edges) == b
                expected = np.sum(inside), np.sum(top[inside]), np.sum(right[inside])
                np.testing.assert_allclose(results.top_counts[i, b], expected, rtol=1e-6)
            if temperature == 1:
                gradient = (y - hits) / settings.rows
        # The gradient's entries are of float32, and so are the sums of products within a block.
        for found, inputs in ((results.weight_gradient, data["features"]), (results.bias_gradient, np.ones(500))):
            bound = 8 * np.finfo(np.float32).eps * np.abs(gradient.T) @ np.abs(inputs)
            np.testing.assert_array_less(np.abs(found - gradient.T @ inputs), bound)

    def test_data_are_of_the_linear_layer(self, out_of_core, threads, settings, tmp_path):
        out_of_core.write(tmp_path, settings, threads)
        group, data = self.stored(tmp_path)
        assert group["logits"].chunks == (64, settings.block_classes)
        expected = data["features"] @ data["weight"].T + data["bias"]
        np.testing.assert_allclose(data["logits"], expected, rtol=1e-4, atol=1e-4)
        assert out_of_core.stored_settings(tmp_path) == settings

    def test_every_block_is_read_once(self, out_of_core, threads, settings, tmp_path, monkeypatch):
        import zarr

        out_of_core.write(tmp_path, settings, threads)
        group, read, reads = zarr.open_group(tmp_path, mode="r"), zarr.Array.__getitem__, []

        def noted(array, selection):
            values = read(array, selection)
            reads.append((array.basename, values.shape))
            return values

        monkeypatch.setattr(zarr.Array, "__getitem__", noted)
        out_of_core.one_pass(group, threads)
        # Dask fuses a read with its only user, the products of features with each block of classes.
        for name, times in {"logits": 1, "labels": 1, "features": -(-12 // settings.block_classes)}.items():
            blocks = [shape for array, shape in reads if array == name and math.prod(shape)]
            assert len(blocks) == times * group[name].nchunks
            assert sum(map(math.prod, blocks)) == times * group[name].size

    @pytest.mark.parametrize("block_classes", [12, 5])
    def test_held_blocks_do_not_grow_with_the_rows(self, out_of_core, block_classes):
        import dask
        from dask.order import diagnostics

        def most_held(blocks):
            lazy, _ = out_of_core.draw(out_of_core.Settings(8 * blocks, 12, 8, block_classes))
            sums, _ = out_of_core.lazy_sums(lazy["logits"], lazy["labels"], lazy["features"])
            _, held = diagnostics(dict(dask.optimize(sums)[0].__dask_graph__()))
            return max(held)

        assert most_held(32) < 1.5 * most_held(4)

    def test_a_temperature_calibrates(self, out_of_core, tmp_path, capsys):
        arguments = ["--rows", "20_000", "--classes", "20", "--output", str(tmp_path), "--store", str(tmp_path / "z")]
        results = out_of_core.main(arguments)
        sharp, divided = (out_of_core.calibration_error(counts) for counts in results.top_counts)
        assert sharp > 0.05
        assert divided < 0.02
        assert results.losses[1] < results.losses[0]
        # the loss falls where the layer shrinks
        _, data = self.stored(tmp_path / "z")
        assert np.sum(results.weight_gradient * data["weight"]) > 0
        check_picture(tmp_path / "out_of_core.png")
        assert "peak memory" in capsys.readouterr().out

        again = out_of_core.main(arguments)
        assert "drawing" not in capsys.readouterr().out
        np.testing.assert_array_equal(again.class_counts, results.class_counts)

    def test_other_folders_are_kept(self, out_of_core, tmp_path, capsys):
        note = tmp_path / "note.txt"
        note.write_text("mine")
        with pytest.raises(SystemExit) as error:
            out_of_core.main(["--store", str(tmp_path)])
        assert error.value.code == 2
        assert "expected a folder that is new" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == [note]

    def test_other_data_are_kept(self, out_of_core, threads, settings, tmp_path, capsys):
        out_of_core.write(tmp_path, settings, threads)
        with pytest.raises(SystemExit) as error:
            out_of_core.main(["--store", str(tmp_path), "--rows", "600", "--classes", "12"])
        assert error.value.code == 2
        assert "holds Settings(rows=500" in capsys.readouterr().err
        assert out_of_core.stored_settings(tmp_path) == settings

    def test_more_memory_than_the_limit_is_an_error(self, out_of_core, tmp_path, monkeypatch):
        one_pass = out_of_core.one_pass

        def wasteful(*arguments):
            wasteful.held = np.ones(10_000_000)
            return one_pass(*arguments)

        monkeypatch.setattr(out_of_core, "one_pass", wasteful)
        with pytest.raises(SystemExit, match="above the limit of 40 MB"):
            out_of_core.main(["--rows", "500", "--classes", "12", "--memory", "40MB", "--output", str(tmp_path)])

    @pytest.mark.slow
    def test_a_worker_above_its_share_is_ended(self, out_of_core):
        import dask.array as da

        with (
            pytest.raises(SystemExit, match="a worker held more than its share"),
            out_of_core.cluster(1, 10**6) as compute,
        ):
            compute(da.random.default_rng(0).random(10**8, chunks=-1).map_blocks(np.sort).sum())
