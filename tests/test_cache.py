"""edge.cache and edge.content: what was computed from the same content is found again, and nothing else is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import artifact, cache, isolate, pipeline, project, scratch
from edge.content import Digests, recording_reads
from edge.errors import ConfigError, StageCrashError
from tests.small_models import classifier, labelled_data

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@dataclass
class Bench:
    """A stage that counts its runs, with its user's files."""

    folder: Path

    def __post_init__(self) -> None:
        self.input, self.beside = self.folder / "input.txt", self.folder / "beside.txt"
        self.input.write_text("ab")
        self.beside.write_text("!")
        self.roots = 0

    def call(self, parts: object = None, *, use: bool = True) -> Path:
        """Run the stage in a new working folder and return the file that it names."""
        self.roots += 1
        root = self.folder / f"work-{self.roots}"
        root.mkdir()
        request = {
            "counter": str(self.folder / "counter"),
            "input": str(self.input),
            "beside": str(self.beside),
            "workdir": str(root),
        }
        job = cache.Job(
            stage="tests.isolated_stages:counted",
            request=request,
            root=root,
            workdir=root,
            name="counted",
            timeout_s=60.0,
            content=[str(self.input)],
            parts=parts,
        )
        answer = cache.call(job, isolate.no_progress, use=use)
        assert answer["text"] == f"see {answer['file']}"
        assert Path(answer["file"]).is_relative_to(root)
        return Path(answer["file"])

    @property
    def runs(self) -> int:
        counter = self.folder / "counter"
        return len(counter.read_text().splitlines()) if counter.exists() else 0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Return a bench in a folder of its own."""
    return Bench(tmp_path)


def test_the_same_content_is_not_computed_again(bench: Bench) -> None:
    """A second call copies the file into its own working folder, and names in the answer point there."""
    first = bench.call()
    second = bench.call()
    assert first != second
    assert second.read_text() == "abab!"
    assert bench.runs == 1


def test_each_thing_that_a_result_depends_on_makes_it_new(bench: Bench) -> None:
    """Another input, another file that the stage opened, or other parts: each is computed, and going back is found."""
    bench.call()
    bench.input.write_text("cd")
    assert bench.call().read_text() == "cdcd!"
    assert bench.runs == 2
    bench.beside.write_text("?")
    assert bench.call().read_text() == "cdcd?"
    assert bench.runs == 3
    bench.call(parts="other")
    assert bench.runs == 4
    bench.call()
    assert bench.runs == 4


def test_a_setting_of_edgekit_and_a_package_make_results_new(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The fingerprint of the tools holds the environment's EDGEKIT_ settings and each installed package."""
    digests = Digests()
    before = cache.fingerprint(digests)
    monkeypatch.setenv("EDGEKIT_EDGETPU_COMPILER", "/opt/compiler")
    assert cache.fingerprint(digests) != before
    monkeypatch.delenv("EDGEKIT_EDGETPU_COMPILER")
    assert cache.fingerprint(digests) == before
    (tmp_path / "foreign" / "thing-1.0.dist-info").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "foreign")])
    assert cache.fingerprint(digests) != before


def test_a_result_of_another_folder_with_other_neighbours_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders with equal scripts and other weights beside them give two results through one cache."""

    def answers(folder: str) -> Any:
        monkeypatch.chdir(tmp_path / folder)
        (root := tmp_path / folder / "work").mkdir(exist_ok=True)
        job = cache.Job(
            stage="tests.isolated_stages:neighbour",
            request={"source": "net.py"},
            root=root,
            workdir=root,
            name="neighbour",
            timeout_s=60.0,
            content=["net.py"],
        )
        said: list[str] = []
        answer = cache.call(job, lambda text, _: said.append(text))
        return answer["text"], [s for s in said if s.endswith("taken from the cache")] != []

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text("the same")
        (tmp_path / folder / "net.pt").write_text(f"weights of {folder}")
    assert [answers(folder) for folder in "abab"] == [
        ("weights of a", False),
        ("weights of b", False),
        ("weights of a", True),
        ("weights of b", True),
    ]


_NET = """
from pathlib import Path
import torch
def make():
    net = torch.nn.Linear(4, 2).eval()
    net.load_state_dict(torch.load(Path(__file__).with_name("net.pt"), weights_only=True))
    return net, (torch.zeros(1, 4),)
