"""Settings of all tests: eight CPU devices, the folder of shared data, strict promotion on demand.

Nothing here imports jax at the top: XLA reads its flags once, when jax is first imported.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import sampling

# Small programs are not split to be compiled by several threads: a seventh less processor time.
FLAGS = ("--xla_force_host_platform_device_count=8", "--xla_cpu_parallel_codegen_split_count=1")
for flag in FLAGS:
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

os.environ.setdefault("JAXMERGE_DEVICES", "1")  # training uses one, but where a test says more

# Compiled code is kept between runs and workers: the laws compile some thousand small functions.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# An entry that another process has half written, or was killed writing, is compiled anew: commands
# started by tests say nothing of it either (pytest's own filter is in pyproject.toml).
HALF_WRITTEN = "ignore:Error reading persistent compilation cache entry:UserWarning"
warnings_wanted = os.environ.get("PYTHONWARNINGS")
os.environ["PYTHONWARNINGS"] = (
    f"{warnings_wanted},{HALF_WRITTEN}" if warnings_wanted else HALF_WRITTEN
)


def pytest_addoption(parser):
    """Options of the sample, see `sampling`."""
    text = "processor seconds for the cases of a test function, 0: all; "
    text += f"{sampling.FUNCTION} where no file is named"
    parser.addoption("--budget", type=float, default=None, metavar="SECONDS", help=text)
    parser.addoption("--sample", default="", metavar="NAME", help="another choice of the cases")
    parser.addoption("--shard", default="", metavar="K/N", help="the K-th part of N of the tests")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Without files: a sample, in as many processes as there are cores; those of one file in this
    process, all of them."""
    if hasattr(config, "workerinput"):
        return
    alone = config.args_source is config.ArgsSource.TESTPATHS
    if config.option.budget is None:
        config.option.budget = sampling.FUNCTION if alone else 0.0
    if alone and getattr(config.option, "numprocesses", 0) is None:  # 0 where xdist is not there
        config.option.numprocesses, config.option.dist = "auto", "loadfile"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Workers get the options of the command, not what was chosen in their place."""
    node.workerinput["budget"] = node.config.option.budget


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Leave out what the budget does not pay for and other shards run, of what is selected."""
    names = [i.nodeid for i in items]
    budget = getattr(config, "workerinput", vars(config.option))["budget"] or 0.0
    out = sampling.left_out(names, sampling.recorded(), budget, config.option.sample)
    out |= sampling.of_other_shards(names, config.option.shard)
    if out:
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid in out])
        items[:] = [i for i in items if i.nodeid not in out]


SECONDS: dict[str, float] = {}
SPENT = [0.0]
FIXTURES: dict[tuple[str, str], float] = {}  # (name, module) -> processor seconds


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """A module's fixture belongs to each test that asks for it: one that runs alone pays for it."""
    before = sum(os.times()[:4])
    value = yield
    if fixturedef.scope == "module":
        spent = sum(os.times()[:4]) - before
        FIXTURES[fixturedef.argname, request.node.nodeid] = spent
        SPENT[0] += spent
    return value


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Processor seconds of a phase, its commands included: a busy machine adds none."""
    report = yield
    now = sum(os.times()[:4])
    report.seconds, SPENT[0] = now - SPENT[0] if SPENT[0] else report.duration, now
    if call.when == "setup":
        module = item.nodeid.partition("::")[0]
        report.seconds += sum(FIXTURES.get((n, module), 0) for n in item.fixturenames)
    return report


def pytest_runtest_logreport(report):
    """Add up the processor seconds of each test."""
    SECONDS[report.nodeid] = SECONDS.get(report.nodeid, 0.0) + getattr(report, "seconds", 0.0)


def pytest_sessionfinish(session):
    """Record the seconds where JAXMERGE_DURATIONS says."""
    path = os.environ.get("JAXMERGE_DURATIONS")
    if path and not hasattr(session.config, "workerinput"):
        sampling.record(SECONDS, Path(path))


def pytest_collection_finish():
    """Collect garbage rarely: what JAX keeps is looked through in vain, a tenth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden files and real data (JAXMERGE_SHARED, or ../shared); skips without.

    A test that needs one part of it says so: ``if not (shared / "golden").exists(): pytest.skip``.
    """
    folder = Path(os.environ.get("JAXMERGE_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set JAXMERGE_SHARED to its folder)")
    return folder


@pytest.fixture
def strict():
    """Refuse implicit rank promotion: array math on a leaf must say which axes it broadcasts."""
    import jax

    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """float64 arithmetic for the length of one test."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def room_for_code(request):
    """Forget compiled functions before there are too many of them.

    XLA maps each one into memory several times; the kernel allows a process 65,530 maps, and past
    them a compilation crashes.  The count is looked at every 4 tests.
    """
    yield
    request.config.ran = getattr(request.config, "ran", 0) + 1
    maps = Path("/proc/self/maps")
    if request.config.ran % 4 == 0 and maps.exists():
        with maps.open() as lines:
            count = sum(1 for _ in lines)
        if count > 15_000:
            import jax

            jax.clear_caches()
