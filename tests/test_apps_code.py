"""Exported Python and C++ projects are run here, against LiteRT, and proven to notice what is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge import preprocess
from edge.apps import golden
from edge.apps.bundle import ExportOptions
from edge.apps.contract import Contract
from edge.apps.export import export
from edge.apps.pins import Platform
from edge.signature import Fit, Preprocess, Resize
from tests import apps_artifacts

REPO = Path(__file__).resolve().parents[1]
KINDS = [*sorted(apps_artifacts.MAKERS), "ssd"]


def _export(artifact: Path, folder: Path, platform: Platform, **options: object) -> Contract:
    return export(artifact, folder, ExportOptions(platform=platform, **options)).contract  # type: ignore[arg-type]


def _module(folder: Path) -> str:
    return next(p.name for p in (folder / "src").iterdir())


def _run_python(folder: Path, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the package's golden test, or a few lines, in a process that knows nothing of edgekit."""
    command = ["-m", _module(folder)] if code is None else ["-c", code]
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    return subprocess.run(
        [sys.executable, "-P", *command],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=120,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_python_package_passes_its_golden_test(kind: str, tmp_path: Path) -> None:
    """Classifier, detector, segmenter, audio and two-input models compute in the package what the build computed."""
    _export(getattr(apps_artifacts, kind)(tmp_path / "a"), tmp_path / "out", "python")
    done = _run_python(tmp_path / "out")
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "passed"), done.stderr


def test_python_package_predicts_from_a_raw_image(tmp_path: Path) -> None:
    """A raw image of any size gives labelled classes; a second use of a closed model is an error."""
    _export(apps_artifacts.classifier(tmp_path / "a"), tmp_path / "out", "python")
    code = """if True:
        import numpy as np, four_classes as f
        with f.FourClasses() as model:
            model.warm_up()
            found = model.predict(np.zeros((50, 40, 3), np.uint8))
            print(len(found), sorted(c.label for c in found), abs(sum(c.score for c in found) - 1) < 1e-5)
        try:
            model.predict(np.zeros((50, 40, 3), np.uint8))
        except RuntimeError as error:
            print(error)"""
    done = _run_python(tmp_path / "out", code)
    assert done.stdout == "4 ['ant', 'bee', 'cat', 'dog'] True\nFourClasses is closed\n", done.stderr


@pytest.mark.slow
def test_python_project_builds_a_wheel_that_holds_the_model(tmp_path: Path) -> None:
    """The wheel has model, contract and golden vectors."""
    import zipfile

    _export(apps_artifacts.keywords(tmp_path / "a"), tmp_path / "out", "python")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(tmp_path / "out")],
        check=True,
        capture_output=True,
        timeout=120,
    )
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {f"{p}" for p in ("model.tflite", "model_contract.json", "golden.bin")} <= {
        n.rpartition("/")[2] for n in names
    }


def test_tampered_model_fails_the_digest_check(tmp_path: Path) -> None:
    """One changed byte of the program is found by its digest, in the test and when the model is opened."""
    _export(apps_artifacts.classifier(tmp_path / "a"), tmp_path / "out", "python")
    model = next((tmp_path / "out").rglob("model.tflite"))
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    done = _run_python(tmp_path / "out")
    assert done.returncode == 1
    assert "its digest differs" in done.stderr


def test_wrong_normalisation_fails_the_golden_test(tmp_path: Path) -> None:
    """A mean changed in the contract makes test images other inputs, which the golden test says."""
    _export(apps_artifacts.classifier(tmp_path / "a"), tmp_path / "out", "python")
    path = next((tmp_path / "out" / "src").rglob("model_contract.json"))
    data = json.loads(path.read_text())
    data["inputs"][0]["preprocess"]["mean"] = [1.0, 1.0, 1.0]
    path.write_text(json.dumps(data))
    done = _run_python(tmp_path / "out")
    assert done.returncode == 1
    assert "image 0 becomes another input 0" in done.stderr


