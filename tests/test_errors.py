"""edge.errors: what a strange file leads to is the file's fault, a mistake in the code is not."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import artifact, checkup, codec, errors, parcel
from edge.errors import ArtifactError, DataError, EdgekitError, SourceError, blaming
from edge.report import console
from edge.signature import TensorSpec
from tests.fuzz import corpus

SPEC = TensorSpec(name="x", shape=(1,))
CONTENT: dict[str, Callable[[], object]] = {
    "a key that is missing": lambda: {}["x"],  # type: ignore[index]
    "a text instead of a number": lambda: 1 + "x",  # type: ignore[operator]
    "a number instead of a table": lambda: (1).items,  # type: ignore[attr-defined]
    "no array": lambda: np.zeros(2).items,  # type: ignore[attr-defined]
    "no number": lambda: float("x"),
    "a seek before the file": lambda: _raise(OSError(errno.EINVAL, "Invalid argument")),
}
CODE: dict[str, Callable[[], object]] = {
    "a name": lambda: undefined,  # type: ignore[name-defined]  # noqa: F821
    "an attribute of our own class": lambda: SPEC.colour,  # type: ignore[attr-defined]
    "a method of our own class": lambda: TensorSpec.colour,  # type: ignore[attr-defined]
    "a function of a module": lambda: errors.colour,  # type: ignore[attr-defined]
    "a promise": lambda: _raise(AssertionError("never")),
    "a full disk": lambda: _raise(OSError(errno.ENOSPC, "No space left on device")),
}


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("what", list(CONTENT))
def test_what_strange_content_leads_to_is_an_error_in_words(what: str) -> None:
    """Values of a file that are not what a reader expects are the file's fault, with the reason."""
    with (
        pytest.raises(SourceError, match=r"^net\.x cannot be read: \w+Error: ."),
        blaming(SourceError, "net.x cannot be read"),
    ):
        CONTENT[what]()


@pytest.mark.parametrize("what", list(CODE))
def test_what_is_missing_in_the_code_is_not_blamed_on_the_file(what: str) -> None:
    """A name, an attribute of an own class or a promise that is missing is a bug; a full disk is one of the host."""
    with pytest.raises(Exception, match=r"\w") as caught, blaming(SourceError, "net.x cannot be read"):
        CODE[what]()
    assert not isinstance(caught.value, EdgekitError)


def _artifact(folder: Path, **details: Any) -> Path:
    folder.mkdir()
    for name, data in corpus.artifact_files().items():
        (folder / name).write_bytes(data)
    held = json.loads((folder / artifact.MANIFEST).read_text())
    held["details"] |= details
    (folder / artifact.MANIFEST).write_text(json.dumps(held))
    return folder


def test_a_manifest_that_cannot_be_understood_says_both_that_may_be_at_fault(tmp_path: Path) -> None:
    """The reason is told, and that it is a bug where nobody changed the manifest."""
    opened = artifact.read(_artifact(tmp_path / "a", search={"candidates": 5}))
    with pytest.raises(ArtifactError, match=r"a could not be understood: \w+Error: .") as caught:
        console.show(opened)
    assert caught.value.hint is not None
    assert "If nobody changed it, this is a bug" in caught.value.hint


def test_a_mistake_in_a_check_is_no_damaged_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what reads the manifest blames it: an error of the check's own arithmetic stays what it is."""

    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(checkup, "_check", broken)
    with pytest.raises(KeyError, match="ours"):
        checkup.check(_artifact(tmp_path / "a"), checkup.Request(latency_profile="none"))


@pytest.mark.parametrize("text", ["NaN", "[1e999]", '{"x": -Infinity}', "[" * 10**5, "{", "\x00"])
def test_json_from_outside_is_finite_and_not_too_deep(text: str) -> None:
    """What is no JSON, is nested without end or is not finite is a ValueError, as edgekit itself writes none."""
    with pytest.raises(ValueError, match=r"\w"):
        codec.loads(text)
    assert codec.loads('{"x": [1, 2.5, null]}') == {"x": [1, 2.5, None]}


# --- parcels -----------------------------------------------------------------------------------------------------


def test_a_parcel_has_what_links_lead_to(tmp_path: Path) -> None:
    """A folder of links to files elsewhere, as the hub's cache is, travels with the files' content."""
    (tmp_path / "blob").write_text("weights")
    (model := tmp_path / "model").mkdir()
    (model / "weights.bin").symlink_to(tmp_path / "blob")
    (there := tmp_path / "there").mkdir()
    parcel.unpack([parcel.pack(model, tmp_path)], there)
    assert (there / "model" / "weights.bin").read_text() == "weights"
    assert not (there / "model" / "weights.bin").is_symlink()


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"6"])
def test_a_parcel_holds_files_and_folders_only(kind: bytes, tmp_path: Path) -> None:
    """A parcel with a link, a device or a pipe is refused in words."""
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        entry = tarfile.TarInfo("odd")
        entry.type, entry.linkname = kind, "blob"
        made.addfile(entry)
    with pytest.raises(DataError, match="'odd' is neither a file nor a folder"):
        parcel.unpack([parcel.Parcel(path="odd", digest="", content=stream.getvalue())], tmp_path)


def test_a_parcel_that_would_leave_its_folder_is_refused(tmp_path: Path) -> None:
    """A name that leads outside, and bytes that are no archive, are errors in words; nothing is written."""
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        made.addfile(tarfile.TarInfo("../escape"))
    (place := tmp_path / "in").mkdir()
    for content in (stream.getvalue(), b"no archive"):
        with pytest.raises(DataError, match="net arrived damaged"):
            parcel.unpack([parcel.Parcel(path="net", digest="", content=content)], place)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
