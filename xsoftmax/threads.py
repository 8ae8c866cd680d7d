"""The threads of NumPy implementations: how many, and work spread over them."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import cast

_VARIABLE = "XSOFTMAX_NUM_THREADS"
_threads: int | None = None


def set_num_threads(n: int, /) -> None:
    """Set the number of threads for large NumPy arrays.

    Parameters
    ----------
    n : int
        At least 1. The same result, to the bit, whatever the number.

    Raises
    ------
    TypeError
        If `n` is not an int.
    ValueError
        If `n` is less than 1.

    Notes
    -----
    The default is ``XSOFTMAX_NUM_THREADS``, or the processors this process may use.

    Examples
    --------
    >>> import xsoftmax as xs
    >>> xs.set_num_threads(2)
    >>> xs.get_num_threads()
    2
    """
    global _threads
    _threads = _checked(n, "set_num_threads", "n")


def get_num_threads() -> int:
    """The number of threads for large NumPy arrays."""
    if _threads is not None:
        return _threads
    if (value := os.environ.get(_VARIABLE)) is not None:
        return _checked(int(value) if value.isdecimal() else value, "get_num_threads", _VARIABLE)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_is_alone: ContextVar[bool] = ContextVar("xsoftmax_is_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Work within the block stays on its thread, one of many that do the same."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def each(work: Callable[[int], None], count: int) -> None:
    """Call `work` on 0 … count − 1, on the pool and here; the first error ends it and is raised."""
    helpers = 0 if _is_alone.get() else min(get_num_threads(), count) - 1
    if helpers < 1:
        for i in range(count):
            work(i)
        return
    numbers, stop, elsewhere = itertools.count(), threading.Event(), _other_processors()

    def take() -> None:
        while not stop.is_set() and (i := next(numbers)) < count:
            try:
                work(i)
            except BaseException:
                stop.set()
                raise

    def help_out() -> None:
        _move_to(elsewhere)
        take()

    futures = _submitted(help_out, helpers)
    try:
        take()
    finally:
        waiting = [future for future in futures if not future.cancel()]  # a helper that has not begun is not needed
        errors = [error for future in waiting if (error := future.exception()) is not None]
        work = _no_work  # the pool forgets a helper when it gets to it, and until then would hold the arrays
    for error in errors:
        raise error


def _no_work(i: int) -> None:
    """What is left to a helper that comes too late."""


def _submitted(take: Callable[[], None], helpers: int) -> list[Future[None]]:
    """On the one pool, made anew for more threads; under the lock, since one that is replaced takes no more work."""
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < helpers:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool, _pool_size = ThreadPoolExecutor(helpers, "xsoftmax"), helpers
        return [_pool.submit(take) for _ in range(helpers)]


def _processor_number() -> Callable[[], int] | None:
    try:
        return cast("Callable[[], int]", ctypes.CDLL(None).sched_getcpu)
    except (AttributeError, OSError, TypeError):  # no Linux
        return None


_processor = _processor_number()


def _other_processors() -> set[int]:
    """Those that this thread may use, but is not on."""
    return os.sched_getaffinity(0) - {_processor()} if _processor is not None else set()


def _move_to(processors: set[int]) -> None:
    """Linux may wake a thread on the processor of the one that woke it, and see for 4 ms no other that is idle.

    20,000 × 400 took 3.6 ms instead of 2.0.
    """
    if processors:
        with suppress(OSError):  # these may have been taken from the process since
            os.sched_setaffinity(0, processors)


def _after_fork() -> None:
    """The threads of the parent are not in the child, and its lock may be held for ever."""
    global _pool, _pool_size, _lock
    _pool, _pool_size, _lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _checked(n: object, function: str, argument: str) -> int:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"{function}: {argument} is {n!r}, expected an int >= 1")
    if n < 1:
        raise ValueError(f"{function}: {argument} is {n}, expected an int >= 1")
    return n
