"""Exported iOS packages and web packages, Android archives, and the command `edgekit export`."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st

from edge.apps import aar, golden
from edge.apps.bundle import ExportOptions
from edge.apps.contract import Contract
from edge.apps.export import export
from edge.apps.pins import Platform
from edge.errors import ConfigError, DataError
from tests import apps_artifacts, apps_programs

# --- Android archives -----------------------------------------------------------------------------


def _elf(*alignments: int, wide: bool = True, big: bool = False) -> bytes:
    """An ELF header with one PT_LOAD per alignment and a PT_NOTE."""
    order, size = ">" if big else "<", 56 if wide else 32
    ident = b"\x7fELF" + bytes([2 if wide else 1, 2 if big else 1, 1]) + bytes(9)
    offset = 64 if wide else 52
    address = "QQQ" if wide else "III"
    head = struct.pack(
        order + "HHI" + address + "IHHHHHH", 3, 183, 1, 0, offset, 0, 0, offset, size, len(alignments) + 1, 0, 0, 0
    )
    rows = [(1, a) for a in alignments] + [(4, 4)]
    if wide:
        body = b"".join(struct.pack(order + "IIQQQQQQ", kind, 5, 0, 0, 0, 0, 0, a) for kind, a in rows)
    else:
        body = b"".join(struct.pack(order + "IIIIIIII", kind, 0, 0, 0, 0, 0, 5, a) for kind, a in rows)
    return ident + head + body


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("big", [True, False])
def test_alignment_is_the_smallest_of_loadable_segments(wide: bool, big: bool) -> None:
    """PT_LOAD segments of 64 KiB and 4 KiB make 4 KiB; the note's alignment of 4 does not count."""
    assert aar.elf_alignment(_elf(65536, 4096, wide=wide, big=big)) == 4096


def test_alignment_of_a_real_library() -> None:
    """The library of the LiteRT wheel is read; GNU's readelf agrees where it is installed."""
    spec = importlib.util.find_spec("ai_edge_litert")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).with_name("libLiteRt.so")
    found = aar.elf_alignment(library.read_bytes())
    assert found in (4096, 16384, 65536)
    if shutil.which("readelf"):
        text = subprocess.run(["readelf", "-lW", str(library)], check=True, capture_output=True, text=True).stdout
        assert found == min(int(line.split()[-1], 16) for line in text.splitlines() if line.split()[:1] == ["LOAD"])


def _archive(path: Path, libraries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in libraries.items():
            archive.writestr(name, data)
    return path


def test_4_kib_libraries_are_found_in_an_aar(tmp_path: Path) -> None:
    """A 64-bit library of 4 KiB pages fails, one of 16 KiB passes, 32-bit ones need nothing."""
    names = {
        "jni/arm64-v8a/liba.so": _elf(4096),
        "jni/x86_64/libb.so": _elf(16384),
        "jni/armeabi-v7a/libc.so": _elf(4096, wide=False),
    }
    found = aar.check(_archive(tmp_path / "x.aar", {**names, "classes.jar": b""}))
    assert [(f.abi, f.alignment, f.ok) for f in found] == [
        ("arm64-v8a", 4096, False),
        ("x86_64", 16384, True),
        ("armeabi-v7a", 4096, True),
    ]


def test_stored_library_off_the_boundary_fails_in_an_apk(tmp_path: Path) -> None:
    """An APK's uncompressed library must begin at a multiple of 16 KiB; the same in an AAR is repacked anyway."""
    content = {"lib/arm64-v8a/liba.so": _elf(16384)}
    assert [f.ok for f in aar.check(_archive(tmp_path / "x.apk", content))] == [False]
    assert [f.ok for f in aar.check(_archive(tmp_path / "x.aar", content))] == [True]


@example(b"\x7fELF\x02\x01" + bytes(26) + b"\xff" * 8 + bytes(14) + b"\x38\0\x01\0" + bytes(8))
@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda b: b"\x7fELF\x02\x01" + b))
def test_damaged_libraries_are_refused_in_words(data: bytes) -> None:
    """Whatever the bytes are, the answer is a number or a DataError."""
    try:
        assert aar.elf_alignment(data) >= 0
    except DataError as error:
        assert error.message


def test_no_archive_is_refused(tmp_path: Path) -> None:
    """A text file is no Android archive."""
    (tmp_path / "x.aar").write_text("hello")
    with pytest.raises(DataError, match="cannot be read as an Android archive"):
        aar.check(tmp_path / "x.aar")


