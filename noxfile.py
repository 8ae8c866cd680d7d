#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox[uv]>=2025.5"]
# ///
"""Test sessions: plain ``nox`` answers in a quarter of an hour, and ``nox -t full`` runs the rest.

Plain: style, types, NumPy with and without Numba, and every backend against the others. Full: each backend's own tests
and contract, other Pythons, the oldest versions, the CUDA kernels on the host, a cluster, the examples. Of a test with
three parameters or more they take so many that every two values meet (``pytest --pairs``); ``nox -t every`` runs the
whole products. What needs a GPU is in ``nox -s gpu``; ``nox -l`` lists every session.
"""

import ctypes
import sys

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"  # an environment in 2 to 5 s instead of 40
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "tests(numpy)", "tests(numba)", "agreement"]
FULL = ["full"]  # the tag of the rest
EVERY = ["every"]  # whole products and every kernel: hours

PYPROJECT = nox.project.load_toml("pyproject.toml")
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
GROUPS = PYPROJECT["dependency-groups"]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHERS = [version for version in nox.project.python_versions(PYPROJECT) if version != HERE]

STRICT = ["array-api-strict", *(f"array-api-strict:{device}" for device in ("device1", "no_float64", "no_x64"))]
LIBRARIES = ["torch", "jax", "dask", "array-api-strict", "ndonnx", "mlx", "cubed", "marray", "sparse"]
SLOWEST = ["ndonnx", "cubed"]
BY_FORMULAS = ["dask", *(name for name in STRICT if "no_float64" not in name), "mlx", "marray", "sparse"]
OF_NAMES = [  # values are in `contract`
    *(f"tests/test_{name}.py" for name in ("lazy", "misuse")),
    "tests/test_linear.py::test_onnx_model_with_a_symbolic_batch",
]
PARTS_OF_ROWS = "tests/kernels/test_class_parts.py"
MATRIX = "tests/test_contract.py"
CUDA = "tests/kernels/cuda"
CLUSTER = "tests/distributed"
VALUES = [  # tests of the mathematics and of the tools around it, which no other Python changes
    *(f"tests/{name}" for name in ("implementations", "kernels", "verify")),
    *(f"tests/test_{name}.py" for name in ("accuracy_cases", "formulas", "properties", "scales", "temperature")),
    *(f"tests/test_{name}.py" for name in ("benchmarks", "gpu_benchmarks")),
]
PARTS = "-cross_entropy- or -cross_entropy_grad-"  # of `cross_entropy_and_grad`
HALVES = "-softmax- or -cross_entropy_and_grad-"  # the verbs that show how half precision is rounded
AGREEMENT = "tests/test_agreement.py"
EXAMPLES = "tests/test_examples.py"
OF_JAX = [  # what another version of JAX can change: names and dtypes, tracing, derivative rules, programs
    "tests/implementations",
    *(f"tests/test_{name}.py" for name in ("arrays", "backends", "lazy", "misuse", "nothing", "quick", "warnings")),
]
ORDERS = "of_the_definition or of_finite_differences or no_part_in_any_derivative"  # of JAX's rules: many programs
TOOLS = ["tests/verify", *(f"tests/test_{name}.py" for name in ("benchmarks", "cli", "gpu_benchmarks", "on_gpu"))]
EACH_OPERATION = ["softmax", "log_softmax_vjp", "cross_entropy_and_grad"]


def install(session, *names, constraints=(".ci/constraints.txt",), editable=False):
    """Install the package with each name that is an extra, and the groups of the other names.

    Sessions with Numba have it editable: one compiles the kernels for all, beside their sources.
    """
    if "torch" in names:  # which pip alone finds; all else uv resolves in seconds where pip takes minutes
        session.install("pip")
        pins = [f"--constraint={path}" for path in constraints]
        session.run_install("python", "-m", "pip", "install", "--quiet", "--no-deps", *EXTRAS["torch"], *pins)
    extras = [name for name in names if name in EXTRAS]
    groups = [name for name in names if name in GROUPS]
    session.install(
        *(["--editable"] if editable else []),
        f".[{','.join(extras)}]" if extras else ".",
        *nox.project.dependency_groups(PYPROJECT, *groups),
        *(f"--constraint={path}" for path in constraints),
    )


