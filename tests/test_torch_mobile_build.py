"""PyTorch Mobile: builds of whole networks, run by the lite interpreter and compared with their source."""

from __future__ import annotations

import platform
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.calibration.recipe import Override, Recipe
from edge.errors import ConfigError, ConversionError, DataError, QuantizationError, SourceError, UsageError
from edge.isolate import no_progress
from edge.targets import registry
from edge.targets.base import Model, Program
from edge.targets.torch_mobile.runtime import TorchMobile

torch = pytest.importorskip("torch")
from tests import torch_mobile_models as nets  # noqa: E402

pytestmark = pytest.mark.frameworks


def build(model: Model, recipe: Recipe, folder: Path, samples: Any = None) -> Program:
    """Build with twelve samples of noise where the recipe needs calibration."""
    if samples is None and recipe.needs_calibration:
        samples = nets.Samples(signature=model.signature)
    return TorchMobile().build(model, recipe, nets.PHONE, samples, folder, no_progress)


def rules(program: Program) -> set[str]:
    """Return the rules of the findings."""
    return {f.rule for f in program.findings}


@pytest.mark.parametrize("name", nets.NETS)
def test_float_program_computes_what_the_source_computes(name: str, tmp_path: Path) -> None:
    """Every kind of network runs in the lite interpreter within 1e-4 of its source, by name, and is called legacy."""
    model = nets.network(name, tmp_path)
    program = build(model, Recipe(scheme="float32"), tmp_path)
    session = TorchMobile().open(program.path, kernels="qnnpack", threads=1)
    source = TorchMobile().open_carrier(model.path)
    for sample in nets.Samples(signature=model.signature, count=3):
        expected, found = nets.run(source, sample.inputs), nets.run(session, sample.inputs)
        assert list(expected) == list(found)
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-4)
    assert "LEGACY_RUNTIME" in rules(program)


# Noise through untrained weights is harder to quantize than data through trained ones.
_INT8 = dict.fromkeys(nets.NETS, 0.06)


@pytest.mark.parametrize("name", nets.NETS)
def test_static_int8_stays_near_the_source(name: str, tmp_path: Path) -> None:
    """Static int8 of every kind of network differs from float by a few per cent of the output at most."""
    program = build(nets.network(name, tmp_path), Recipe(scheme="int8", io="float32"), tmp_path)
    assert program.details["source_error"] < _INT8[name]
    assert any("quantized::" in o for o in program.details["operators"])
    assert ("KERNELS_FOR_ARM" in rules(program)) == (platform.machine() not in ("aarch64", "arm64"))


@pytest.mark.parametrize("name", ["mobile_v2", "lstm", "gru", "vit"])
def test_dynamic_int8_stays_near_the_source(name: str, tmp_path: Path) -> None:
    """Dynamic int8 of linear and recurrent layers differs from float by at most 3 % of the output."""
    program = build(nets.network(name, tmp_path), Recipe(scheme="dynamic"), tmp_path)
    assert program.details["source_error"] < 0.03
    assert any(o.startswith("quantized::linear_dynamic") for o in program.details["operators"])


def test_relu6_after_a_quantized_convolution_saturates(tmp_path: Path) -> None:
    """ReLU6 is not left to the qnnpack clamp kernel, which returns other numbers for channels-last tensors."""
    program = build(nets.network("mobile_v2", tmp_path), Recipe(scheme="int8", io="float32"), tmp_path)
    assert not {"quantized::relu6", "aten::hardtanh", "aten::clamp"} & set(program.details["operators"])


class SharedRelu6(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3)
        with torch.no_grad():
            self.a.weight.mul_(8)
            self.b.weight.mul_(20)

    def forward(self, x: Any) -> Any:
        return torch.cat([torch.nn.functional.relu6(self.a(x)), self.b(x)], 1)


def test_relu6_that_shares_its_scale_is_computed_in_plain_memory_order(tmp_path: Path) -> None:
    """Where saturation would clip a neighbour in a concatenation, ReLU6 gets a contiguous copy and stays right."""
    torch.manual_seed(0)
    model = nets.carrier(SharedRelu6(), ((1, 3, 8, 8),), tmp_path)
    program = build(model, Recipe(scheme="int8", io="float32"), tmp_path)
    found = TorchMobile().open(program.path, kernels="qnnpack", threads=1)
    source = TorchMobile().open_carrier(model.path)
    sample = next(iter(nets.Samples(signature=model.signature)))
    one, two = nets.run(found, sample.inputs)["y0"], nets.run(source, sample.inputs)["y0"]
    assert float(one[:, 4:].max()) > 7
    assert float(np.abs(one - two).max()) < 0.03 * float(np.abs(two).max())


