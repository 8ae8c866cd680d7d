"""The number of threads: set, read from the environment, and no matter to the result."""

import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import xsoftmax as xs
from xsoftmax import threads

pytestmark = pytest.mark.backend("numpy")


@pytest.fixture(autouse=True)
def _default(monkeypatch):
    monkeypatch.setattr(threads, "_threads", None)
    monkeypatch.delenv("XSOFTMAX_NUM_THREADS", raising=False)


def test_default_is_what_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5, 7}, raising=False)
    assert xs.get_num_threads() == 3


def test_default_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert xs.get_num_threads() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert xs.get_num_threads() == 1


def test_set():
    xs.set_num_threads(3)
    assert xs.get_num_threads() == 3


def test_environment(monkeypatch):
    monkeypatch.setenv("XSOFTMAX_NUM_THREADS", "5")
    assert xs.get_num_threads() == 5
    xs.set_num_threads(2)
    assert xs.get_num_threads() == 2


@pytest.mark.parametrize("value, error", [("0", ValueError), ("-2", TypeError), ("many", TypeError), ("", TypeError)])
def test_environment_that_is_wrong(monkeypatch, value, error):
    monkeypatch.setenv("XSOFTMAX_NUM_THREADS", value)
    with pytest.raises(error, match=r"^get_num_threads: XSOFTMAX_NUM_THREADS is .*, expected an int >= 1$"):
        xs.get_num_threads()


@pytest.mark.parametrize(
    "value, error, found",
    [(0, ValueError, "0"), (-1, ValueError, "-1"), (1.5, TypeError, "1.5"), (True, TypeError, "True")],
)
def test_wrong_number(value, error, found):
    with pytest.raises(error, match=f"^set_num_threads: n is {found}, expected an int >= 1$"):
        xs.set_num_threads(value)
    assert threads._threads is None


def test_number_does_not_change_the_bits():
    x = np.random.default_rng(0).normal(size=(257, 1031)).astype(np.float32)
    labels = np.arange(257)
    results = []
    for n in (1, 2, 5):
        xs.set_num_threads(n)
        loss, grad = xs.cross_entropy_and_grad(x, labels)
        results.append(loss.tobytes() + grad.tobytes() + xs.softmax(x, axis=0).tobytes())
    assert len(set(results)) == 1


def test_concurrent_calls():
    x = np.random.default_rng(1).normal(size=(64, 100))
    expected = xs.softmax(x)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: xs.softmax(x), range(16)):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_after_a_fork():
    """A child process computes although its parent had run its threads."""
    code = """if True:
        import os, sys, numpy as np, xsoftmax as xs
        x = np.zeros((500, 4000))
        xs.softmax(x)
        child = os.fork()
        if not child:
            os._exit(0 if xs.softmax(x)[0, 0] == 1 / 4000 else 1)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_each_number_once(n, count):
    xs.set_num_threads(n)
    seen = []
    threads.each(seen.append, count)
    assert sorted(seen) == list(range(count))


def test_the_first_error_is_raised_and_ends_the_work():
    xs.set_num_threads(4)
    done = []

    def work(i):
        if i == 3:
            raise ZeroDivisionError
        done.append(i)

    with pytest.raises(ZeroDivisionError):
        threads.each(work, 100_000)
    assert len(done) < 99_999
    threads.each(done.append, 2)  # the pool still works


def test_an_error_of_a_helper_is_raised():
    xs.set_num_threads(2)
    here, met = threading.get_ident(), threading.Barrier(2, timeout=10)

    def work(i):
        met.wait()
        if threading.get_ident() != here:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.each(work, 2)


def test_work_within_work_does_not_wait_for_itself():
    xs.set_num_threads(3)
    seen = []
    threads.each(lambda i: threads.each(lambda j: seen.append((i, j)), 10), 10)
    assert sorted(seen) == [(i, j) for i in range(10) for j in range(10)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own():
    code = """
import os, numpy as np, xsoftmax as xs
xs.set_num_threads(2)
x = np.random.default_rng(0).normal(size=(2000, 200))
y = xs.softmax(x)
child = os.fork()
if not child:
    os._exit(0 if (xs.softmax(x) == y).all() else 1)
raise SystemExit(os.waitpid(child, 0)[1])
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr


def test_work_is_handed_over_under_the_lock(monkeypatch):
    """Else another caller, who asks for more threads, could shut the pool in between."""
    held = []

    class Pool(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            held.append(threads._lock.locked())
            return super().submit(*args, **kwargs)

    monkeypatch.setattr(threads, "ThreadPoolExecutor", Pool)
    threads._after_fork()  # starts without a pool
    xs.set_num_threads(4)
    threads.each(lambda i: None, 10)
    threads._after_fork()
    assert held == [True] * 3


@pytest.mark.skipif(threads._processor is None, reason="this system does not tell the processor of a thread")
@pytest.mark.skipif(threads._processor is None or len(os.sched_getaffinity(0)) < 2, reason="one processor")
def test_helpers_leave_the_processor_of_the_caller(monkeypatch):
    monkeypatch.setattr(threads, "_processor", lambda: min(os.sched_getaffinity(0)))
    allowed, helpers, met = os.sched_getaffinity(0), [], threading.Barrier(2)

    def work(i):
        met.wait(10)
        if threading.current_thread() is not threading.main_thread():
            helpers.append(os.sched_getaffinity(0))

    xs.set_num_threads(2)
    threads.each(work, 2)
    assert helpers == [allowed - {min(allowed)}]
    assert os.sched_getaffinity(0) == allowed


def test_processors_taken_away_since(monkeypatch):
    def refuse(pid, processors):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    monkeypatch.setattr(threads, "_other_processors", lambda: {10_000})
    xs.set_num_threads(2)
    done = []
    threads.each(done.append, 4)
    assert sorted(done) == [0, 1, 2, 3]


def test_a_helper_that_was_not_needed_holds_nothing():
    """It stays with the pool while that is busy."""
    xs.set_num_threads(2)
    free = threading.Event()
    threads._submitted(free.wait, 1)
    held = np.zeros(3)
    there = weakref.ref(held)
    try:
        threads.each(lambda i, held=held: None, 2)
        del held
        assert there() is None
    finally:
        free.set()
