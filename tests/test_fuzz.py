"""A seeded part of the fuzz suite (`python -m tests.fuzz` runs the whole), and what the harness itself notices."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.errors import SourceError
from edge.targets.litert import flatbuffer, verify
from tests.fuzz import corpus, harness, mutators
from tests.fuzz.harness import Reader
from tests.fuzz.readers import READERS

ROOT = Path(__file__).resolve().parents[1]
CASES = int(os.environ.get("EDGEKIT_FUZZ_CASES", "20"))
OWN = [name for name, reader in READERS.items() if not reader.isolated and not reader.frameworks]
FOREIGN = [name for name, reader in READERS.items() if reader.frameworks]
ISOLATED = [name for name, reader in READERS.items() if reader.isolated]


def fuzz(names: list[str], cases: int, seed: int) -> subprocess.CompletedProcess[str]:
    chosen = [word for name in names for word in ("--reader", name)]
    command = [sys.executable, "-m", "tests.fuzz", "--cases", str(cases), "--isolated-cases", str(cases)]
    return subprocess.run(
        [*command, "--seed", str(seed), *chosen], cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False
    )


@pytest.mark.parametrize("part", range(4))
def test_readers_refuse_broken_input_in_words(part: int) -> None:
    """No reader crashes, hangs, takes all memory or shows a traceback on seeded broken inputs."""
    done = fuzz(OWN[part::4], CASES, 1)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("name", FOREIGN)
def test_readers_of_stages_refuse_broken_models_in_words(name: str) -> None:
    """Nothing that frameworks or edgekit do with a broken model in a stage crashes, hangs or takes all memory."""
    done = fuzz([name], CASES, 1)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("name", ISOLATED)
def test_commands_refuse_broken_models_in_words(name: str) -> None:
    """Models that frameworks read are read in a child process: whatever happens there is one message."""
    done = fuzz([name], 2, 1)
    assert done.returncode == 0, done.stdout + done.stderr


def _found(read: object, tmp_path: Path) -> list[str]:
    reader = Reader(name="r", corpus=lambda: [b"whole"], mutate=mutators.raw, read=read, accepts=False)  # type: ignore[arg-type]
    return [f.what for f in harness.run(reader, 2, 0).findings]


def test_the_harness_notices_what_readers_must_not_do(tmp_path: Path) -> None:
    """A foreign exception, the end of the process, and a file outside of the folder are findings."""

    def unless_whole(act: object) -> object:
        return lambda path: None if path.read_bytes() == b"whole" else act(path)  # type: ignore[operator]

    assert "ValueError: x" in _found(unless_whole(lambda _: _raise(ValueError("x"))), tmp_path)
    assert harness._DIED in _found(unless_whole(lambda _: os.abort()), tmp_path)
    assert any("outside" in f for f in _found(unless_whole(lambda p: (p.parents[1] / "o").write_text("")), tmp_path))
    assert _found(lambda _: _raise(SourceError("in words")), tmp_path) == []


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("name", ["manifest", "tflite", "project-toml", "npz", "parcel"])
def test_the_same_seed_gives_the_same_cases(name: str) -> None:
    """A finding can be repeated by reader, seed and number, whatever cases were made before it."""
    reader = READERS[name]
    corpus = reader.corpus()
    made = harness.case_bytes(reader, corpus, 5, 7)
    for case in range(300):
        harness.case_bytes(reader, corpus, 5, case)
    assert harness.case_bytes(reader, reader.corpus(), 5, 7) == made


# --- the verifier of flatbuffers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [*corpus.tflites(), *corpus.compiled_models()])
def test_whole_flatbuffers_pass(data: bytes) -> None:
    """What edgekit and the compiler write is accepted."""
    verify.verify(data)


def test_every_field_of_the_schema_is_known() -> None:
    """The layout is read off the generated accessors: tables lead to tables, unions to their members."""
    layout = verify.layout()
    assert len(layout) > 150
    assert [f.kind for f in layout["SubGraph"].values()] == ["tables", "vector", "vector", "tables", "string", "scalar"]
    unions = [f for table in layout.values() for f in table.values() if f.kind == "union"]
    assert unions
    assert all(f.members and set(f.members.values()) <= set(layout) for f in unions)
    assert all(f.table in layout for table in layout.values() for f in table.values() if f.table)
    assert all(f.bytes in (1, 2, 4, 8) for t in layout.values() for f in t.values() if f.kind in ("scalar", "vector"))


def test_tables_that_share_parts_are_refused_at_once() -> None:
    """A small file whose references lead to a trillion parts is refused in a moment, not unpacked."""
    import flatbuffers

    count = 2000
    b = flatbuffers.Builder(1024)

    def table(fields: int, slot: int, value: int) -> int:
        b.StartObject(fields)
        b.PrependUOffsetTRelativeSlot(slot, value, 0)
        return int(b.EndObject())

    def many(value: int) -> int:
        b.StartVector(4, count, 4)
        for _ in range(count):
            b.PrependUOffsetTRelative(value)
        return int(b.EndVector())

    b.StartObject(9)
    operator = b.EndObject()
    graph = table(5, 3, many(operator))
    model = table(8, 2, many(graph))
    b.Finish(model, flatbuffer.IDENTIFIER)
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"too many|refer to each other"):
        flatbuffer.load(bytes(b.Output()))
    assert time.monotonic() - started < 10


def test_a_vtable_before_the_file_is_refused() -> None:
    """An offset that leads out of the file is refused although Python would read on from the other end."""
    data = bytearray(corpus.tflites()[0])
    root = int.from_bytes(data[:4], "little")
    data[root : root + 4] = (root + 64).to_bytes(4, "little", signed=True)
    with pytest.raises(SourceError, match="offset leads to byte -64"):
        flatbuffer.load(bytes(data))
