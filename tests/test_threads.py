"""The number of threads: set, read from the environment, and no matter to the result."""

import os
import signal
import subprocess
import sys
import textwrap
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


def test_an_empty_environment_is_unset(monkeypatch):
    default = xs.get_num_threads()
    monkeypatch.setenv("XSOFTMAX_NUM_THREADS", "")
    assert xs.get_num_threads() == default


@pytest.mark.parametrize(
    "value, error",
    [("0", ValueError), *((value, TypeError) for value in ("-2", "many", " ", " 3 ", "1.0", "1_0", "１", "²"))],
)
def test_environment_that_is_wrong(monkeypatch, value, error):
    monkeypatch.setenv("XSOFTMAX_NUM_THREADS", value)
    with pytest.raises(error, match=r"^get_num_threads: XSOFTMAX_NUM_THREADS is .*, expected an int >= 1$"):
        xs.get_num_threads()


@pytest.mark.parametrize("n", [np.int8(3), np.uint64(3), np.array(3)])
def test_integers_of_numpy_are_numbers(n):
    xs.set_num_threads(n)
    assert type(xs.get_num_threads()) is int
    assert xs.get_num_threads() == 3


@pytest.mark.parametrize(
    "value, error, found",
    [
        (0, ValueError, "0"),
        (-1, ValueError, "-1"),
        (np.int8(-1), ValueError, "-1"),
        (1.5, TypeError, "1.5"),
        (True, TypeError, "True"),
        (np.True_, TypeError, "np.True_"),
        (None, TypeError, "None"),
        ("2", TypeError, "'2'"),
    ],
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

    monkeypatch.setattr(threads, "_new_pool", Pool)
    threads._drop_pool()
    xs.set_num_threads(4)
    threads.each(lambda i: None, 10)
    threads._drop_pool()
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
    busy, free = threading.Event(), threading.Event()

    def keep_busy(i):
        if threading.current_thread() is not caller:
            busy.set()
        free.wait(10)

    caller = threading.Thread(target=threads.each, args=(keep_busy, 2))
    caller.start()
    busy.wait(10)
    held = np.zeros(3)
    there = weakref.ref(held)
    try:
        threads.each(lambda i, held=held: None, 2)
        del held
        assert there() is None
    finally:
        free.set()
        caller.join()


def test_an_error_holds_no_arrays():
    """Its frames are held by itself alone."""
    xs.set_num_threads(2)
    held = np.zeros(3)
    there = weakref.ref(held)

    def work(i, held):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        threads.each(lambda i, held=held: work(i, held), 2)
    del held, caught
    assert there() is None


def test_helpers_work_in_the_context_of_the_caller():
    xs.set_num_threads(2)
    met, seen = threading.Barrier(2, timeout=10), []

    def work(i):
        met.wait()
        seen.append(np.geterr()["over"])

    with np.errstate(over="call"):
        threads.each(work, 2)
    assert seen == ["call", "call"]


# ---------------------------------------------------------------------------------------------------------------------
# the interpreter ends, no thread can be started, somebody interrupts

CALLS = """
import atexit, os, signal, sys, threading
import numpy as np, xsoftmax as xs

x, labels = np.random.default_rng(0).normal(size=(1000, 400)), np.arange(1000) % 400

def bits():
    y = xs.softmax(x, axis=0)
    both = xs.cross_entropy_and_grad(x, labels, label_smoothing=0.1)
    return [a.tobytes() for a in (y, *both, xs.softmax_vjp(y, x), xs.cross_entropy_hvp(x, labels, y))]

def expected():
    xs.set_num_threads(1)
    found = bits()
    xs.set_num_threads(3)
    return found

class Late:
    bits = staticmethod(bits)  # the module's names may be gone

    def __init__(self, expected=None):
        self.expected = expected

    def __call__(self):
        found = self.bits()
        print("right" if self.expected in (None, found) else "wrong", flush=True)
"""


def run(code):
    """What a script of three threads prints; it ends well and says nothing on stderr."""
    environment = {**os.environ, "XSOFTMAX_IMPLEMENTATION": "numpy_blocked", "XSOFTMAX_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", CALLS + textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


LATE = {
    "thread": "threading.Thread(target=lambda: (threading.main_thread().join(), late())).start()",
    "atexit": "atexit.register(late)",
    "end of threading": "threading._register_atexit(late)",
    "finalizer": "Late.__del__ = Late.__call__",
}


@pytest.mark.parametrize("when", LATE)
@pytest.mark.parametrize("before", ["bits()", "expected()"], ids=["with the pool", "first use of threads"])
def test_work_after_the_main_thread_has_ended(when, before):
    assert run(f"late = Late(expected={before})\n{LATE[when]}") == "right\n"


@pytest.mark.parametrize("when", [when for when in LATE if when != "finalizer"])  # then nothing can be imported
def test_the_first_call_after_the_main_thread_has_ended(when):
    assert run(f"late = Late()\n{LATE[when]}") == "right\n"


def test_no_thread_can_be_started():
    """A stack of 2⁴⁷ bytes is more than there is room for, whatever the limits."""
    code = """
        late = Late(expected=expected())
        threading.stack_size(1 << 47)
        late()
        threading.stack_size(0)
        late()
        print(sum(thread.name.startswith("xsoftmax") for thread in threading.enumerate()))
    """
    assert run(code) == "right\nright\n2\n"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_some_threads_can_be_started(monkeypatch, number):
    start, started = threading.Thread.start, []

    def start_some(self):
        if len(started) == number:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    threads._drop_pool()
    monkeypatch.setattr(threading.Thread, "start", start_some)
    xs.set_num_threads(4)
    met = threading.Barrier(number + 1, timeout=10)
    seen = []

    def work(i):
        if i <= number:
            met.wait()  # all who could be started are here
        seen.append(i)

    threads.each(work, 20)
    assert sorted(seen) == list(range(20))
    assert len(started) == number


@pytest.fixture
def closing(monkeypatch):
    """Set when the caller closes its team."""
    closing, close = threading.Event(), threads._Team.close

    def tell(self):
        closing.set()
        close(self)

    monkeypatch.setattr(threads._Team, "close", tell)
    return closing


def test_helpers_are_waited_for_if_another_cannot_be_started(monkeypatch, closing):
    start, started, entered, done = threading.Thread.start, [], threading.Event(), []

    def start_one(self):
        if started:
            entered.wait(10)
            raise MemoryError
        started.append(self)
        start(self)

    def work(i):
        entered.set()
        closing.wait(10)
        done.append(i)

    threads._drop_pool()
    monkeypatch.setattr(threading.Thread, "start", start_one)
    xs.set_num_threads(3)
    with pytest.raises(MemoryError):
        threads.each(work, 100)
    assert done == [0]


def test_helpers_stop_and_are_waited_for_if_the_caller_is_interrupted(closing):
    caller, entered, done = threading.get_ident(), threading.Event(), []

    def work(i):
        if threading.get_ident() == caller:
            entered.wait(10)
            raise KeyboardInterrupt
        entered.set()
        closing.wait(10)
        done.append(i)

    xs.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        threads.each(work, 100)
    assert len(done) == 1
    threads.each(done.append, 3)  # the pool still works
    assert len(done) == 4


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to a thread here")
def test_an_interrupt_while_helpers_are_waited_for():
    """Each number is done by the helper alone, which interrupts the caller who has nothing left to do."""
    code = """
        from xsoftmax import threads
        caller, done, closing, close = threading.main_thread(), [], threading.Event(), threads._Team.close
        threads._Team.close = lambda self: (closing.set(), close(self))

        def work(i):
            if threading.current_thread() is caller:
                entered.wait(10)
                return
            entered.set()
            closing.wait(10)
            interrupted.clear()
            signal.pthread_kill(caller.ident, signal.SIGINT)
            interrupted.wait(10)
            done.append(i)

        def handler(*_):
            interrupted.set()
            raise KeyboardInterrupt

        interrupted, entered = threading.Event(), threading.Event()
        signal.signal(signal.SIGINT, handler)
        xs.set_num_threads(2)
        try:
            threads.each(work, 2)
        except KeyboardInterrupt:
            print("interrupted", len(done))
    """
    assert run(code) == "interrupted 1\n"


def test_a_call_in_the_midst_of_handing_over(monkeypatch):
    """By a finalizer, or by the handler of a signal."""
    seen = []

    class Pool(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            threads.each(seen.append, 3)
            return super().submit(*args, **kwargs)

    monkeypatch.setattr(threads, "_new_pool", Pool)
    threads._drop_pool()
    xs.set_num_threads(2)
    threads.each(seen.append, 3)
    threads._drop_pool()
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]


def test_the_number_changes_while_calls_run():
    x = np.random.default_rng(0).normal(size=(300, 400))
    with xs.use_implementation("numpy_blocked"):
        expected = xs.softmax(x)

    def call(n):
        xs.set_num_threads(n)
        with xs.use_implementation("numpy_blocked"):
            return xs.softmax(x)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(call, [2, 5, 1, 3, 4] * 8):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_a_fork_while_the_pool_is_busy(where):
    code = """
        from xsoftmax import threads
        free, busy = threading.Event(), threading.Barrier(4)
        late = Late(expected=expected())

        def work(i):
            busy.wait(10)
            free.wait(10)

        def fork():
            child = os.fork()
            if not child:
                late()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0

        caller = threading.Thread(target=threads.each, args=(work, 3))
        caller.start()
        busy.wait(10)
        if WHERE == "main":
            fork()
        else:
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
        free.set()
        caller.join()
        late()
    """
    assert run(f"WHERE = {where!r}\n" + textwrap.dedent(code)) == "right\nright\n"


FIRST_CALLS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import xsoftmax as xs

rng = np.random.default_rng(0)
calls = []
for dtype in "float32", "float64":
    x, labels = rng.normal(size=(70, 40)).astype(dtype), rng.integers(0, 10, 70)
    narrow, t = x[:, :10].copy(), np.full_like(x, 1 / 40)
    verbs = xs.softmax, xs.log_softmax, xs.logsumexp
    calls += [(verb, a, axis) for verb in verbs for a in (x, narrow) for axis in (-1, 0)]
    calls += [(verb, a, b) for verb in (xs.cross_entropy, xs.cross_entropy_and_grad) for a, b in ((x, labels), (x, t))]
    calls += [(verb, x, t) for verb in (xs.softmax_vjp, xs.log_softmax_vjp, xs.log_softmax_jvp)]


def result(verb, x, other):
    y = verb(x, axis=other) if isinstance(other, int) else verb(x, other)
    return [np.asarray(a).tobytes() for a in (y if isinstance(y, tuple) else (y,))]


barrier = Barrier(16)


def work(i):
    barrier.wait()
    return {(k + 3 * i) % len(calls): result(*calls[(k + 3 * i) % len(calls)]) for k in range(len(calls))}


sys.setswitchinterval(1e-5)
with ThreadPoolExecutor(16) as pool:
    found = list(pool.map(work, range(16)))
assert all(results[i] == result(*call) for results in found for i, call in enumerate(calls))
"""


@pytest.mark.parametrize("name", ["numpy_blocked", "numpy_numba"])
def test_first_calls_by_many_threads_at_once(name):
    if name == "numpy_numba":
        pytest.importorskip("numba")
    environment = {**os.environ, "XSOFTMAX_IMPLEMENTATION": name, "XSOFTMAX_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FIRST_CALLS], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