"""


@pytest.mark.slow
@pytest.mark.frameworks
def test_equal_scripts_with_other_weights_are_other_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factory that loads the file beside it is imported anew in another folder, where net.py and data are equal."""
    import torch

    found = []
    for weight in (1.0, 2.0):
        (folder := tmp_path / f"net-{weight:g}").mkdir()
        (folder / "net.py").write_text(_NET)
        torch.save({"weight": torch.full((2, 4), weight), "bias": torch.zeros(2)}, folder / "net.pt")
        np.savez(folder / "data.npz", x=np.ones((8, 4), np.float32))
        monkeypatch.chdir(folder)
        (work := folder / "work").mkdir()
        settings = {"source": "net.py:make", "targets": ["android"], "evaluation": "data.npz"}
        imported = pipeline.import_source(project.resolve(settings), "exported", work, isolate.no_progress)
        found.append(artifact.sha256(imported.carrier))
    assert found[0] != found[1]


def test_without_the_cache_nothing_is_read_or_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """use=False and a limit of 0 both compute anew and leave no entry."""
    bench.call(use=False)
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "0")
    bench.call()
    bench.call()
    assert bench.runs == 3
    assert cache.store().entries() == []


@pytest.mark.parametrize("limit", ["-1", "much", "nan", "inf"])
def test_a_wrong_limit_is_refused(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that is no number from 0 is refused by name."""
    monkeypatch.setenv(cache.LIMIT_VARIABLE, limit)
    with pytest.raises(ConfigError, match=cache.LIMIT_VARIABLE):
        cache.limit_bytes()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "entry", "escape"])
def test_a_damaged_entry_is_computed_anew(bench: Bench, damage: str) -> None:
    """A stored file or entry that is not as it was written is never handed out, nor one that names another place."""
    bench.call()
    (entry,) = cache.store().entries()
    (stored,) = (entry.folder / "files").iterdir()
    described = entry.folder / "entry.json"
    match damage:
        case "flip":
            stored.write_bytes(bytes([stored.read_bytes()[0] ^ 1]) + stored.read_bytes()[1:])
        case "truncate":
            stored.write_bytes(stored.read_bytes()[:-1])
        case "remove":
            stored.unlink()
        case "entry":
            described.write_text(described.read_text()[:40])
        case "escape":
            described.write_text(described.read_text().replace("made/doubled.txt", "../../stolen.txt"))
    assert bench.call().read_text() == "abab!"
    assert bench.runs == 2
    assert not (bench.folder.parent / "stolen.txt").exists()
    assert bench.call().read_text() == "abab!"
    assert bench.runs == 2


def test_a_failure_is_not_stored(tmp_path: Path) -> None:
    """A stage that crashed crashes again: only answers are stored."""
    for n in range(2):
        root = tmp_path / f"w{n}"
        root.mkdir()
        job = cache.Job(
            stage="tests.isolated_stages:segfault", request={}, root=root, workdir=root, name="s", timeout_s=60
        )
        with pytest.raises(StageCrashError):
            cache.call(job, isolate.no_progress)
    assert cache.store().entries() == []


def test_results_that_were_used_last_stay(bench: Bench) -> None:
    """Beyond the limit the entry that was not used for longest goes first."""
    for part in "abc":
        bench.call(part)
    entries = cache.store().entries()
    for n, entry in enumerate(entries):
        os.utime(entry.folder, (n, n))
    sizes = sum(e.bytes for e in entries)
    assert cache.store().evict(sizes - 1) == 1
    assert {e.key for e in cache.store().entries()} == {e.key for e in entries[1:]}


def test_leftovers_of_killed_processes_go(bench: Bench) -> None:
    """A temporary folder whose maker is gone is removed with the next eviction; one of a living process stays."""
    bench.call()
    left = cache.store().folder / ".new-12345678"
    left.mkdir()
    with scratch.held(".new-", cache.store().folder) as living:
        left.mkdir(exist_ok=True)
        cache.store().evict(10**9)
        assert not left.exists()
        assert living.exists()


def test_many_builds_at_once_agree(bench: Bench) -> None:
    """Eight calls at the same time each get a whole result, and one entry remains."""
    found: list[str] = []
    benches = [Bench(_made(bench.folder / f"b{n}")) for n in range(8)]
    for b in benches:
        b.input, b.beside = bench.input, bench.beside
    threads = [threading.Thread(target=lambda b=b: found.append(b.call("same").read_text())) for b in benches]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == ["abab!"] * 8
    again = bench.runs
    bench.call("same")
    assert bench.runs == again + 1 or bench.runs == again
    assert not list(cache.store().folder.glob(".new-*"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_digest_is_remembered_only_while_the_file_is_the_same(tmp_path: Path) -> None:
    """A file with another content is read again even where size and mtime were set back to what they were."""
    path, memory = tmp_path / "f", tmp_path / "digests.sqlite"
    path.write_text("aaaa")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    first = Digests(memory)
    a = first.file(path)
    first.close()
    path.write_text("bbbb")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    second = Digests(memory)
    assert second.file(path) != a
    second.close()


def test_remembered_digests_save_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once its last change is some seconds old, a file's digest comes from the memory: the file is not opened."""
    path, memory = tmp_path / "f", tmp_path / "digests.sqlite"
    path.write_text("aaaa")
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr("edge.content.time.time_ns", lambda: later)
    first = Digests(memory)
    a = first.file(path)
    first.close()
    monkeypatch.setattr(Path, "open", _no_open)
    assert Digests(memory).file(path) == a


def _no_open(*_: Any, **__: Any) -> None:
    raise AssertionError("the file was opened")


def test_a_damaged_memory_is_thrown_away(tmp_path: Path) -> None:
    """A digest database that is no database costs nothing but its contents."""
    path, memory = tmp_path / "f", tmp_path / "digests.sqlite"
    path.write_text("aaaa")
    memory.write_bytes(b"no database at all, but long enough to be read as one" * 20)
    assert Digests(memory).file(path) == artifact.sha256(path)


def test_reads_of_the_users_files_are_recorded(tmp_path: Path) -> None:
    """Files that Python opens for reading are named, imported modules too; written and installed ones are not."""
    (tmp_path / "neighbour.py").write_text("value = 1\n")
    (tmp_path / "weights.txt").write_text("1")
    work = tmp_path / "work"
    code = (
        "import sys, json; from pathlib import Path; from edge.content import recording_reads\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"with recording_reads(Path({str(work)!r})) as seen:\n"
        "    import neighbour, colorsys\n"
        f"    open({str(tmp_path / 'weights.txt')!r}).read(); open({str(tmp_path / 'log')!r}, 'w').write('x')\n"
        "print(json.dumps(sorted(seen)))\n"
    )
    work.mkdir()
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == json.dumps([str(tmp_path / "neighbour.py"), str(tmp_path / "weights.txt")])


def test_recording_stops_with_its_block(tmp_path: Path) -> None:
    """What is read after the block is not recorded."""
    path = tmp_path / "f"
    path.write_text("x")
    with recording_reads(tmp_path / "work") as seen:
        pass
    path.read_text()
    assert seen == set()


def test_an_unchanged_build_runs_no_stage_and_a_new_target_only_its_own(tmp_path: Path) -> None:
    """The second build takes all from the cache and writes the same program; another target imports nothing."""
    (tmp_path / "net.tflite").write_bytes(classifier())
    np.savez(tmp_path / "data.npz", **labelled_data())
    settings = {
        "source": str(tmp_path / "net.tflite"),
        "targets": ["rpi4"],
        "calibration": str(tmp_path / "data.npz"),
        "output": str(tmp_path / "out"),
    }
    (first,) = pipeline.build(project.resolve(settings))
    said: list[str] = []
    (second,) = pipeline.build(project.resolve(settings), lambda text, _: said.append(text))
    assert [s.partition(":")[0] for s in said if s.endswith("taken from the cache")] == [
        "import",
        "build",
        "check",
        "latency",
    ]
    assert first.manifest.file("program") == second.manifest.file("program")
    assert first.manifest.metrics == second.manifest.metrics
    said.clear()
    pipeline.build(project.resolve({**settings, "targets": ["rpi4", "coral"]}), lambda text, _: said.append(text))
    taken = [s.partition(":")[0] for s in said if s.endswith("taken from the cache")]
    assert taken == ["import", "build", "latency"]
