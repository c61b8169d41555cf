"""Exported Android modules: all Kotlin is compiled by a current compiler, and its arithmetic is run on the JVM."""

from __future__ import annotations

import tomllib
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.apps import aar, golden
from edge.apps.bundle import ExportOptions
from edge.apps.contract import Contract
from edge.apps.export import export
from edge.errors import ConfigError
from edge.signature import Preprocess, Signature, TensorSpec
from tests import apps_artifacts, apps_kotlin, apps_programs
from tests.tflite_builder import GraphBuilder

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared/models/data-coco-permissive/vww_u8_96.npz"


# Files that are the same in all modules but for their names: compiled in one.
_SAME = ("GoldenTest.kt", "MainActivity.kt")
KINDS = tuple(kind.replace("_", "") for kind in apps_artifacts.MAKERS)
LITERT = (*KINDS, "nasty", "ssd")
WORDS = (*LITERT, *(f"{runtime}.{kind}" for runtime in ("tflite", "executorch", "mobile") for kind in KINDS))


@dataclass(frozen=True)
class Built:
    """Exported modules, compiled together: contract and folder by package word."""

    contracts: dict[str, Contract]
    folder: Path

    def check(self, word: str, data: Path | None = None, *extra: str) -> str:
        """Run the golden checks of a module on the JVM; return what they print."""
        data = data or next((self.folder / word).rglob("golden.bin"))
        labels = str(self.folder / f"{word}.labels")
        main = f"com.example.{word}.Main_{word.replace('.', '_')}Kt"
        done = apps_kotlin.run_java(main, [self.folder / "classes"], [str(data), labels, *extra])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def device_test(self, assets: Path) -> dict[str, str]:
        """Run the classifier's device test with these assets, as far as it needs no runtime; return what it says."""
        tests = next((self.folder / "classifier").rglob("golden.bin")).parent
        classpath = [self.folder / "classes", apps_kotlin.stub_classes()]
        properties = {"edgekit.assets": assets, "edgekit.tests": tests}
        done = apps_kotlin.run_java("com.example.classifier.DeviceMainKt", classpath, [], properties)
        assert done.returncode == 0, done.stderr
        return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def _sources(folder: Path, word: str) -> list[Path]:
    main = folder / f"Main_{word.replace('.', '_')}.kt"
    text = (apps_kotlin.STUBS / "JvmMain.kt.txt").read_text()
    main.write_text(text.replace("@@PACKAGE@@", f"com.example.{word}"))
    return [*(p for p in sorted((folder / word).rglob("*.kt")) if word in KINDS or p.name not in _SAME), main]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Five kinds of models for each of the four runtimes, anchors, and hostile names, in one compilation.

    The programs are real ones; those of ExecuTorch and PyTorch Mobile are left out where the frameworks are absent.
    """
    apps_kotlin.required()
    folder = tmp_path_factory.mktemp("kotlin")
    contracts: dict[str, Contract] = {}

    def add(word: str, runtime: str, artifact: Path) -> None:
        options = ExportOptions(platform="android", runtime=runtime, package=f"com.example.{word}", author='"*/ $x')
        contracts[word] = export(artifact, folder / word, options).contract

    for kind, maker in apps_artifacts.MAKERS.items():
        add(kind.replace("_", ""), "litert", maker(folder / "a" / kind))
        add(f"tflite.{kind.replace('_', '')}", "tflite", maker(folder / "a" / "tfl" / kind))
    add("nasty", "litert", apps_artifacts.nasty(folder / "a" / "nasty"))
    add("ssd", "litert", apps_artifacts.ssd(folder / "a" / "ssd"))
    if apps_programs.available():
        for kind in apps_artifacts.MAKERS:
            add(f"executorch.{kind.replace('_', '')}", "executorch", apps_programs.folder() / "executorch" / kind)
            add(f"mobile.{kind.replace('_', '')}", "pytorch-mobile", apps_programs.folder() / "torch_mobile" / kind)
    sources = [path for word in contracts for path in _sources(folder, word)]
    device = folder / "DeviceMain.kt"
    device.write_text(
        (apps_kotlin.STUBS / "DeviceMain.kt.txt").read_text().replace("@@PACKAGE@@", "com.example.classifier")
    )
    apps_kotlin.compile_kotlin([*sources, device], folder / "classes", [apps_kotlin.stub_classes()])
    return Built(contracts, folder)


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("word", WORDS)
def test_generated_kotlin_compiles_and_gives_the_golden_results(built: Built, word: str) -> None:
    """Class, engine, device test and sample compile; pre- and postprocessing on the JVM equal the build's."""
    if word not in built.contracts:
        pytest.skip("needs torch and executorch")
    assert built.check(word) == "done\n"