def test_nasty_names_mean_the_same_in_python(tmp_path: Path) -> None:
    """Labels that try to break out of literals arrive unchanged, and the package passes its test."""
    _export(apps_artifacts.nasty(tmp_path / "a"), tmp_path / "out", "python")
    assert _run_python(tmp_path / "out").returncode == 0
    names = "[t['name'] for t in m.CONTRACT['inputs']]"
    code = f"import json, {_module(tmp_path / 'out')} as m; print(json.dumps(list(m.CONTRACT['labels']) + {names}))"
    found = json.loads(_run_python(tmp_path / "out", code).stdout)
    assert found == [*apps_artifacts.NASTY, apps_artifacts.NASTY_NAMES[0]]


# --- C++ ------------------------------------------------------------------------------------------


def _library() -> Path:
    spec = importlib.util.find_spec("ai_edge_litert")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("libLiteRt.so")


def _build(folder: Path, source: Path | None = None) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    source = source or folder / "test" / "golden_test.cpp"
    flags = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", f"-I{folder / 'include'}"]
    done = subprocess.run(
        ["g++", *flags, str(source), "-o", str(folder / "check"), "-ldl"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder / "check"


def _run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LITERT_LIB": str(_library())}
    return subprocess.run(
        [str(program), *map(str, arguments)], check=False, capture_output=True, text=True, env=environment, timeout=60
    )


@pytest.mark.parametrize("kind", KINDS)
def test_cpp_header_equals_python_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """Compiled without a warning, the outputs equal those of Python's LiteRT exactly, and so does the preprocessing."""
    _export(getattr(apps_artifacts, kind)(tmp_path / "a"), tmp_path / "out", "cpp")
    done = _run(_build(tmp_path / "out"), tmp_path / "out" / "data", "--exact")
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "passed"), done.stderr


def test_cpp_test_notices_a_tampered_model_and_a_wrong_mean(tmp_path: Path) -> None:
    """One changed byte of the program, and one changed number in the header, both fail the golden test."""
    _export(apps_artifacts.classifier(tmp_path / "a"), tmp_path / "out", "cpp")
    header = tmp_path / "out" / "include" / "four_classes.hpp"
    header.write_text(header.read_text().replace("{1.0f, 0.9f, 1.1f}", "{1.0f, 0.9f, 1.0f}"))
    model = tmp_path / "out" / "data" / "model.tflite"
    model.write_bytes(model.read_bytes()[:-1] + b"\x01")
    done = _run(_build(tmp_path / "out"), tmp_path / "out" / "data")
    assert done.returncode == 1
    assert "image 0 becomes another input 0" in done.stderr
    assert "its digest differs" in done.stderr


def test_cpp_says_when_the_library_is_missing(tmp_path: Path) -> None:
    """Without libLiteRt.so the error names it."""
    _export(apps_artifacts.keywords(tmp_path / "a"), tmp_path / "out", "cpp")
    program = _build(tmp_path / "out")
    done = subprocess.run(
        [str(program), str(tmp_path / "out" / "data")],
        check=False,
        capture_output=True,
        text=True,
        env={"LITERT_LIB": "/nowhere.so"},
    )
    assert done.returncode == 1
    assert "libLiteRt.so cannot be loaded: /nowhere.so" in done.stderr


def test_nasty_names_mean_the_same_in_cpp(tmp_path: Path) -> None:
    """Labels that try to break out of literals compile, print as the same UTF-8 bytes, and the test passes."""
    made = _export(apps_artifacts.nasty(tmp_path / "a"), tmp_path / "out", "cpp", name="Nasty")
    printer = tmp_path / "print.cpp"
    printer.write_text(
        '#include <cstdio>\n#include "nasty.hpp"\nint main() { auto texts = nasty::labels(); '
        "texts.push_back(nasty::inputs()[0].name); for (const auto& l : texts) "
        "std::fwrite((l + '\\xff').data(), 1, l.size() + 1, stdout); }\n"
    )
    program = _build(tmp_path / "out", printer)
    printed = subprocess.run([str(program)], check=True, capture_output=True).stdout
    texts = [*made.labels, apps_artifacts.NASTY_NAMES[0]]
    assert printed.split(b"\xff")[:-1] == [text.encode() for text in texts]
    done = _run(_build(tmp_path / "out"), tmp_path / "out" / "data", "--exact")
    assert done.returncode == 0, done.stderr


RESIZES: tuple[Resize, ...] = ("nearest", "bilinear", "area", "antialias")
FITS: tuple[Fit, ...] = ("stretch", "crop", "letterbox", "corner")


def test_cpp_preprocessing_is_exact_for_every_kernel_fit_and_size(tmp_path: Path) -> None:
    """24 image sizes by 4 kernels by 4 fits: every stored byte equals numpy's."""
    rng = np.random.default_rng(5)
    sizes = [(int(a), int(b)) for a, b in rng.integers(1, 90, (24, 2))]
    images = [rng.integers(0, 256, (*size, 3 if i % 4 else 1), dtype=np.uint8) for i, size in enumerate(sizes)]
    program, wanted = None, 0
    for resize in RESIZES:
        for fit in FITS:
            pre = Preprocess(
                resize=resize, fit=fit, pad_value=7, scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
            )
            folder = tmp_path / f"{resize}-{fit}"
            made = _export(apps_artifacts.classifier(folder / "a", pre=pre), folder / "out", "cpp")
            entries = golden.image_entries(made.inputs, images)
            (folder / "out/data/golden.bin").write_bytes(golden.pack(entries))
            if program is None:
                program = _generic(tmp_path, folder / "out")
            spec = made.inputs[0]
            numbers = [*RESIZES].index(resize), FITS.index(fit)
            done = _run(program, folder / "out/data", *map(str, numbers))
            assert (done.returncode, done.stdout) == (0, f"{len(images)} equal\n"), (resize, fit, done.stderr)
            wanted += preprocess.apply(images[0], spec.spec(), spec.preprocess).size
    assert wanted == 16 * 360


def _generic(folder: Path, project: Path) -> Path:
    """Compile once a program that takes kernel and fit as arguments."""
    source = (project / "test/golden_test.cpp").read_text().split("int main(")[0]
    source = source.replace("static void postprocessing", "[[maybe_unused]] static void postprocessing")
    for name in ("sha256", "program", "preprocessing"):
        source = source.replace(f"static void {name}(", f"[[maybe_unused]] static void {name}(")
        source = source.replace(f"static std::string {name}(", f"[[maybe_unused]] static std::string {name}(")
    main = folder / "generic.cpp"
    main.write_text(
        source
        + """
int main(int, char** arguments) {
  auto spec = m::inputs()[0];
  const m::Resize kernels[] = {m::Resize::nearest, m::Resize::bilinear, m::Resize::area, m::Resize::antialias};
  const m::Fit fits[] = {m::Fit::stretch, m::Fit::crop, m::Fit::letterbox, m::Fit::corner};
  spec.resize = kernels[std::atoi(arguments[2])];
  spec.fit = fits[std::atoi(arguments[3])];
  const auto golden = entries(read(std::string(arguments[1]) + "/golden.bin"));
  int equal = 0, count = 0;
  for (; golden.count("image/" + std::to_string(count)); ++count) {
    const auto& raw = golden.at("image/" + std::to_string(count));
    const auto size = [&](int at) { return static_cast<int>(number(raw, at)); };
    const m::Pixels image{size(0), size(4), size(8), m::Bytes(raw.begin() + 12, raw.end())};
    equal += m::encode(image, spec) == golden.at("image/" + std::to_string(count) + "/0");
  }
  std::printf("%d equal\\n", equal);
  return equal != count;
}
"""
    )
    return _build(project, main)


def test_golden_images_hold_their_size(tmp_path: Path) -> None:
    """An image entry begins with height, width and channels as little-endian int32."""
    made = _export(apps_artifacts.classifier(tmp_path / "a"), tmp_path / "out", "cpp")
    entries = golden.unpack((tmp_path / "out/data/golden.bin").read_bytes())
    assert struct.unpack_from("<3i", entries["image/0"]) == (37, 53, 3)
    assert made.golden.images == 5
