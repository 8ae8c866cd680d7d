"""Compiled kernels kept on disk: a file that is not as it was written counts as absent, and is written anew.

Numba's own cache trusts its files, has one name for two signatures if two processes compile at once, and does not see
that a function of another file, which a kernel holds inside, has changed.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile

_DIGEST = sha256().digest_size


@lru_cache(maxsize=1)
def _sources() -> str:
    """What all kernels are compiled from."""
    digests = [sha256(path.read_bytes()).hexdigest() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return sha256(" ".join(digests).encode()).hexdigest()


class _Files(IndexDataCacheFile):  # type: ignore[misc]
    """Numba's files, each behind a digest of what it holds."""

    def save(self, key: Any, data: Any) -> None:
        name = self._data_name(int(sha256(repr((self._version, key)).encode()).hexdigest()[:16], 16))
        self._save_data(name, data)
        self._save_index({**self._load_index(), key: name})

    def _load_index(self) -> dict[Any, str]:
        try:
            version, stamp, names = self._load_data(self._index_name)
        except OSError:
            return {}
        return names if (version, stamp) == (self._version, self._source_stamp) else {}

    def _save_index(self, names: dict[Any, str]) -> None:
        self._save_data(self._index_name, (self._version, self._source_stamp, names))

    def _load_data(self, name: str) -> Any:
        content = Path(self._data_path(name)).read_bytes()
        if sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            raise OSError(f"{name} is not as it was written")
        return pickle.loads(content[_DIGEST:])

    def _dump(self, data: Any) -> bytes:
        content: bytes = super()._dump(data)
        return sha256(content).digest() + content


class Kept(FunctionCache):  # type: ignore[misc]
    """The cache of one kernel; whatever happens to it, the kernel is compiled."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, _sources())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with suppress(Exception):
            return super().load_overload(sig, target_context)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)