@pytest.mark.slow
@pytest.mark.frameworks
def test_tampered_model_fails_the_device_test(built: Built, tmp_path: Path) -> None:
    """The device test's own check of the digest passes on the packed model, and fails after one byte changed.

    A model that is closed, also twice, says so.
    """
    assets = next((built.folder / "classifier").rglob("model.tflite")).parent
    passed = {"preprocessing": "passed", "postprocessing": "passed", "model": "passed", "closed": "passed"}
    assert built.device_test(assets) == passed
    data = bytearray((assets / "model.tflite").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.tflite").write_bytes(data)
    assert built.device_test(tmp_path) == {**passed, "model": "FAIL: expected true"}


@pytest.mark.slow
@pytest.mark.frameworks
def test_nasty_names_mean_the_same_in_kotlin(built: Built) -> None:
    """Labels and tensor names that try to break out of literals arrive unchanged."""
    built.check("nasty")
    texts = (built.folder / "nasty.labels").read_bytes().decode().split("\uffff")
    assert texts == [*apps_artifacts.NASTY, apps_artifacts.NASTY_NAMES[0]]


def _images() -> list[NDArray[np.uint8]]:
    """Return 100 photographs where they are at hand, else pictures of odd sizes."""
    if PHOTOGRAPHS.is_file():
        with np.load(PHOTOGRAPHS) as data:
            name = next(n for n in data.files if data[n].ndim == 4)
            return [np.ascontiguousarray(image) for image in data[name][:100]]
    rng = np.random.default_rng(6)
    return [rng.integers(0, 256, (*rng.integers(1, 99, 2), 3), dtype=np.uint8) for _ in range(100)]


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("word", ["classifier", "detector", "segmenter", "twoinputs"])
def test_100_images_are_bit_exact_on_the_jvm(built: Built, word: str, tmp_path: Path) -> None:
    """Bilinear, nearest, area and antialias, all fits, RGB, BGR and gray: every byte equals numpy's."""
    made = built.contracts[word]
    data = tmp_path / "images.bin"
    data.write_bytes(golden.pack(golden.image_entries(made.inputs, _images())))
    assert built.check(word, data, "images") == "done\n"


@pytest.mark.slow
@pytest.mark.frameworks
def test_wrong_normalisation_fails_the_golden_check(built: Built, tmp_path: Path) -> None:
    """Golden inputs made with another mean are told apart from the module's own."""
    made = built.contracts["classifier"]
    data = tmp_path / "golden.bin"
    other = apps_artifacts.classifier(
        tmp_path / "a", pre=Preprocess(resize="bilinear", fit="crop", scale=1 / 127.5, mean=(1.0,))
    )
    export(other, tmp_path / "out", ExportOptions(platform="cpp"))
    data.write_bytes((tmp_path / "out/data/golden.bin").read_bytes())
    assert "FAIL: image 0 becomes another input 0" in built.check("classifier", data)
    assert made.inputs[0].preprocess.mean != (1.0,)


@pytest.mark.slow
@pytest.mark.frameworks
def test_compiler_and_stubs_refuse_a_wrong_call(built: Built, tmp_path: Path) -> None:
    """A misspelt method of the runtime is an error, so that compiling against the stubs proves something."""
    engine = next((built.folder / "classifier").rglob("Engine.kt"))
    wrong = tmp_path / "Engine.kt"
    wrong.write_text(engine.read_text().replace("writeFloat", "writeFloats"))
    classpath = [apps_kotlin.stub_classes(), built.folder / "classes"]
    with pytest.raises(apps_kotlin.CompileError, match="unresolved reference 'writeFloats'"):
        apps_kotlin.compile_kotlin([wrong], tmp_path / "classes", classpath)


@pytest.mark.slow
@pytest.mark.frameworks
def test_compiled_module_becomes_an_aar_with_a_stored_model(built: Built, tmp_path: Path) -> None:
    """The classes that were compiled, the assets and the keep rules make an AAR; its model is stored and equal."""
    import io
    import zipfile

    home = built.folder / "classes/com/example/classifier"
    jar = io.BytesIO()
    with zipfile.ZipFile(jar, "w") as archive:
        for path in sorted(home.glob("*.class")):
            archive.write(path, f"com/example/classifier/{path.name}")
    module = built.folder / "classifier/four_classes"
    assets = {p.name: p.read_bytes() for p in (module / "src/main/assets").iterdir()}
    rules = (module / "consumer-rules.pro").read_text()
    made = tmp_path / "x.aar"
    aar.assemble(
        made, package="com.example.classifier", minimum_sdk=24, classes=jar.getvalue(), assets=assets, rules=rules
    )
    with zipfile.ZipFile(made) as archive:
        entry = archive.getinfo("assets/model.tflite")
        assert (entry.compress_type, archive.read(entry)) == (zipfile.ZIP_STORED, assets["model.tflite"])
        inner = zipfile.ZipFile(io.BytesIO(archive.read("classes.jar")))
        assert "com/example/classifier/FourClasses.class" in inner.namelist()
    assert aar.check(made) == ()


# --- files that no compiler reads here ------------------------------------------------------------


def _files(tmp_path: Path, chosen: str, **other: object) -> dict[str, str]:
    artifact = apps_artifacts.classifier(tmp_path / "a", **other)  # type: ignore[arg-type]
    export(artifact, tmp_path / "out", ExportOptions(platform="android", runtime=chosen, package="com.example.app"))
    text = (
        p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix not in (".bin", ".tflite", ".pte", ".ptl")
    )
    return {p.relative_to(tmp_path / "out").as_posix(): p.read_text() for p in text}


def test_catalogue_pins_exact_versions_and_every_alias_exists(tmp_path: Path) -> None:
    """Every library of the build files is in the catalogue, and no version is a range."""
    files = _files(tmp_path, "litert")
    catalogue = tomllib.loads(files["gradle/libs.versions.toml"])
    assert all(version.replace(".", "").isdigit() for version in catalogue["versions"].values())
    assert catalogue["libraries"]["runtime"]["module"] == "com.google.ai.edge.litert:litert"
    for entry in (*catalogue["libraries"].values(), *catalogue["plugins"].values()):
        assert entry.get("version", {}).get("ref", "agp") in catalogue["versions"]
    aliases = {a.replace("-", ".") for a in (*catalogue["libraries"], *(f"plugins-{p}" for p in catalogue["plugins"]))}
    for name in ("build.gradle.kts", "four_classes/build.gradle.kts", "sample/build.gradle.kts"):
        used = {part.split(")")[0] for part in files[name].split("libs.")[1:]}
        assert used <= aliases, name


def test_executorch_is_pinned_to_the_version_that_wrote_the_program(tmp_path: Path) -> None:
    """A .pte file is promised to load in its own version and later ones."""
    files = _files(tmp_path, "executorch", runtime="executorch", suffix=".pte", tools={"executorch": "1.4.1+cpu"})
    assert tomllib.loads(files["gradle/libs.versions.toml"])["versions"]["runtime"] == "1.4.1"


def test_module_says_what_the_runtime_demands(tmp_path: Path) -> None:
    """MinSdk 24 for LiteRT, models are not compressed, R8 keeps what native code calls; manifests are well-formed."""
    files = _files(tmp_path, "litert")
    build = files["four_classes/build.gradle.kts"]
    assert "minSdk = 24" in build
    assert 'noCompress += listOf("tflite", "pte", "ptl")' in build
    assert "-keep class com.google.ai.edge.litert.** { *; }" in files["four_classes/consumer-rules.pro"]
    for name, text in files.items():
        if name.endswith(".xml"):
            ET.fromstring(text)
        assert "@@" not in text or name.endswith((".json", "Contract.kt")), name


def test_legacy_runtime_says_so(tmp_path: Path) -> None:
    """PyTorch Mobile is exported with a banner."""
    assert "**Legacy.**" in _files(tmp_path, "pytorch-mobile", runtime="torch_mobile", suffix=".ptl")["README.md"]


def test_int16_is_refused_where_the_api_has_none(tmp_path: Path) -> None:
    """LiteRT's Kotlin API has no int16 tensors: the error names tensor, runtime and the way out."""
    g = GraphBuilder()
    g.output(g.op("ABS", [g.input("x", (1, 4), "int16")], (1, 4), dtype="int16"), "y")
    spec = Signature(
        inputs=(TensorSpec(name="x", shape=(1, 4), dtype="int16"),),
        outputs=(TensorSpec(name="y", shape=(1, 4), dtype="int16"),),
    )
    float_in = GraphBuilder()
    float_in.output(float_in.op("ABS", [float_in.input("x", (1, 4))], (1, 4)), "y")
    plain = Signature(inputs=(TensorSpec(name="x", shape=(1, 4)),), outputs=(TensorSpec(name="y", shape=(1, 4)),))
    from dataclasses import replace

    from edge import artifact as artifacts
    from edge.stages.checking import write_golden

    root = apps_artifacts.write(tmp_path / "a", "sixteen", float_in.build(), plain, plain)
    values = np.zeros((1, 4), np.int16)
    write_golden(root / "golden.npz", [({"x": values}, {"y": values}, {})])
    manifest = replace(artifacts._parse(root / "manifest.json"), source_signature=spec, signature=spec)
    artifacts.write_manifest(root, manifest, {"model.tflite": "program", "golden.npz": "golden"})
    with pytest.raises(ConfigError, match="'x' is int16, which the Android API of litert cannot pass"):
        export(root, tmp_path / "out", ExportOptions(platform="android"))
    assert export(root, tmp_path / "out", ExportOptions(platform="android", runtime="tflite")).name == "Sixteen"