def run_tests(session, backends, *args, x64="1", whole=False):
    """Run the tests of these backends; pytest refuses to start if one of them is not live."""
    chosen = [f"--backend={name}" for name in backends]
    workers = ["--numprocesses=0"] if CLUSTER in args else ["--numprocesses=auto", "--maxprocesses=4"]
    own = [] if session.posargs else [path for path in (CUDA, CLUSTER) if path not in args]
    apart = [f"--ignore={path}" for path in own]  # their sessions are `kernels` and `distributed`
    few = [] if whole or session.posargs else ["--pairs"]
    session.run("pytest", *workers, *chosen, *few, *args, *apart, *session.posargs, env={"JAX_ENABLE_X64": x64})


def without_matrix(session):
    """The contract matrix is in `libraries`, that of NumPy in `tests(numba)`, which has all its implementations.

    What takes several backends at once is in `agreement`; the examples are in `examples`, with NumPy.
    """
    apart = [MATRIX, AGREEMENT, EXAMPLES]
    return [] if session.posargs else [f"--ignore={path}" for path in apart]


def _float32(verbs):
    return " or ".join(f"-{verb}-float32" for verb in verbs)


def _of_32_bit():
    """Half precision is computed as float32 is."""
    return f"not jitted and not ({PARTS}) and (-float32 or {HALVES})"


def flavours(library):
    return STRICT if library == "array-api-strict" else [library]


def cuda_driver():
    """Version of the CUDA driver, as in 13020 for 13.2; 0 where no device answers, and why."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return 0, f"no CUDA device answers: {error}"
    version, count = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return 0, "no CUDA device answers: the driver is here, but lists none"
    driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value, None


def test_cupy(session, version):
    install(session, "cuda13x" if version >= 13000 else "cuda12x", "cli", "test")
    run_tests(session, ["cupy"], whole=True)


@nox.session
@nox.parametrize(
    "python,library",
    [
        nox.param(HERE, "numpy", id="numpy"),
        nox.param(HERE, "numba", id="numba"),
        *(nox.param(version, "numpy", id=f"numpy-{version}", tags=FULL) for version in OTHERS),
        *(nox.param(HERE, library, id=library, tags=FULL) for library in ("jax", "torch", "cupy")),
    ],
)
def tests(session, library):
    """The tests of one backend; `numba` are those of NumPy with Numba's kernels; other Pythons: all but values."""
    if library == "cupy":
        version, reason = cuda_driver()
        if not version:
            session.skip(f"CuPy: {reason}")
        test_cupy(session, version)
    elif library == "numba":
        install(session, "numba", "cli", "test", editable=True)
        run_tests(session, ["numpy"], *([] if session.posargs else [f"--ignore={path}" for path in TOOLS]))
        # without AVX-512, whatever this machine has
        session.env["NUMBA_CPU_NAME"] = "haswell"
        session.env["NUMBA_CPU_FEATURES"] = "+avx2,+fma,-avx512f"
        run_tests(session, ["numpy"], MATRIX, PARTS_OF_ROWS, f"-k={_float32(EACH_OPERATION)} or test_class_parts")
    elif session.python != HERE:
        install(session, library, "cli", "test")
        run_tests(session, ["numpy"], *without_matrix(session), *(f"--ignore={path}" for path in VALUES))
    else:
        install(session, library, "cli", "test")
        run_tests(session, [library], *without_matrix(session))
        if library == "jax" and not session.posargs:
            # what float32 alone can spoil; rules and programs have their tests in 32 bit above
            files = ["tests/test_accuracy_cases.py", "tests/test_functions.py", MATRIX]
            run_tests(session, ["jax"], *files, f"-k=not test_contract or {_of_32_bit()}", x64="0")


@nox.session
def gpu(session):
    """Every test of CuPy; fails where no device answers."""
    version, reason = cuda_driver()
    if not version:
        session.error(f"CuPy: {reason}")
    test_cupy(session, version)


@nox.session(tags=FULL)
def kernels(session):
    """The CUDA kernels without a GPU: run by a host compiler, and one of each compiled for every architecture."""
    install(session, "kernels", "cli", "test", constraints=())
    run_tests(session, ["numpy"], CUDA, "-k=not test_every_kernel")


@nox.session(tags=EVERY)
def every_kernel(session):
    """Every CUDA kernel compiled for sm_90, with its registers and spills, and all runs; for changes of the kernels."""
    install(session, "kernels", "cli", "test", constraints=())
    run_tests(session, ["numpy"], CUDA, "-rP", whole=True)


