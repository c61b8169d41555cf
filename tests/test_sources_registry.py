"""Which source opens which file, and what everything else is told."""

from __future__ import annotations

import importlib.util
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edge.cli import sources as cli
from edge.errors import SourceError, UsageError
from edge.sources import registry
from edge.sources.declared import file_digest, static_shape, unique
from edge.sources.sniff import sniff
from tests.tflite_builder import GraphBuilder

MODELS = Path(__file__).resolve().parents[1] / "../shared/models"


def archive(path: Path, *names: str) -> str:
    """Write a zip archive with these members."""
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return str(path)


@pytest.mark.parametrize(
    ("names", "content"),
    [
        (("config.json", "metadata.json", "model.weights.h5"), "keras"),
        (("m/archive_format", "m/models/model.json"), "pt2"),
        (("m/code/__torch__.py", "m/constants.pkl", "m/data.pkl"), "torchscript"),
        (("m/code/__torch__.py", "m/constants.pkl", "m/bytecode.pkl"), "torch-lite"),
        (("m/data.pkl", "m/data/0"), "torch-pickle"),
        (("x.npy", "y.npy"), "numpy"),
        (("readme.txt",), "unknown"),
    ],
)
def test_archives_are_told_apart_by_their_members(tmp_path: Path, names: tuple[str, ...], content: str) -> None:
    """The members of an archive say what it is; the file's name does not matter."""
    assert content == sniff(archive(tmp_path / "model.bin", *names))


@pytest.mark.parametrize(
    ("head", "content"),
    [
        (b"\x1c\0\0\0TFL3" + bytes(20), "tflite"),
        (b"\x1c\0\0\0ET12" + bytes(20), "executorch"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "hdf5"),
        (b"\x08\x07\x12\x07pytorch", "onnx"),
        (b"\x08\x01\x12\xb4\x90\x01", "saved-model"),
        (b"\x0a\x1f\x0a\x05input", "frozen-graph"),
        (b"hello, this is text", "unknown"),
    ],
)
def test_files_are_told_apart_by_their_first_bytes(tmp_path: Path, head: bytes, content: str) -> None:
    """Magic bytes, and the first fields of protocol buffers, say what a file is."""
    path = tmp_path / "model"
    path.write_bytes(head)
    assert content == sniff(str(path))


def test_builtin_sources_are_found(tmp_path: Path) -> None:
    """Each kind of content reaches its source."""
    builder = GraphBuilder()
    builder.output(builder.op("ADD", [builder.input("x", (1, 2))] * 2, (1, 2)), "y")
    (tmp_path / "a.tflite").write_bytes(builder.build())
    (tmp_path / "m.py").write_text("def make(): ...\n")
    keras = archive(tmp_path / "m.keras", "config.json", "metadata.json", "model.weights.h5")
    found = [registry.detect(f"{tmp_path}/{name}").kind for name in ("a.tflite", "m.py:make")]
    assert [*found, registry.detect(keras).kind] == ["litert", "torch", "keras"]
    script = archive(tmp_path / "m.pt", "m/code/__torch__.py", "m/constants.pkl")
    assert registry.detect(script).kind == "torchscript"
    for kind, files in {
        "onnx": {"m.onnx": b"\x08\x07\x12\x07pytorch"},
        "frozen-graph": {"graph.pb": b"\x0a\x1f\x0a\x05input"},
        "saved-model": {"saved/saved_model.pb": b"\x08\x01\x12"},
        "hugging-face": {"hub/config.json": b"{}", "hub/model.safetensors": b"{}"},
    }.items():
        for name, data in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
        path = tmp_path / next(iter(files))
        assert registry.detect(str(path.parent if path.parent != tmp_path else path)).kind == kind


@pytest.mark.parametrize("ending", ["bin", "onnx", "tflite", "h5", "pt", "py.model"])
def test_a_wrong_ending_does_not_matter(ending: str, tmp_path: Path) -> None:
    """Real files of each kind under another kind's ending are what they contain."""
    builder = GraphBuilder()
    builder.output(builder.op("ADD", [builder.input("x", (1, 2))] * 2, (1, 2)), "y")
    made: dict[str, bytes] = {"tflite": builder.build()}
    if importlib.util.find_spec("onnx"):
        from tests.onnx_models import model, node

        made["onnx"] = model([node("Relu", ["x"], ["y"])], {"x": [1, 4]}, ["y"]).SerializeToString()
    if importlib.util.find_spec("h5py"):
        import h5py

        with h5py.File(tmp_path / "h5", "w") as file:
            file.attrs["model_config"] = "{}"
        made["hdf5"] = (tmp_path / "h5").read_bytes()
    for content, data in made.items():
        path = tmp_path / f"{content}.{ending}"
        path.write_bytes(data)
        assert sniff(str(path)) == content


