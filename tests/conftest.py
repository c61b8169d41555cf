"""What all tests share."""

import os
import signal

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the files named above as `slow`."""
    for item in items:
        if item.path.stem.removeprefix("test_").startswith(WHOLE):
            item.add_marker(pytest.mark.slow)
