"""The threads of NumPy implementations: how many, and work spread over them."""

from __future__ import annotations

import ctypes
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

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
    The default is ``XSOFTMAX_NUM_THREADS`` (empty: unset), or the processors this process may use. A call works on its
    own thread alone where no other can be started.

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
    if value := os.environ.get(_VARIABLE):
        is_number = value.isascii() and value.isdecimal()
        return _checked(int(value) if is_number else value, "get_num_threads", _VARIABLE)
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


class _Team:
    """Those who work on one call: the caller, and helpers who may come in until it is closed."""

    def __init__(self, work: Callable[[int], None], count: int) -> None:
        self._work: Callable[[int], None] | None = work
        self._next, self._count, self._inside = 0, count, 0
        self._elsewhere, self._context = _other_processors(), copy_context()
        self._lock, self._left = threading.Lock(), SimpleQueue[None]()
        self.errors: list[BaseException] = []

    def take(self) -> None:
        """Work, one number after the other, until none is left."""
        work = self._work
        while work is not None:
            with self._lock:  # itertools.count gives a number twice where there is no GIL
                i = self._next
                if i >= self._count:  # here, or a number that was taken could be lost when the caller closes
                    return
                self._next = i + 1
            work(i)

    def help(self) -> None:
        """What a helper does, as the caller would: in its context, and with it the caller's np.errstate."""
        with self._lock:
            if self._work is None:
                return
            self._inside += 1
        try:
            _move_to(self._elsewhere)
            self._context.copy().run(self.take)
        except BaseException as error:
            self._count = 0
            self.errors.append(error)
        finally:
            with self._lock:
                self._inside -= 1
            self._left.put(None)

    @property
    def is_closed(self) -> bool:
        return self._work is None and not self._inside

    def close(self) -> None:
        """Let nobody come in any more and wait for those inside.

        A helper that is still in the pool's queue is not needed, and holds neither arrays nor context from here on.
        """
        self._count = 0
        with self._lock:
            self._work, self._context = None, Context()
        while self._inside:
            self._left.get()


def each(work: Callable[[int], None], count: int) -> None:
    """Call `work` on 0 … count − 1, on the pool and here; the first error ends it and is raised.

    However it ends, nobody works on when it returns.
    """
    helpers = 0 if _is_alone.get() or sys.is_finalizing() else min(get_num_threads(), count) - 1
    if helpers < 1:
        for i in range(count):
            work(i)
        return
    team, errors = _Team(work, count), []
    try:
        _call(team, helpers)
        team.take()
    except BaseException as error:
        errors.append(error)
    while not team.is_closed:
        try:
            team.close()
        except BaseException as error:  # an interrupt from the keyboard
            errors.append(error)
    errors += team.errors
    team.errors.clear()
    if errors:
        try:
            raise errors[0]
        finally:
            del work, team, errors  # the error's traceback holds this frame


_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_calling: int | None = None  # the thread that holds the lock


def _call(team: _Team, helpers: int) -> None:
    """Helpers from the one pool, made anew for more threads; fewer or none where no thread can be started.

    Under the lock, since a pool that is replaced takes no more work.
    """
    global _pool, _pool_size, _calling
    if _calling == threading.get_ident():
        return  # a signal's handler or a finalizer, in the midst of this
    with _lock:
        _calling = threading.get_ident()
        try:
            if _pool is None or _pool_size < helpers:
                _drop_pool()
                _pool, _pool_size = _new_pool(helpers), helpers
            for _ in range(helpers):
                _pool.submit(team.help)
        except (ImportError, RuntimeError):  # the interpreter ends, or the system has no more threads
            _drop_pool()
        except BaseException:
            _drop_pool()  # it may have started a thread that it does not know of
            raise
        finally:
            _calling = None


def _new_pool(size: int) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # fails where the interpreter ends

    return ThreadPoolExecutor(size, "xsoftmax")


def _drop_pool() -> None:
    """Its threads end when they have done what is in its queue."""
    global _pool, _pool_size
    if _pool is not None:
        _pool.shutdown(wait=False)
    _pool, _pool_size = None, 0


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
    global _pool, _pool_size, _lock, _calling
    _pool, _pool_size, _lock, _calling = None, 0, threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _checked(n: Any, function: str, argument: str) -> int:
    try:
        if type(n).__name__ in ("bool", "bool_"):  # NumPy's too, which warns before it is no index
            raise TypeError
        number = operator.index(n)
    except TypeError:
        raise TypeError(f"{function}: {argument} is {n!r}, expected an int >= 1") from None
    if number < 1:
        raise ValueError(f"{function}: {argument} is {n}, expected an int >= 1")
    return number