def test_assembled_aar_stores_the_model_on_a_boundary(tmp_path: Path) -> None:
    """The model is uncompressed at a multiple of 4 bytes and equal; the same content gives the same bytes."""
    path, model = tmp_path / "x.aar", bytes(range(256)) * 9
    what = {
        "package": "com.example.x",
        "minimum_sdk": 24,
        "classes": b"PK",
        "assets": {"model.tflite": model, "a.json": b"{}" * 99},
    }
    aar.assemble(path, **what)  # type: ignore[arg-type]
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("assets/model.tflite")
        start = aar.data_offset(archive, entry)
        assert (entry.compress_type, start % 4) == (zipfile.ZIP_STORED, 0)
        assert path.read_bytes()[start : start + len(model)] == model
        assert archive.testzip() is None
        assert archive.getinfo("assets/a.json").compress_type == zipfile.ZIP_DEFLATED
    aar.assemble(tmp_path / "y.aar", **what)  # type: ignore[arg-type]
    assert (tmp_path / "y.aar").read_bytes() == path.read_bytes()


# --- iOS ------------------------------------------------------------------------------------------


def _export(artifact: Path, folder: Path, platform: Platform, runtime: str | None = None) -> Contract:
    return export(artifact, folder, ExportOptions(platform=platform, runtime=runtime)).contract


PINS = {
    "litert": 'path: "../LiteRT"',
    "tflite": "'= 2.17.0'",
    "executorch": 'branch: "swiftpm-1.5.0"',
    "coreml": "dependencies: [\n    ]",
}


def _artifact(runtime: str, kind: str, folder: Path) -> Path:
    """Return an artifact of that kind with a real program of the runtime."""
    if runtime in ("litert", "tflite"):
        return apps_artifacts.MAKERS[kind](folder)
    return apps_programs.folder() / runtime / kind


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("kind", sorted(apps_artifacts.MAKERS))
@pytest.mark.parametrize("runtime", sorted(PINS))
def test_swift_package_is_pinned_and_parses(runtime: str, kind: str, tmp_path: Path) -> None:
    """Exact pins, resources that exist, no place left open; every Swift file parses where tree-sitter is installed."""
    made = export(
        _artifact(runtime, kind, tmp_path / "a"), tmp_path / "out", ExportOptions(platform="ios", runtime=runtime)
    )
    out, name = tmp_path / "out", made.name
    manifest = (out / (f"{name}.podspec" if runtime == "tflite" else "Package.swift")).read_text()
    assert PINS[runtime] in manifest
    assert ("backend_xnnpack" in manifest) == (runtime == "executorch")
    assert {p.name for p in (out / f"Sources/{name}/Resources").iterdir()} >= {"model_contract.json"}
    assert (out / f"Tests/{name}Tests/Resources/golden.bin").is_file()
    sources = list(out.rglob("*.swift"))
    assert not [p.name for p in sources if "@@" in p.read_text() or "//#" in p.read_text()]
    _parse(sources)


def test_delegates_decide_the_package_of_executorch(tmp_path: Path) -> None:
    """A program for Core ML's delegate links its backend on iOS and is refused for Android; Vulkan has its own AAR."""
    torch = {"runtime": "executorch", "suffix": ".pte", "tools": {"executorch": "1.5.1"}}
    apple = apps_artifacts.keywords(tmp_path / "a", details={"delegates": ["coreml", "portable"]}, **torch)
    _export(apple, tmp_path / "ios", "ios")
    manifest = (tmp_path / "ios/Package.swift").read_text()
    assert '.product(name: "backend_coreml", package: "executorch")' in manifest
    assert '.linkedFramework("CoreML"), .linkedLibrary("sqlite3")' in manifest
    with pytest.raises(ConfigError, match=r"calls ExecuTorch's coreml; org\.pytorch:executorch-android has xnnpack"):
        _export(apple, tmp_path / "no", "android")
    gpu = apps_artifacts.keywords(tmp_path / "b", details={"delegates": ["vulkan", "xnnpack"]}, **torch)
    assert _export(gpu, tmp_path / "gpu", "android").runtime.package == "org.pytorch:executorch-android-vulkan"


def test_versions_that_were_not_published_become_the_one_that_was(tmp_path: Path) -> None:
    """ExecuTorch 1.5.1 is on Maven and 1.5.0 is the Swift package of its programs."""
    artifact = apps_artifacts.keywords(
        tmp_path / "a", runtime="executorch", suffix=".pte", tools={"executorch": "1.5.1+cpu"}
    )
    assert _export(artifact, tmp_path / "ios", "ios").runtime.version == "1.5.0"
    assert _export(artifact, tmp_path / "android", "android").runtime.version == "1.5.1"


def _parse(sources: list[Path]) -> None:
    try:
        grammar, tree_sitter = importlib.import_module("tree_sitter_swift"), importlib.import_module("tree_sitter")
    except ImportError:
        return
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    for path in sources:
        assert not parser.parse(path.read_bytes()).root_node.has_error, path