@pytest.mark.skipif(not MODELS.is_dir(), reason="the shared models are absent")
@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("mlperf-vww-mobilenet/vww_96.h5", "keras"),
        ("mlperf-vww-mobilenet/vww_96_float.onnx", "onnx"),
        ("mlperf-vww-mobilenet/vww_96_float.tflite", "litert"),
        ("onnx-mnist/mnist.onnx", "onnx"),
        ("torch-silero-vad/silero_vad.jit", "torchscript"),
        ("mlperf-kws-dscnn/kws_ref_model/saved_model.pb", "saved-model"),
        ("mediapipe-face-tflite/face_landmark.tflite", "litert"),
    ],
)
def test_real_models_without_an_ending(location: str, kind: str, tmp_path: Path) -> None:
    """Models of the field are known by their content when their name says nothing."""
    (tmp_path / "model").symlink_to(MODELS / location)
    assert registry.detect(str(tmp_path / "model")).kind == kind


def test_every_kind_says_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of kinds has each built-in one, with installed versions; a missing package makes it not ready."""
    found = {k.kind: k for k in registry.kinds()}
    assert set(registry.names()) <= set(found)
    assert found["litert"].ready == (registry._version("ai-edge-litert") is not None)
    monkeypatch.setitem(registry._ABOUT, "onnx", ("ONNX", ("numpy", "no-such-distribution"), "onnx"))
    missing = next(k for k in registry.kinds() if k.kind == "onnx")
    assert (missing.ready, missing.packages["no-such-distribution"]) == (False, None)
    assert missing.as_dict()["routes"] == {c: ["graph", "onnx2torch"] for c in ("litert", "exported")}
    assert set(found["jax"].optional) == {"flax", "equinox"}
    assert missing.as_dict()["packages"] == {"numpy": np.__version__, "no-such-distribution": None}


def test_sources_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command lists each kind with what is missing and the extra that brings it."""
    monkeypatch.setitem(registry._ABOUT, "onnx", ("ONNX .onnx", ("no-such-distribution",), "onnx"))
    cli.sources(json_=False)
    out = capsys.readouterr().out
    assert "missing: no-such-distribution (pip install 'edgekit[onnx]')" in out
    assert "to ExecuTorch, PyTorch Mobile, Core ML: flatbuffer, then torch-backend" in out
    for text in ("Flax and Equinox", "Keras 2 with its optimizer's slots", "float16"):
        assert text in out
    cli.sources(json_=True)
    assert {"kind": "onnx", "ready": False}.items() <= {**json.loads(capsys.readouterr().out)[3]}.items()


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (("m/code/__torch__.py", "m/constants.pkl", "m/bytecode.pkl"), "a PyTorch Mobile program"),
        (("m/data.pkl",), "a state_dict or a pickled module"),
        (("x.npy",), "NumPy data, not a model"),
        (("readme.txt",), "is of no known kind"),
    ],
)
def test_unsupported_archives_are_named(tmp_path: Path, names: tuple[str, ...], part: str) -> None:
    """What cannot be built says what it is and what is accepted, and exits with 4."""
    with pytest.raises(SourceError, match=part) as caught:
        registry.detect(archive(tmp_path / "m.pt", *names))
    assert "accepted: Keras .keras" in caught.value.message
    assert caught.value.exit_code == 4


def test_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    """A missing file exits with 2 and names the path."""
    with pytest.raises(UsageError, match=r"No such file or folder: .*nothing\.keras") as caught:
        registry.detect(str(tmp_path / "nothing.keras"))
    assert caught.value.exit_code == 2


def test_python_file_without_function(tmp_path: Path) -> None:
    """A Python file alone says how to name a function."""
    path = tmp_path / "m.py"
    path.write_text("")
    with pytest.raises(UsageError, match="names no function") as caught:
        registry.detect(str(path))
    assert f"{path}:make_model" in (caught.value.hint or "")


def test_folders_empty_and_truncated_files_are_refused(tmp_path: Path) -> None:
    """A folder without a model, an empty file and half an archive each get their message."""
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="is of no known kind"):
        registry.detect(str(tmp_path / "saved"))
    (tmp_path / "empty.keras").write_bytes(b"")
    with pytest.raises(SourceError, match="is empty"):
        registry.detect(str(tmp_path / "empty.keras"))
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("config.json", b"x" * 100)
    (tmp_path / "half.keras").write_bytes(data.getvalue()[:80])
    with pytest.raises(SourceError, match="damaged or truncated archive"):
        registry.detect(str(tmp_path / "half.keras"))


def test_unknown_kind() -> None:
    """A kind without source lists the kinds that there are."""
    with pytest.raises(UsageError, match="accepted: keras, torch, litert"):
        registry.get("caffe")


def test_folder_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    """Renaming a member or changing its bytes changes the digest of a folder."""
    digests: set[str] = set()
    for name, data in (("a", b"1"), ("b", b"1"), ("a", b"2")):
        folder = tmp_path / f"{name}{len(digests)}"
        folder.mkdir()
        (folder / name).write_bytes(data)
        digests.add(file_digest(folder))
    assert len(digests) == 3


def test_unique_names() -> None:
    """Repeated names get a number, also where that name is taken."""
    assert unique(["a", "a", "a_1", "a"]) == ("a", "a_1", "a_1_1", "a_2")


def test_static_shape() -> None:
    """An open batch is 1; a declared shape fills the other open dimensions."""
    assert static_shape("x", (None, 3), None) == (1, 3)
    assert static_shape("x", (-1, -1, 3), (4, 7, 3)) == (4, 7, 3)
    assert static_shape("x", (), None) == ()
