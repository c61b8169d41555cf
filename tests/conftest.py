"""What all tests share."""

import os
import signal
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# The same cases everywhere, with no time limit on a busy machine; EDGEKIT_TESTS_RANDOM=1 looks for new ones.
random = bool(os.environ.get("EDGEKIT_TESTS_RANDOM"))
hypothesis.settings.register_profile("edgekit", derandomize=not random, deadline=None)
hypothesis.settings.load_profile("edgekit")

# Each test computes what it asserts: results of earlier runs are not taken. tests/test_cache.py sets its own.
os.environ["EDGEKIT_CACHE_LIMIT_GB"] = "0"

# A shell starts what runs in the background with Ctrl-C ignored, and children inherit that: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Whole builds, emulated boards, servers and compilers: `make unit` leaves them out, to end in about a minute.
WHOLE = (
    "apps_",
    "baseline",
    "build",
    "cache",
    "cli",
    "comparison",
    "devices_",
    "diagnose",
    "docs",
    "edgetpu_compiler",
    "examples",
    "farm",
    "faults",
    "fuzz",
    "history",
    "hostile",
    "isolate",
    "profiling",
    "report",
    "reproduction",
    "roofline",
    "search",
)


# These share emulated boards, each of which one run has at a time: of several workers one runs them all.
BOARDS = ("devices_", "edgetpu_rounding", "examples", "farm", "profiling")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the files of WHOLE as `slow`; several workers begin with what is long, for an even end."""
    for item in items:
        if _name(item.nodeid).startswith(WHOLE):
            item.add_marker(pytest.mark.slow)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(
            key=lambda item: (not _name(item.nodeid).startswith(BOARDS), not _name(item.nodeid).startswith(WHOLE))
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker whole files, which share what their fixtures make, and one worker all of BOARDS."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "boards" if _name(nodeid).startswith(BOARDS) else _name(nodeid)

    return Files(config, log)


def _name(nodeid: str) -> str:
    return Path(nodeid.partition("::")[0]).stem.removeprefix("test_")
