"""Exact results on disk: the oracle answers a case once, for all workers of a run and the sessions after it.

A file is named by what its results follow from: the case, the sources of the oracle and the versions under it. One
that is not as it was written counts as absent. Results that cannot be pickled are computed anew.
"""

import os
import pickle
import sys
import tempfile
import zlib
from contextlib import suppress
from functools import cache, lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import mpmath
import numpy as np

from xsoftmax import verify
from xsoftmax.verify.formats import MP

DIGEST = sha256().digest_size


@lru_cache(maxsize=1)
def sources():
    """What every result follows from beside its case."""
    digests = [sha256(path.read_bytes()).hexdigest() for path in sorted(Path(verify.__file__).parent.glob("*.py"))]
    return repr((digests, sys.version, np.__version__, mpmath.__version__))


def name_of(case, default_float):
    arguments = [(name, described(a)) for given in (case.arrays, case.options) for name, a in given.items()]
    return sha256(repr((sources(), case.verbs, default_float, arguments)).encode()).hexdigest()


def described(a):
    if not isinstance(a, np.ndarray):
        return type(a).__name__, repr(a)
    return a.dtype.str, a.dtype.name, a.shape, sha256(a.tobytes()).hexdigest()


class Pickler(pickle.Pickler):
    """Numbers of the oracle's own context have a class that no module names."""

    def reducer_override(self, o):
        return (number, (o._mpf_,)) if isinstance(o, MP.mpf) else NotImplemented


def number(raw):
    return MP.make_mpf(raw)


def kept(compute, folder):
    """`compute(case, default_float)`, answered from `folder` where it can be."""

    @cache
    def exact_results(case, default_float):
        path = Path(folder, name_of(case, default_float))
        with suppress(OSError):
            return loaded(path)
        results = compute(case, default_float)
        with suppress(AttributeError, pickle.PicklingError):  # of a function within a function
            save(path, results)
        return results

    return exact_results


def loaded(path):
    content = path.read_bytes()
    if sha256(content[DIGEST:]).digest() != content[:DIGEST]:
        raise OSError(f"{path} is not as it was written")
    return pickle.loads(zlib.decompress(content[DIGEST:]))


def save(path, results):
    """In one step, so that no other worker reads a part; with the values' `pairs`, which take as long as they do."""
    for exact in (exact for parts in results.values() for exact in parts):
        exact.pairs  # noqa: B018
    stream = BytesIO()
    Pickler(stream, protocol=5).dump(results)
    content = zlib.compress(stream.getvalue(), level=1)
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(sha256(content).digest() + content)
    Path(name).replace(path)
