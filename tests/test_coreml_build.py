"""Core ML: packages built here, read back, and run in the form that runs without a Mac."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.calibration.recipe import Override, Recipe
from edge.errors import ConfigError, ConversionError, DeviceError, QuantizationError, SourceError, UsageError
from edge.isolate import no_progress
from edge.signature import Preprocess
from edge.targets.base import Model, Program, Target
from edge.targets.coreml.runtime import CoreML
from edge.targets.coreml.session import EMULATED

torch = pytest.importorskip("torch")
pytest.importorskip("coremltools", exc_type=ImportError)
from tests import torch_mobile_models as nets  # noqa: E402

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.slow,
    # coremltools leaves temporary folders of a conversion to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
_LABELS = tuple(f"digit {i}" for i in range(10))


def build(model: Model, recipe: Recipe, folder: Path, target: Target = nets.PHONE) -> Program:
    """Build without samples."""
    return CoreML().build(model, recipe, target, None, folder, no_progress)


def difference(model: Model, program: Program) -> float:
    """Return the largest difference between package and source on three inputs, relative to the output."""
    session, source = CoreML().open(program.path, kernels="torch", threads=1), CoreML().open_carrier(model.path)
    worst = 0.0
    for sample in nets.Samples(signature=model.signature, count=3):
        expected, found = nets.run(source, sample.inputs), nets.run(session, sample.inputs)
        assert list(expected) == list(found)
        for name, value in expected.items():
            worst = max(worst, float(np.abs(found[name] - value).max() / np.abs(value).max()))
    return worst


@pytest.mark.parametrize(
    ("name", "route"),
    [("mobile_v2", "export"), ("unet", "trace"), ("lstm", "trace"), ("vit", "export"), ("detector", "export")],
)
def test_int8_weights_of_every_kind_of_network(name: str, route: str, tmp_path: Path) -> None:
    """Each kind is converted by the route that takes it; every integer weight is recognized and run here."""
    model = nets.network(name, tmp_path)
    program = build(model, Recipe(scheme="weight-only"), tmp_path)
    assert program.details["route"] == route
    assert program.details["weights_quantized"] == program.details["weights_emulated"] > 0
    assert 0 < difference(model, program) < 0.03
    half = sum(f.stat().st_size for f in program.path.rglob("weight.bin"))
    assert half < 2 * sum(v.numel() for v in nets.NETS[name][0]().state_dict().values())


def test_float32_and_float16_differ_in_size_and_rounding(tmp_path: Path) -> None:
    """float32 is exact; float16 has half the bytes and differs in the third digit at most; both have float32 ends."""
    model = nets.network("audio", tmp_path)
    sizes = {}
    for scheme, limit in (("float32", 1e-6), ("float16", 5e-3)):
        (tmp_path / scheme).mkdir()
        program = build(model, Recipe(scheme=scheme), tmp_path / scheme)  # type: ignore[arg-type]
        assert difference(model, program) <= limit
        assert program.details["outputs"] == {"y0": {"kind": "array", "shape": [1, 12], "dtype": "FLOAT32"}}
        sizes[scheme] = CoreML().inspect(program.path, None, {}).parameter_bytes
    assert 0.4 < sizes["float16"] / sizes["float32"] < 0.65


def image_model(folder: Path, preprocess: Preprocess) -> Model:
    """Return a classifier of images with preprocessing and labels."""
    torch.manual_seed(0)
    return nets.carrier(
        nets.MobileV2(), ((1, 3, 32, 32),), folder, preprocess={"x0": preprocess}, task="classification", labels=_LABELS
    )


def test_preprocessing_labels_and_metadata_are_in_the_package(tmp_path: Path) -> None:
    """An image classifier takes an image, returns values by label, and carries author, licence and contract."""
    fields = {"author": "A. Author", "license": "CC0", "version": "3", "short_description": "digits"}
    target = replace(nets.PHONE, options={"coreml": fields})
    model = image_model(tmp_path, Preprocess(scale=1 / 127.5, mean=(1.0,), colour="bgr"))
    program = build(model, Recipe(scheme="float16"), tmp_path, target)
    import coremltools

    package = coremltools.models.MLModel(str(program.path), skip_model_load=True)
    held = {k: getattr(package, k) for k in fields}
    assert held == fields
    assert program.details["inputs"]["x0"]["kind"] == "image"
    assert program.details["classifier_output"] == "y0"
    labels = package.get_spec().mlProgram.functions["main"]
    assert all(label.encode() in labels.SerializeToString() for label in _LABELS)
    contract = json.loads(package.user_defined_metadata["edgekit.json"])
    assert contract["images"]["x0"] == {"scale": pytest.approx(1 / 127.5), "bias": [-1.0, -1.0, -1.0], "colour": "bgr"}
    assert CoreML().inspect(program.path, None, {}).signature == program.signature


def test_preprocessing_that_an_image_cannot_have_stays_outside(tmp_path: Path) -> None:
    """Different std per channel have no single scale: the input takes floats, and a finding says so."""
    preprocess = Preprocess(scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.4))
    program = build(image_model(tmp_path, preprocess), Recipe(scheme="float16"), tmp_path)
    assert program.details["inputs"]["x0"]["kind"] == "array"
    assert "PREPROCESSING_OUTSIDE" in {f.rule for f in program.findings}


class Last(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.inner = nets.MobileV2()

    def forward(self, x: Any) -> Any:
        return self.inner(x.permute(0, 3, 1, 2))


def test_a_channel_last_image_input_keeps_its_layout(tmp_path: Path) -> None:
    """A carrier with NHWC ends gets an image input as well, of the right width and height."""
    model = nets.carrier(Last(), ((1, 16, 32, 3),), tmp_path)
    spec = replace(model.signature.inputs[0], layout="NHWC")
    signature = replace(model.signature, inputs=(spec,), preprocess={"x0": Preprocess(scale=1 / 255)})
    program = build(replace(model, signature=signature), Recipe(scheme="float16"), tmp_path)
    found = program.details["inputs"]["x0"]
    assert (found["kind"], found["height"], found["width"]) == ("image", 16, 32)


def test_the_same_build_gives_the_same_files(tmp_path: Path) -> None:
    """Two builds have equal names and contents of all files but for the emulation: no dates, no random ids."""
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        program = build(nets.network("audio", tmp_path), Recipe(scheme="float16"), tmp_path / name)
        files = sorted(f for f in program.path.rglob("*") if f.is_file())
        contents.append({str(f.relative_to(program.path)): f.read_bytes() for f in files})
    assert contents[0] == contents[1]


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """Recipes without a form, unknown options and deployment targets are errors that say what is accepted."""
    model = nets.network("audio", tmp_path)
    for recipe in (Recipe(scheme="dynamic"), Recipe(scheme="int8x16"), Recipe(scheme="weight-only", weight_bits=4)):
        with pytest.raises(QuantizationError, match="accepted: float32, float16, weight-only, int8"):
            build(model, recipe, tmp_path)
    with pytest.raises(QuantizationError, match="overrides"):
        build(model, Recipe(scheme="float16", overrides=(Override(),)), tmp_path)
    for options in ({"autor": "x"}, {"minimum_deployment_target": "iOS3"}):
        with pytest.raises(ConfigError, match=r"options\.coreml"):
            build(model, Recipe(scheme="float16"), tmp_path, replace(nets.PHONE, options={"coreml": options}))


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac quantizes activations")
def test_int8_activations_need_a_mac(tmp_path: Path) -> None:
    """Quantizing activations off a Mac is an error that names the recipe to use instead."""
    with pytest.raises(QuantizationError, match="macOS") as caught:
        build(nets.network("audio", tmp_path), Recipe(scheme="int8", io="float32"), tmp_path)
    assert "weight-only" in str(caught.value.hint)


def test_control_flow_is_not_traced_away(tmp_path: Path) -> None:
    """A program with torch.cond is refused, not reduced to one branch."""
    with pytest.raises(ConversionError, match="export: ") as caught:
        build(nets.carrier(nets.Cond(), ((2, 8),), tmp_path), Recipe(scheme="float16"), tmp_path)
    assert "trace" not in caught.value.message


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has Core ML")
def test_running_off_a_mac(tmp_path: Path) -> None:
    """The kernels `coreml` are a DeviceError here; `auto` runs the emulation and says what was not run."""
    program = build(nets.network("audio", tmp_path), Recipe(scheme="float16"), tmp_path)
    with pytest.raises(DeviceError, match="macOS and iOS only") as caught:
        CoreML().open(program.path, kernels="coreml", threads=1)
    assert "on a Mac" in str(caught.value.hint)
    session = CoreML().open(program.path, kernels="auto", threads=1)
    assert (session.mode, bool(session.not_run)) == ("emulated", True)  # type: ignore[attr-defined]
    assert program.details["not_run"] == list(session.not_run)  # type: ignore[attr-defined]
    (tmp_path / EMULATED).unlink()
    with pytest.raises(DeviceError, match=EMULATED):
        CoreML().open(program.path, kernels="auto", threads=1)
    with pytest.raises(UsageError, match="auto, coreml, torch"):
        CoreML().open(program.path, kernels="xnnpack", threads=1)


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    """A missing folder, an empty folder and a package without a contract are SourceErrors."""
    empty = tmp_path / "empty.mlpackage"
    empty.mkdir()
    for path in (tmp_path / "absent.mlpackage", empty):
        with pytest.raises(SourceError):
            CoreML().open(path, kernels="auto", threads=1)
        with pytest.raises(SourceError):
            CoreML().inspect(path, None, {})