def test_core_ml_package_is_packed_whole(tmp_path: Path) -> None:
    """A .mlpackage is a folder: all its files are resources, and its digest is that of its listing."""
    import hashlib
    from dataclasses import replace

    from edge import artifact as artifacts

    root = apps_artifacts.detector(tmp_path / "a", runtime="coreml")
    package = root / "model.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Manifest.json").write_text("{}")
    (package / "Data" / "w.bin").write_bytes(b"123")
    roles = {"model.mlpackage/Manifest.json": "program", "model.mlpackage/Data/w.bin": "extra", "golden.npz": "golden"}
    artifacts.write_manifest(root, replace(artifacts._parse(root / "manifest.json"), files=()), roles)  # type: ignore[arg-type]
    made = _export(root, tmp_path / "out", "ios")
    resources = tmp_path / "out/Sources/TwoOutputDetector/Resources/model.mlpackage"
    assert (resources / "Data/w.bin").read_bytes() == b"123"
    listing = [("Data/w.bin", b"123"), ("Manifest.json", b"{}")]
    text = "".join(f"{hashlib.sha256(data).hexdigest()} model.mlpackage/{name}\n" for name, data in listing)
    assert (made.model.file, made.model.sha256) == ("model.mlpackage", hashlib.sha256(text.encode()).hexdigest())


# --- web ------------------------------------------------------------------------------------------


def _node(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("node") is None:
        pytest.skip("needs node")
    command = ["node", "test/golden_node.js", *arguments]
    environment = {**os.environ, "EDGEKIT_LABELS": "1"}
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("kind", [*sorted(apps_artifacts.MAKERS), "ssd"])
def test_web_package_passes_its_golden_test_in_node(kind: str, tmp_path: Path) -> None:
    """JavaScript's pre- and postprocessing equal the build's; 20 more images are bit-exact."""
    stored = {"stored": "float32"} if kind == "classifier" else {}
    made = _export(getattr(apps_artifacts, kind)(tmp_path / "a", **stored), tmp_path / "out", "web")
    done = _node(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rng = np.random.default_rng(7)
    images = [rng.integers(0, 256, (*rng.integers(1, 99, 2), 3), dtype=np.uint8) for _ in range(20)]
    (tmp_path / "more.bin").write_bytes(golden.pack(golden.image_entries(made.inputs, images)))
    assert _node(tmp_path / "out", str(tmp_path / "more.bin")).returncode == 0


def test_web_package_notices_a_wrong_scale(tmp_path: Path) -> None:
    """One changed number in the contract fails the test."""
    _export(apps_artifacts.detector(tmp_path / "a"), tmp_path / "out", "web")
    path = tmp_path / "out/src/contract.js"
    path.write_text(path.read_text().replace("Math.fround(0.003921569)", "Math.fround(0.0039)"))
    assert "FAIL: image 0 becomes another input 0" in _node(tmp_path / "out").stderr


def test_nasty_names_mean_the_same_in_javascript(tmp_path: Path) -> None:
    """Labels and tensor names that try to break out of literals arrive unchanged, and the test passes."""
    _export(apps_artifacts.nasty(tmp_path / "a", stored="float32"), tmp_path / "out", "web")
    done = _node(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [*apps_artifacts.NASTY, apps_artifacts.NASTY_NAMES[0]]


def test_int8_ends_are_refused_for_the_web(tmp_path: Path) -> None:
    """LiteRT.js takes no int8 tensors: the error says how to build instead."""
    with pytest.raises(ConfigError, match="the tensor 'image' is int8") as caught:
        _export(apps_artifacts.classifier(tmp_path / "a"), tmp_path / "out", "web")
    assert "--io" in (caught.value.hint or "")


# --- the command ----------------------------------------------------------------------------------


def _command(*arguments: str) -> int:
    from edge.cli import export as command

    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    code = app(["export", *arguments], standalone_mode=False)
    return int(code or 0)


def test_command_writes_a_project_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`edgekit export` prints name, runtime, folder and the number of files; --json prints the contract."""
    artifact = str(apps_artifacts.keywords(tmp_path / "a"))
    assert _command(artifact, "--platform", "cpp", "-o", str(tmp_path / "out"), "--name", "Hotword") == 0
    assert "Hotword for cpp with litert is in" in capsys.readouterr().out
    assert _command(artifact, "--platform", "cpp", "-o", str(tmp_path / "out"), "--name", "Hotword", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["files"]["written"], printed["contract"]["name"]) == ([], "Hotword")


def test_command_refuses_an_unknown_platform(tmp_path: Path) -> None:
    """The message lists the platforms."""
    with pytest.raises(ConfigError, match="'symbian'; accepted: android, ios, cpp, python, web"):
        _command(str(tmp_path), "--platform", "symbian", "-o", str(tmp_path / "out"))