class Scaled(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3)

    def forward(self, x: Any) -> Any:
        return torch.cat([self.a(x) * 8, self.b(x) + 20], 1)


def test_scaling_by_a_number_does_not_spoil_a_concatenation(tmp_path: Path) -> None:
    """Results of a multiplication or addition with a number are concatenated with the right scales."""
    torch.manual_seed(0)
    program = build(nets.carrier(Scaled(), ((1, 3, 8, 8),), tmp_path), Recipe(scheme="int8", io="float32"), tmp_path)
    assert program.details["source_error"] < 0.02


def test_both_branches_of_cond_are_in_the_program(tmp_path: Path) -> None:
    """torch.cond becomes a scripted condition: inputs of either sign give what the source gives."""
    torch.manual_seed(0)
    model = nets.carrier(nets.Cond(), ((2, 8),), tmp_path)
    program = build(model, Recipe(scheme="float32"), tmp_path)
    session, source = (
        TorchMobile().open(program.path, kernels="qnnpack", threads=1),
        TorchMobile().open_carrier(model.path),
    )
    for value in (1.0, -1.0):
        inputs = {"x0": np.full((2, 8), value, np.float32)}
        np.testing.assert_allclose(nets.run(session, inputs)["y0"], nets.run(source, inputs)["y0"], atol=1e-5)
    assert [o.op for o in TorchMobile().inspect(program.path, None, {}).operators].count("prim::If") == 1


def test_while_loop_runs_as_often_as_the_data_says(tmp_path: Path) -> None:
    """torch.while_loop becomes a scripted loop that repeats until its condition fails."""
    torch.manual_seed(0)
    model = nets.carrier(nets.Loop(), ((2, 8),), tmp_path)
    program = build(model, Recipe(scheme="float32"), tmp_path)
    session, source = (
        TorchMobile().open(program.path, kernels="qnnpack", threads=1),
        TorchMobile().open_carrier(model.path),
    )
    for value in (0.05, 1.0, 30.0):
        inputs = {"x0": np.full((2, 8), value, np.float32)}
        np.testing.assert_allclose(nets.run(session, inputs)["y0"], nets.run(source, inputs)["y0"], atol=1e-5)


def test_inspection_lists_what_an_app_must_link(tmp_path: Path) -> None:
    """The operators of the bytecode, its version, the signature and the weights' bytes are read from the file."""
    program = build(nets.network("lstm", tmp_path), Recipe(scheme="float32"), tmp_path)
    found = TorchMobile().inspect(program.path, None, {})
    assert set(found.details["operators"]) >= {"aten::lstm.input", "aten::linear"}
    assert found.details["bytecode_version"] >= 5
    assert found.signature == program.signature
    parameters = sum(p.numel() for p in nets.Lstm().parameters())
    assert 4 * parameters <= found.parameter_bytes <= 4 * parameters + 4096
    assert [o.op for o in found.operators][-1] == "aten::linear"


def test_an_override_keeps_its_operator_float(tmp_path: Path) -> None:
    """An override by operator and name leaves that operator in float; one that matches nothing is reported."""
    model = nets.network("audio", tmp_path)
    kept = Override(operator="linear", tensor="linear", scheme="float32")
    unused = Override(operator="conv3d", tensor=".*", scheme="float32")
    program = build(model, Recipe(scheme="int8", io="float32", overrides=(kept, unused)), tmp_path)
    assert "aten::linear" in program.details["operators"]
    assert "quantized::linear" not in program.details["operators"]
    found = [f.message for f in program.findings if f.rule == "OVERRIDE_UNUSED"]
    assert len(found) == 1
    assert "conv3d" in found[0]


def test_the_same_build_gives_the_same_results_twice(tmp_path: Path) -> None:
    """Two builds of one model have equal outputs bit by bit."""
    model = nets.network("audio", tmp_path)
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        program = build(model, Recipe(scheme="int8", io="float32"), tmp_path / name)
        sample = next(iter(nets.Samples(signature=model.signature)))
        runs.append(nets.run(TorchMobile().open(program.path, kernels="qnnpack", threads=1), sample.inputs)["y0"])
    np.testing.assert_array_equal(runs[0], runs[1])


