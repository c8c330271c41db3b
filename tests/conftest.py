"""Shared by all tests: one thread a process, CPU unless a test is marked gpu, repeatable
hypothesis, the real data where it is there."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator
from multiprocessing import forkserver as forkserver_module
from multiprocessing import resource_tracker
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    # before numpy or torch is imported; ranks of a test share the cores
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("USE_HUB_KERNELS", "NO")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the hub
# What a script starts in the background inherits an ignored Ctrl-C; programs under test may not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from progress import Progress, place  # noqa: E402
from real_data import REAL_DATA  # noqa: E402
from waiting import adopt_orphans, descendants, wait_until  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent

# Deterministic: the same examples on every machine, so that a failure here is a failure there.
# `HYPOTHESIS_PROFILE=search` looks further.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "search", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_configure(config: pytest.Config) -> None:
    """A line a file, from the process that prints; with -vv a line a test."""
    if not hasattr(config, "workerinput") and config.option.verbose <= 0:
        config.pluginmanager.register(Progress(config))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules are no garbage: no collections while they come."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What is imported by now stays: megatron-core and the dry run collect garbage often, and would
    look through all of it each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Else libraries report what is left at the end of this process."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Fails the session, and names them, when processes that tests started outlive all tests."""
    adopt_orphans()
    yield
    rendering = sys.modules.get("megaladder.data.chat.rendering")
    for renderer in list(rendering._RENDERERS.values()) if rendering else ():
        renderer._close()  # of a tokenizer that is still there
    # these two serve Python's multiprocessing in this process until it ends
    forkserver, tracker = forkserver_module._forkserver, resource_tracker._resource_tracker
    servants = {forkserver._forkserver_pid, tracker._pid}
    try:
        wait_until(
            lambda: descendants().keys() <= servants, "the end of all child processes", timeout=240
        )
    except AssertionError:
        left = {pid: line for pid, line in descendants().items() if pid not in servants}
        pytest.fail(f"tests left processes behind: {left}")
    forkserver._stop()
    tracker._stop()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top folder of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of gsm8k, math500, aime24 and amc23; tests that need it are skipped without it."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"{REAL_DATA} does not exist; `megaladder data get gsm8k math500` fills it")
    return REAL_DATA


@pytest.fixture(scope="session")
def engine_server() -> Iterator[str]:
    """Where forks of a process that has imported vLLM are to be had (see `forked_engines.py`)."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from forked_engines import server

    with server() as door:
        yield door


@pytest.fixture
def forked_engines(engine_server: str) -> Iterator[None]:
    """Every VllmEngine of the test is such a fork."""
    from forked_engines import using

    with using(engine_server):
        yield
