"""Kills real builds with SIGKILL at random moments, and looks at what is left: for tests and benchmarks/kills.py."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge import artifact, scratch
from edge.cache import Store
from edge.content import Digests
from tests.small_models import classifier, labelled_data

ROOT = Path(__file__).resolve().parents[1]
TARGET = "rpi4"
_LIMIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill: when it was, in seconds from the start, whom it met, and whether the build was done by then."""

    after_s: float
    victim: str
    done: bool
    artifact: str


class Bench:
    """A folder with a small float model and data, a cache and temporary folder of its own, and the right answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out, self.tmp, self.cache = folder / "out", folder / "t", folder / "cache"
        for made in (self.out, self.tmp):
            made.mkdir(parents=True)
        (folder / "net.tflite").write_bytes(classifier())
        np.savez(folder / "data.npz", **labelled_data())
        started = time.monotonic()
        self.run_to_end()
        self.seconds = time.monotonic() - started
        self.reference = self.digests()

    def start(self) -> subprocess.Popen[bytes]:
        """Start a build."""
        command = [sys.executable, "-m", "edge", "build", "net.tflite", "--target", TARGET]
        command += ["--calibration", "data.npz", "--latency", "none", "-q", "-o", str(self.out)]
        own = {"TMPDIR": str(self.tmp), "EDGEKIT_CACHE": str(self.cache), "PYTHONPATH": str(ROOT)}
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **own}, stdout=subprocess.DEVNULL, stderr=said
            )

    def run_to_end(self) -> None:
        """Build; fail with what was said where the build does."""
        code = self.start().wait(_LIMIT_S)
        assert code == 0, (self.folder / "said").read_text(errors="replace")

    @property
    def made(self) -> Path:
        """The artifact's folder."""
        return self.out / f"net-{TARGET}"

    def digests(self) -> dict[str, str]:
        """Return the digests of the artifact's program and golden vectors; raises for one that is not whole."""
        found = artifact.read(self.made)
        return {f.path: f.sha256 for f in found.manifest.files if f.role in ("program", "golden", "carrier")}

    def cached_files_wrong(self) -> list[str]:
        """Return the stored files whose content is not what their name says."""
        digests = Digests()
        stored = (p for e in Store(self.cache / "stages").entries() for p in (e.folder / "files").iterdir())
        return [str(p) for p in stored if digests.file(p) != p.name]


def family(pid: int) -> list[int]:
    """Return a process and all that it started, outermost first; each thread has its own children."""
    found = [pid]
    for one in found:
        for children in Path("/proc", str(one), "task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
    return found


def living(pids: list[int]) -> list[int]:
    """Return those that still run."""
    return [p for p in pids if _state(p) not in ("", "Z", "X")]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def kill_once(bench: Bench, rng: random.Random) -> Kill:
    """Kill one build at a random moment and check everything; raises AssertionError for what is not as promised."""
    if rng.random() < 0.5:
        subprocess.run(["rm", "-rf", str(bench.cache)], check=True)
    fresh = rng.random() < 0.5
    if fresh:
        subprocess.run(["rm", "-rf", str(bench.made)], check=True)
    process = bench.start()
    after = rng.uniform(0.0, 1.1 * bench.seconds)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    members = family(process.pid) if process.poll() is None else []
    # Between two stages there is none to meet.
    victim = rng.choice(members[1:] or members) if members and rng.random() < 0.5 else process.pid
    done = process.poll() is not None
    if not done:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    process.wait(_LIMIT_S)
    _nobody_left(members)
    state = _after_kill(bench, existed=not fresh)
    bench.run_to_end()
    _after_next_run(bench)
    return Kill(after_s=after, victim="build" if victim == process.pid else "stage", done=done, artifact=state)


def _nobody_left(pids: list[int]) -> None:
    deadline = time.monotonic() + 20.0
    while living(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert living(pids) == [], "processes outlive the build that started them"


def _after_kill(bench: Bench, *, existed: bool) -> str:
    """An artifact is there whole or not at all, and one that was there before still is."""
    if not bench.made.exists():
        assert not existed, "the artifact that was there is gone"
        return "none"
    assert bench.digests() == bench.reference, "what stands there is not the artifact"
    return "whole"


def _after_next_run(bench: Bench) -> None:
    assert bench.digests() == bench.reference, "the next run gives another artifact"
    assert [p.name for p in bench.out.iterdir()] == [bench.made.name], "something is left beside the artifact"
    left = [p.name for p in bench.tmp.iterdir() if not p.name.startswith("edgekit-log-")]
    assert left == [], "something is left among temporary files"
    assert bench.cached_files_wrong() == [], "the cache holds what was not computed"
    assert list(scratch.abandoned(".new-", bench.cache / "stages")) == []


def kills(bench: Bench, count: int, seed: int) -> Iterator[Kill]:
    """Kill `count` builds; the same seed gives the same moments. A build that was done by then does not count."""
    met = 0
    for number in itertools.count():
        if met == count:
            return
        kill = kill_once(bench, random.Random(f"{seed}/{number}"))
        if not kill.done:
            met += 1
            yield kill