def test_the_file_holds_no_path_of_the_building_machine(tmp_path: Path) -> None:
    """The source lines that a trace records are left out: they name folders of the machine that built it."""
    program = build(nets.network("vit", tmp_path), Recipe(scheme="float32"), tmp_path)
    with zipfile.ZipFile(program.path) as archive:
        assert not any(name.endswith(".debug_pkl") for name in archive.namelist())
        assert not any(str(Path(torch.__file__).parent).encode() in archive.read(n) for n in archive.namelist())


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (Recipe(scheme="int8", io="int8"), "float32 ends"),
        (Recipe(scheme="int8x16"), "int8x16"),
        (Recipe(scheme="dynamic", weight_bits=4), "dynamic-4"),
        (Recipe(scheme="int8", io="float32", bias_correction=True), "int8-corrected"),
    ],
)
def test_recipes_that_it_cannot_make_are_refused(recipe: Recipe, text: str, tmp_path: Path) -> None:
    """A recipe without a form in PyTorch Mobile is an error that names it."""
    with pytest.raises(QuantizationError, match=text):
        build(nets.network("audio", tmp_path), recipe, tmp_path)


def test_dynamic_without_a_layer_for_it_is_refused(tmp_path: Path) -> None:
    """Dynamic int8 of a network of convolutions would change nothing, and says so."""
    with pytest.raises(QuantizationError, match="linear and recurrent layers only"):
        build(nets.network("unet", tmp_path), Recipe(scheme="dynamic"), tmp_path)


def test_the_script_option_says_what_to_do_instead(tmp_path: Path) -> None:
    """An exported program has nothing to script: the option is refused, with the module's factory as the way."""
    target = replace(nets.PHONE, options={"torch_mobile": {"script": True}})
    model = nets.network("audio", tmp_path)
    with pytest.raises(ConfigError) as caught:
        TorchMobile().build(model, Recipe(scheme="float32"), target, None, tmp_path, no_progress)
    assert "file.py:factory with --script" in str(caught.value.hint)


def test_nan_in_calibration_is_an_error(tmp_path: Path) -> None:
    """A NaN in the calibration data is named as such."""
    model = nets.network("audio", tmp_path)

    class Broken(nets.Samples):
        def __iter__(self) -> Any:
            for sample in super().__iter__():
                yield replace(sample, inputs={k: v * np.float32("nan") for k, v in sample.inputs.items()})

    with pytest.raises(DataError, match="nan"):
        build(model, Recipe(scheme="int8", io="float32"), tmp_path, Broken(signature=model.signature))


class Counter(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.seen.add_(1)
        return x + self.seen


def test_state_is_refused(tmp_path: Path) -> None:
    """A module that changes a buffer at each call is an error that names the buffer."""
    with pytest.raises(ConversionError, match="seen"):
        build(nets.carrier(Counter(), ((1, 4),), tmp_path), Recipe(scheme="float32"), tmp_path)


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    """Garbage, another archive, a cut file and a foreign .ptl are SourceErrors, never a crash."""
    program = build(nets.network("audio", tmp_path), Recipe(scheme="float32"), tmp_path)
    garbage, cut, other = tmp_path / "garbage.ptl", tmp_path / "cut.ptl", tmp_path / "other.ptl"
    garbage.write_bytes(b"garbage")
    cut.write_bytes(program.path.read_bytes()[:2000])
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a/data.pkl", b"")
    for path in (garbage, cut, other, tmp_path / "absent.ptl"):
        with pytest.raises(SourceError):
            TorchMobile().open(path, kernels="qnnpack", threads=1)
        with pytest.raises(SourceError):
            TorchMobile().inspect(path, None, {})
    with pytest.raises(UsageError, match="qnnpack"):
        TorchMobile().open(program.path, kernels="xnnpack", threads=1)


def test_inputs_are_checked_before_they_reach_the_interpreter(tmp_path: Path) -> None:
    """A wrong name, shape or dtype is a DataError: the interpreter itself would die of some of them."""
    model = nets.network("audio", tmp_path)
    program = build(model, Recipe(scheme="float32"), tmp_path)
    session = TorchMobile().open(program.path, kernels="qnnpack", threads=1)
    good = next(iter(nets.Samples(signature=model.signature))).inputs["x0"]
    for inputs in ({}, {"x0": good, "y": good}, {"x0": good[0]}, {"x0": good.astype(np.float64)}, {"x0": "text"}):
        with pytest.raises(DataError):
            session.run(inputs)  # type: ignore[arg-type]


def test_the_catalogue_marks_the_target_as_legacy() -> None:
    """The target pytorch-mobile is there, legacy, with the runtime's own recipes and kernels."""
    if "torch_mobile" not in registry.runtime_names():
        pytest.skip("the runtime is not registered")
    target = registry.target("pytorch-mobile")
    assert target.status == "legacy"
    assert set(target.recipes) == set(TorchMobile.recipes)
    assert target.options["kernels"] in TorchMobile.kernel_sets
