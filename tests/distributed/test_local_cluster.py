"""A cluster of several processes: the digits of one process, also where a worker dies in the middle."""

import os

import numpy as np
import pytest

import xsoftmax as xs

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.backend("dask"),
    pytest.mark.filterwarnings("default"),  # of the cluster's own machinery
]

ROWS, CLASSES = 1200, 64
X = np.random.default_rng(0).normal(scale=5.0, size=(ROWS, CLASSES)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(CLASSES, size=ROWS)


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def in_blocks(chunks):
    return da.from_array(X, chunks=chunks), da.from_array(LABELS, chunks=chunks[0])


def close(found, expected):
    """Correctly rounded, but for ties: a block may arrive where it is not aligned, which another kernel reads."""
    np.testing.assert_array_max_ulp(np.asarray(found), np.asarray(expected), maxulp=1)


CUTS = pytest.mark.parametrize("chunks", [(50, CLASSES), (400, 16), (100, 16)], ids=["rows", "classes", "both"])


@CUTS
def test_the_same_digits_as_in_one_process(client, chunks):
    x, labels = in_blocks(chunks)
    results = [
        xs.softmax(x),
        xs.log_softmax(x),
        xs.logsumexp(x),
        *xs.cross_entropy_and_grad(x, labels, label_smoothing=0.1),
        xs.softmax_vjp(x, x),
    ]
    for future, result in zip(client.compute(results), results, strict=True):
        close(future.result(), result.compute(scheduler="synchronous"))


def test_a_linear_loss(client):
    x, factor = da.from_array(X.astype(float), chunks=(100, CLASSES)), da.from_array(X[:40].astype(float), chunks=40)
    labels = da.from_array(LABELS % 40, chunks=100)
    loss, *grads = xs.linear_cross_entropy_and_grad(x, factor, labels)[:3]
    for future, result in zip(client.compute([loss, *grads]), (loss, *grads), strict=True):
        one = result.compute(scheduler="synchronous")
        np.testing.assert_allclose(future.result(), one, rtol=1e-10, atol=1e-14)  # sums of products, in any order


def deadly(block, marker, block_info=None):
    """The worker that first gets this block in the middle of the rows is gone at once, with all that it holds."""
    if block_info[0]["chunk-location"][0] == 12 and not os.path.exists(marker):
        with open(marker, "w") as file:
            file.write(str(os.getpid()))
        os._exit(1)
    return block


@CUTS
def test_a_worker_that_dies_loses_nothing(client, tmp_path, chunks):
    marker = tmp_path / "killed"
    x = da.from_array(X, chunks=(min(chunks[0], 50), chunks[1]))
    labels = da.from_array(LABELS, chunks=50)
    loss, grad = xs.cross_entropy_and_grad(x.map_blocks(deadly, marker=str(marker), dtype=x.dtype), labels)
    expected = [a.compute(scheduler="synchronous") for a in xs.cross_entropy_and_grad(x, labels)]
    before = set(client.scheduler_info(n_workers=-1)["workers"])
    found = [future.result() for future in client.compute([loss, grad])]
    assert marker.exists()
    assert not before <= set(client.scheduler_info(n_workers=-1)["workers"])
    for a, b in zip(found, expected, strict=True):
        close(a, b)
    client.wait_for_workers(3)
