"""The number of threads that NumPy implementations may use."""

from __future__ import annotations

import os

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


def _checked(n: object, function: str, argument: str) -> int:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"{function}: {argument} is {n!r}, expected an int >= 1")
    if n < 1:
        raise ValueError(f"{function}: {argument} is {n}, expected an int >= 1")
    return n
