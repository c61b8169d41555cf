"""Faults around a build: kills, a full disk, folders that refuse, two builds at once, damage, clocks that jump."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edge import artifact, errors, isolate, scratch
from tests.killing import Bench, kills
from tests.test_artifact import manifest

ROOT = Path(__file__).resolve().parents[1]
KILLS = 6


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return a folder with a model, a cache of its own and one build."""
    return Bench(tmp_path_factory.mktemp("f") / "b")


def write(folder: Path, content: bytes) -> None:
    with artifact.writing(folder) as work:
        (work / "model.tflite").write_bytes(content)
        artifact.write_manifest(work, manifest(), {"model.tflite": "program"})


def content(folder: Path) -> bytes:
    return artifact.read(folder).program.read_bytes()


# --- kills -------------------------------------------------------------------------------------------------------


def test_the_run_after_a_kill_is_right(bench: Bench) -> None:
    """After kill -9 at seeded moments nothing half-written counts and the next run is right, with nothing left over."""
    for kill in kills(bench, KILLS, seed=4):
        assert kill.artifact in ("none", "whole")


def test_a_killed_writer_leaves_a_folder_that_the_next_run_removes(tmp_path: Path) -> None:
    """Temporary folders of a killed writer go with the next one; those of a living writer stay."""
    script = (
        "import sys, time; from pathlib import Path; from edge import artifact\n"
        "with artifact.writing(Path(sys.argv[1])) as work:\n"
        "    (work / 'half').write_text('x'); print('there', flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as dead:
        assert dead.stdout is not None
        dead.stdout.readline()
        left = next(tmp_path.glob(".a.*"))
        write(tmp_path / "a", b"while it lives")
        assert left.is_dir()
        dead.send_signal(signal.SIGKILL)
    write(tmp_path / "a", b"after")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert content(tmp_path / "a") == b"after"


def test_an_artifact_that_was_taken_away_comes_back(tmp_path: Path) -> None:
    """Where two folders cannot change places in one step, a kill between the two steps loses nothing."""
    write(tmp_path / "a", b"old")
    aside = tmp_path / ".a.old.12345678"
    aside.mkdir()
    (tmp_path / "a").rename(aside / "artifact")
    with pytest.raises(RuntimeError), artifact.writing(tmp_path / "a"):
        assert content(tmp_path / "a") == b"old"
        raise RuntimeError("the new build fails")
    assert content(tmp_path / "a") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_without_an_exchange_the_folder_is_replaced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On systems without renameat2 the two-step way gives the same."""
    monkeypatch.setattr(artifact, "_exchanged", lambda *_: False)
    write(tmp_path / "a", b"old")
    write(tmp_path / "a", b"new")
    assert content(tmp_path / "a") == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_removed_before_its_lock_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making a scratch folder and locking it another run may clean up: the maker notices."""
    real = fcntl.flock
    stolen: list[Path] = []

    def steal(descriptor: int, how: int) -> None:
        if not stolen:
            (found,) = tmp_path.iterdir()
            stolen.append(found)
            found.rmdir()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", steal)
    with scratch.held(".x.", tmp_path) as made:
        assert made.is_dir()
        assert made != stolen[0]
    assert list(tmp_path.iterdir()) == []


# --- several at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [True, False])
def test_writers_of_one_folder_leave_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    """Many writers at once: each ends well or is told, a reader never sees a mixture, one artifact stays."""
    if not exchange:
        monkeypatch.setattr(artifact, "_exchanged", lambda *_: False)
    wrong: list[BaseException] = []

    def work(number: int) -> None:
        for turn in range(8):
            try:
                write(tmp_path / "a", f"{number}/{turn}".encode())
            except errors.OutputError:
                continue
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert content(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_two_builds_into_one_folder_both_end_well(bench: Bench) -> None:
    """Two builds at once into one output folder: both are right and the folder is whole."""
    both = [bench.start(), bench.start()]
    codes = [process.wait(300) for process in both]
    assert codes == [0, 0], (bench.folder / "said").read_text()
    assert bench.digests() == bench.reference
    assert [p.name for p in bench.out.iterdir()] == [bench.made.name]


# --- disks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["write_much", "native_write_much"])
def test_a_child_that_writes_too_much_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """A file beyond EDGEKIT_FILE_LIMIT_GB is an error that names the variable; the disk is not filled."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("EDGEKIT_FILE_LIMIT_GB", "0.001")
    request = {"path": str(tmp_path / "big")}
    with pytest.raises(errors.StageFileError, match=r"larger than 0\.001 GiB") as caught:
        isolate.call(f"tests.isolated_stages:{stage}", request, workdir=tmp_path)
    assert "EDGEKIT_FILE_LIMIT_GB" in str(caught.value.hint)
    assert (tmp_path / "big").stat().st_size <= 2**30 // 1000


@pytest.mark.parametrize("text", ["much", "0", "-1", "nan", "inf", "1e300"])
def test_the_file_limit_must_be_a_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """EDGEKIT_FILE_LIMIT_GB that is no size is a ConfigError that quotes it."""
    monkeypatch.setenv("EDGEKIT_FILE_LIMIT_GB", text)
    with pytest.raises(errors.ConfigError, match=f"EDGEKIT_FILE_LIMIT_GB is '{text}'"):
        isolate.default_file_limit()


def test_what_a_child_leaves_behind_is_below_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files of a child are made in its working folder and go with it, however the child ends."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(isolate, "_LONGEST_TEMPORARY", 1000)
    answer = isolate.call("tests.isolated_stages:temporary_folder", {}, workdir=tmp_path)
    assert Path(answer["folder"]).parent == tmp_path


def _can_mount() -> bool:
    return subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can_mount(), reason="needs user namespaces to make a small disk")
@pytest.mark.parametrize("full", ["out", "tmp", "cache"])
def test_a_full_disk_is_told_and_the_next_run_is_right(bench: Bench, full: str) -> None:
    """A full disk for output or temporary files is told; a cache that is full is done without."""
    small = {"out": bench.out, "tmp": bench.tmp, "cache": bench.cache}[full]
    command = "edge build net.tflite --target rpi4 --calibration data.npz --latency none -q -o"
    # A page for folders, none for what is to be stored.
    script = f"mount -t tmpfs -o size=4k none {small} && {sys.executable} -m {command} {bench.out}; code=$?; "
    script += f"ls -A {small}; exit $code"
    own = {"TMPDIR": str(bench.tmp), "EDGEKIT_CACHE": str(bench.cache), "PYTHONPATH": str(ROOT)}
    subprocess.run(["rm", "-rf", str(bench.cache / "stages")], check=True)
    bench.cache.mkdir(exist_ok=True)
    command_line = ["unshare", "-Urm", "sh", "-c", script]
    done = subprocess.run(
        command_line, cwd=bench.folder, env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    if full == "cache":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 3, done.stderr
        assert "No space is left" in done.stderr
    bench.run_to_end()
    assert bench.digests() == bench.reference


def test_folders_that_refuse_are_told(bench: Bench) -> None:
    """Where the output cannot be written, the build says so; a cache that refuses is done without."""
    own = {"TMPDIR": str(bench.tmp), "EDGEKIT_CACHE": "/sys/kernel/edgekit", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "edge", "build", "net.tflite", "--target", "rpi4", "--calibration", "data.npz"]
    command += ["--latency", "none", "-q", "-o", str(bench.out)]
    done = subprocess.run(
        command, cwd=bench.folder, env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert bench.digests() == bench.reference
    command[-1] = "/sys/kernel/out"
    done = subprocess.run(
        command, cwd=bench.folder, env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "read-only" in done.stderr


# --- damage and clocks -------------------------------------------------------------------------------------------


def test_any_damage_to_the_cache_changes_nothing(bench: Bench) -> None:
    """Whatever byte of the cache is flipped, whichever file is cut or removed: the build is right."""
    bench.run_to_end()
    rng = random.Random(11)
    for _ in range(4):
        files = sorted(p for p in bench.cache.rglob("*") if p.is_file() and p.stat().st_size)
        for victim in rng.sample(files, min(6, len(files))):
            data = bytearray(victim.read_bytes())
            at = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                    victim.write_bytes(data)
                case 1:
                    victim.write_bytes(data[:at])
                case _:
                    victim.unlink()
        bench.run_to_end()
        assert bench.digests() == bench.reference
        assert bench.cached_files_wrong() == []


@pytest.mark.parametrize("shift_s", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_clock_jumps_change_nothing(bench: Bench, shift_s: int) -> None:
    """Files and entries from another decade, past or future: the build is right, and a changed source is seen."""
    bench.run_to_end()
    stamp = time.time() + shift_s
    for path in [*bench.cache.rglob("*"), *bench.folder.glob("*"), *bench.made.rglob("*")]:
        if path.exists():
            os.utime(path, (stamp, stamp))
    bench.run_to_end()
    assert bench.digests() == bench.reference
    source = bench.folder / "net.tflite"
    kept, state = source.read_bytes(), source.stat()
    from tests.small_models import classifier

    changed = classifier(disturbed=0.01)
    assert len(changed) == len(kept)
    source.write_bytes(changed)
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    try:
        bench.run_to_end()
        assert bench.digests() != bench.reference
    finally:
        source.write_bytes(kept)
    bench.run_to_end()
    assert bench.digests() == bench.reference