def install_every_backend(session):
    """All but CuPy, which needs a GPU; returns their names."""
    install(session, "torch", "jax", "dask", "agreement", "cli", "test", editable=True)
    return ["numpy", *(name for library in LIBRARIES for name in flavours(library))]


@nox.session
def agreement(session):
    """Every backend but CuPy in one environment against each other: within the contract, and bit by bit."""
    run_tests(session, install_every_backend(session), AGREEMENT)


@nox.session(tags=FULL)
def libraries(session):
    """The libraries that run the formulas, in one environment; and all but CuPy and NumPy against the exact oracle."""
    # left out: the float32 exp of mlx is off by up to 42 ulp, and sparse warns of 0 · ∞ in its fill values
    judged = [name for name in install_every_backend(session) if name not in ("numpy", "mlx", "sparse")]
    if session.posargs:
        run_tests(session, [])
        return
    run_tests(session, BY_FORMULAS, *without_matrix(session))
    run_tests(session, SLOWEST, *OF_NAMES)
    slow = f"dask and ({_float32(EACH_OPERATION)}) or (ndonnx or cubed) and ({_float32(EACH_OPERATION[:1])})"
    with_parts = "torch or jitted"  # loss and gradient alone have kernels of their own in NumPy and PyTorch
    narrow = f"{_float32(EACH_OPERATION)} or {HALVES}"  # as float64, rounded once; `tests(jax)` has all of its float32
    others = f"no_float64 and -float32 or (strict or marray) and ({_float32(EACH_OPERATION)})"
    formulas = f"((jax or strict-) and (-float64 or {narrow}) or {others})"
    run_tests(session, judged, MATRIX, f"-k={with_parts} or {formulas} and not ({PARTS}) or {slow}")


@nox.session(tags=EVERY)
@nox.parametrize("library", [nox.param(library, id=library) for library in ("numpy", "numba", *LIBRARIES)])
def every(session, library):
    """Whole products: each test of a backend with each value of each parameter, the contract matrix included."""
    install(session, library, "cli", "test")
    run_tests(session, ["numpy"] if library == "numba" else flavours(library), whole=True)
    if library == "jax":
        run_tests(session, ["jax"], whole=True, x64="0")


@nox.session(python="3.11", tags=FULL)
def oldest(session):
    """The lowest versions that are supported; all but values, and of JAX, which compiles for seconds, `OF_JAX`."""
    install(session, "oldest", constraints=())
    libraries = ["numpy", "array-api-strict", "dask"]
    of_values = [f"--ignore={path}" for path in VALUES if path != "tests/implementations"]
    run_tests(session, libraries, *without_matrix(session), *of_values)
    run_tests(session, ["jax"], *OF_JAX, f"-k=not ({ORDERS})")  # `tests(jax)` has their values
    run_tests(session, [*libraries, "jax"], AGREEMENT)  # every verb of each


@nox.session(tags=FULL)
def distributed(session):
    """Dask on a cluster of several processes on this machine, of which one is killed."""
    install(session, "dask", "distributed", "test")
    run_tests(session, ["dask"], CLUSTER)


@nox.session(tags=FULL)
def examples(session):
    """Every example, as a user would run it."""
    install(session, "examples", "test")
    run_tests(session, ["numpy"], EXAMPLES)


@nox.session
def bench(session):
    """Time the CPU against the other libraries, into benchmarks/results; arguments are those of benchmarks/cpu.py."""
    install(session, "numba", "torch", "jax", "cli", "bench")
    session.run("python", "benchmarks/cpu.py", *session.posargs)


@nox.session
def bench_gpu(session):
    """Time a GPU, into benchmarks/results; arguments are those of benchmarks/gpu.py. Fails where no device answers."""
    version, reason = cuda_driver()
    if not version:
        session.error(f"CuPy: {reason}")
    install(session, "cuda13x" if version >= 13000 else "cuda12x", "torch", "jax", "cli", "bench", constraints=())
    session.run("python", "benchmarks/gpu.py", *session.posargs)


@nox.session
def lint(session):
    """Style and format."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session):
    """Static types."""
    install(session, "cli", "types")
    session.run("mypy")


if __name__ == "__main__":
    nox.main()
