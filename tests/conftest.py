"""Which backends a run tests: ``pytest --backend NAME --backend NAME2``, or ``--backend all`` for every usable one."""

import os
from collections import Counter
from importlib.util import find_spec

import hypothesis
import pytest
from pairwise import pairs

from xsoftmax.libraries.backends import NAMES, Backend, backend, backends

hypothesis.settings.register_profile("xsoftmax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("xsoftmax")

LIVE = pytest.StashKey[dict[str, Backend]]()
BITS = ("compared", "differing")  # counted by test_agreement
ABSENT = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="a backend to test, repeatable ('all': every usable one); default: numpy, array-api-strict",
    )
    parser.addoption(
        "--pairs",
        action="store_true",
        help="of a test with three parameters or more, not the whole product: every two values meet at least once",
    )


def pytest_configure(config):
    config.stash[ABSENT] = {}
    keep_programs(config)
    asked = config.getoption("--backend")
    if asked is None:
        asked = ["numpy", *(["array-api-strict"] if find_spec("array_api_strict") else [])]
    elif "all" in asked:
        statuses = backends()
        asked = [status.name for status in statuses if status.usable]
        config.stash[ABSENT] = {status.name: status.reason for status in statuses if not status.usable}
    config.stash[LIVE] = {name: _live(name) for name in asked}


def keep_programs(config):
    """What JAX compiles, it compiles once for all workers and later runs: 21 s of CPU time, not 58, for test_functions.

    JAX reads these when it is imported; the limits are 0 because most programs here compile in milliseconds.
    """
    if find_spec("jax") and getattr(config, "cache", None) is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def _live(name):
    try:
        found = backend(name)
        found.to_numpy(found.asarray([0.0], dtype="float32"))
    except Exception as error:
        raise pytest.UsageError(f"--backend {name} is not live: {error}") from error
    return found


def pytest_generate_tests(metafunc):
    if "xb" in metafunc.fixturenames:
        metafunc.parametrize("xb", metafunc.config.stash[LIVE].values(), ids=lambda xb: xb.name, scope="session")


def pytest_collection_modifyitems(config, items):
    """Tests of no backend in particular run where NumPy is asked for, those of one where that one is."""
    live = config.stash[LIVE]
    kept = [item for item in items if is_about(live, item)]
    if config.getoption("--pairs"):
        kept = pairs(kept)
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


def is_about(live, item):
    marks = [mark.args[0] for mark in item.iter_markers("backend")]
    if marks:
        return all(name in live for name in marks)
    return "numpy" in live or bool({"xb", "live_backends"} & set(item.fixturenames))


@pytest.fixture(scope="session")
def live_backends(request):
    """Every backend of this run."""
    return tuple(request.config.stash[LIVE].values())


def pytest_terminal_summary(terminalreporter, config):
    live, absent = config.stash[LIVE], config.stash[ABSENT]
    rates = Counter()
    for report in terminalreporter.getreports("passed"):
        rates.update({key: value for key, value in report.user_properties if key in BITS})
    if rates["compared"]:
        terminalreporter.section("the same bits in 16 and 32 bits")
        terminalreporter.line(f"{rates['differing']:,} of {rates['compared']:,} elements differ from the formulas'")
    terminalreporter.section("backends")
    terminalreporter.line(f"tested: {', '.join(live) or 'none'}")
    for name in NAMES:
        if name not in live:
            terminalreporter.line(f"skipped: {name}: {absent.get(name, f'not asked for, --backend {name}')}")
