"""edge.isolate: what a child does wrong becomes one error here."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edge import errors, isolate

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _stages_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def call(name: str, request: dict[str, Any], workdir: Path, **options: Any) -> dict[str, Any]:
    return isolate.call(f"tests.isolated_stages:{name}", request, workdir=workdir, **options)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Any, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_stage_returns_its_result_and_its_progress(tmp_path: Path) -> None:
    """A result comes back, and progress that the child reports reaches the parent."""
    seen: list[tuple[str, float | None]] = []
    result = call("double", {"value": 21}, tmp_path, progress=lambda text, share: seen.append((text, share)))
    assert result == {"value": 42}
    assert seen == [("doubling", 0.5)]


def test_a_segmentation_fault_is_a_message_with_the_log(tmp_path: Path) -> None:
    """A crash in a child is StageCrashError (exit 3) that names the signal and a log with its last words."""
    with pytest.raises(errors.StageCrashError, match="SIGSEGV") as caught:
        call("segfault", {}, tmp_path)
    assert caught.value.exit_code == 3
    assert caught.value.log is not None
    assert "about to read address 0" in Path(caught.value.log).read_text()


def test_an_error_of_edgekit_keeps_its_class_and_hint(tmp_path: Path) -> None:
    """An EdgekitError raised in the child is the same class, message and hint in the parent."""
    with pytest.raises(errors.SourceError, match="the model is odd") as caught:
        call("refuse", {}, tmp_path)
    assert caught.value.hint == "make it even"


def test_a_foreign_exception_gives_its_type_and_first_line(tmp_path: Path) -> None:
    """Any other exception is a ToolError with type and first line; the log has the traceback."""
    with pytest.raises(errors.ToolError, match=r"ValueError: first line$") as caught:
        call("foreign_error", {}, tmp_path)
    assert "second line" in Path(str(caught.value.log)).read_text()


def test_a_missing_package_says_how_to_install(tmp_path: Path) -> None:
    """ModuleNotFoundError in a stage names the package and the extra."""
    with pytest.raises(errors.MissingPackageError, match="a_package_that_nobody_has") as caught:
        call("missing_package", {}, tmp_path)
    assert "edgekit[all]" in str(caught.value.hint)


def test_a_stage_that_hangs_is_stopped(tmp_path: Path) -> None:
    """After its time a child is ended, with all it started, and StageTimeoutError says so."""
    pid_file = tmp_path / "pid"
    with pytest.raises(errors.StageTimeoutError, match=r"longer than 1\.5 s"):
        call("hang", {"pid_file": str(pid_file)}, tmp_path, timeout_s=1.5)
    assert wait_until(lambda: not alive(int(pid_file.read_text())))


def test_an_interrupt_ends_the_child(tmp_path: Path) -> None:
    """Ctrl-C in the parent leaves no child behind."""
    pid_file = tmp_path / "pid"

    def interrupt() -> None:
        wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        call("hang", {"pid_file": str(pid_file)}, tmp_path)
    assert wait_until(lambda: not alive(int(pid_file.read_text())))


def test_too_much_memory_is_refused(tmp_path: Path) -> None:
    """A child that wants more than its limit ends with StageMemoryError, not with a dead machine."""
    with pytest.raises(errors.StageMemoryError):
        call("allocate", {"bytes": 4 * 2**30}, tmp_path, memory_bytes=2**30)


def test_an_exit_without_answer_gives_the_last_line(tmp_path: Path) -> None:
    """A child that ends without an answer is a ToolError with exit code and last line."""
    with pytest.raises(errors.ToolError, match="exit code 3: converter says no"):
        call("silent_exit", {}, tmp_path)


def test_a_crash_after_the_answer_does_not_matter(tmp_path: Path) -> None:
    """Frameworks that crash while Python shuts down do not lose a finished result."""
    assert call("odd_exit_after_answer", {}, tmp_path) == {"value": 1}


def test_the_memory_limit_variable_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """EDGEKIT_MEMORY_LIMIT_GB that is no number is a ConfigError that quotes it."""
    monkeypatch.setenv("EDGEKIT_MEMORY_LIMIT_GB", "much")
    with pytest.raises(errors.ConfigError, match="'much'"):
        isolate.default_memory_limit()


def test_stages_run_together_and_in_their_own_order(tmp_path: Path) -> None:
    """Several stages at once give each its own result."""
    folders = [tmp_path / str(n) for n in range(5)]
    for folder in folders:
        folder.mkdir()
    with isolate.together(len(folders)) as submit:
        made = [submit(call, "double", {"value": n}, folder) for n, folder in enumerate(folders)]
        assert [m.result() for m in made] == [{"value": 2 * n} for n in range(5)]


def test_a_failure_stops_the_stages_beside_it(tmp_path: Path) -> None:
    """Where one of several fails, the others are stopped at once, and none is left running."""
    folders = [tmp_path / "hang", tmp_path / "refuse"]
    for folder in folders:
        folder.mkdir()
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(errors.SourceError), isolate.together(2) as submit:
        submit(call, "hang", {"pid_file": str(pid_file)}, folders[0])
        assert wait_until(lambda: pid_file.exists() and pid_file.read_text())
        submit(call, "refuse", {}, folders[1]).result()
    assert time.monotonic() - started < 60
    assert wait_until(lambda: not alive(int(pid_file.read_text())))
