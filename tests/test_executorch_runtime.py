"""ExecuTorch programs: agreement, integer ends, delegation, needs, errors; one small net, built once per recipe."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.calibration import recipe as recipes
from edge.calibration.recipe import Override, Recipe
from edge.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    MissingPackageError,
    QuantizationError,
    SourceError,
    UsageError,
)
from edge.targets import registry
from edge.targets.base import Model, Program
from tests import executorch_helpers as helpers
from tests.executorch_helpers import Sample

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.slow,
    # torch, torchao and executorch warn of their own parts.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Return the keyword spotter of the zoo."""
    return helpers.imported("audio", tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="module")
def programs(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Program]:
    """Return it in the recipes that most tests need."""
    folder = tmp_path_factory.mktemp("programs")
    wanted = {
        "float32": recipes.named("float32"),
        "int8": recipes.named("int8", io="float32"),
        "int8-ends": recipes.named("int8", io="int8"),
        "dynamic": recipes.named("dynamic"),
    }
    return {name: helpers.build(model, recipe, folder / name) for name, recipe in wanted.items()}


def _parameter_bytes(program: Program) -> int:
    from edge.targets.executorch.runtime import ExecuTorch

    return ExecuTorch().inspect(program.path, None, {}).parameter_bytes


@pytest.mark.parametrize(("name", "at_least_db"), [("float32", 100), ("int8", 30), ("int8-ends", 30), ("dynamic", 30)])
def test_every_recipe_agrees_with_the_source(
    model: Model, programs: dict[str, Program], name: str, at_least_db: float
) -> None:
    """float32 equals torch to rounding; int8, with float or integer ends, and dynamic follow it on unseen samples."""
    assert helpers.agreement(model, programs[name]) >= at_least_db


def test_integer_ends_carry_their_scale(programs: dict[str, Program]) -> None:
    """An int8 program takes and gives int8 with scale and zero point; with io float32 the ends stay float."""
    from edge.targets.executorch.runtime import ExecuTorch

    ends = programs["int8-ends"].signature
    assert [t.dtype for t in (*ends.inputs, *ends.outputs)] == ["int8", "int8"]
    assert all(t.quantization is not None for t in (*ends.inputs, *ends.outputs))
    assert {t.dtype for t in programs["int8"].signature.inputs} == {"float32"}
    # The program tells its own names and scales: no file beside it is needed.
    opened = ExecuTorch().open(programs["int8-ends"].path, kernels="xnnpack", threads=1)
    assert opened.signature.inputs == ends.inputs
    assert opened.signature.outputs == ends.outputs


def test_int8_is_smaller_and_equal_bytes_come_of_equal_input(
    model: Model, programs: dict[str, Program], tmp_path: Path
) -> None:
    """The int8 program is smaller than float32, and building it again gives the same bytes."""
    assert programs["int8"].path.stat().st_size < programs["float32"].path.stat().st_size
    again = helpers.build(model, recipes.named("int8", io="float32"), tmp_path)
    assert again.path.read_bytes() == programs["int8"].path.read_bytes()


def test_the_delegated_share_is_that_of_get_delegation_info(model: Model, programs: dict[str, Program]) -> None:
    """The counts are get_delegation_info's; getitem, which needs no kernel, is in no share and no finding."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import to_edge_transform_and_lower

    from edge.targets.executorch import carrier

    exported, _ = carrier.load(model.path)
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    info = get_delegation_info(lowered.exported_program().graph_module)
    found = programs["float32"].details["delegation"]
    assert found["subgraphs"] == info.num_delegated_subgraphs
    assert found["delegated_nodes"] == info.num_delegated_nodes
    assert found["non_delegated_nodes"] == info.num_non_delegated_nodes
    rows = {n: r for n, r in info.delegation_by_operator.items() if n != "getitem"}
    inside = sum(r.delegated for r in rows.values())
    assert found["delegated_share"] == inside / (inside + sum(r.non_delegated for r in rows.values()))
    assert {p["operator"] for p in found["portable"]} == {n for n, r in rows.items() if r.non_delegated}


def test_what_stays_portable_has_xnnpacks_own_reason_and_breaks_a_budget(tmp_path: Path) -> None:
    """A mean without keepdim stays portable, with the words of XNNPACK; --min-delegated makes that an error."""
    found = helpers.imported("mobile-v2", tmp_path)
    made = helpers.build(found, recipes.named("float32"), tmp_path / "program", min_delegated=0.99)
    left = [f for f in made.findings if f.rule == "NOT_DELEGATED"]
    assert [f.op for f in left] == ["aten_mean_dim"]
    assert "keepdim" in left[0].message
    broken = [f for f in made.findings if f.rule == "DELEGATED_BELOW_BUDGET"]
    assert [f.severity for f in broken] == ["error"]
    assert "the budget is 99.0%" in broken[0].message
    # What the file itself calls is what a runtime must be linked with.
    assert made.details["requires"] == {"backends": ["XnnpackBackend"], "operators": ["aten::mean.out"]}


def test_the_inspection_reads_the_program_alone(programs: dict[str, Program], tmp_path: Path) -> None:
    """Instructions with their place, parameters, planned memory and needs come from the bytes of the `.pte`."""
    from edge.targets.executorch.runtime import ExecuTorch

    found = ExecuTorch().inspect(programs["int8-ends"].path, None, {})
    assert {o.place for o in found.operators} >= {"xnnpack"}
    assert found.details["requires"] == programs["int8-ends"].details["requires"]
    assert 0 < found.parameter_bytes < programs["int8-ends"].path.stat().st_size
    assert found.arena_bytes is not None
    # At least the input of 490 int8 values lies in the planned memory.
    assert found.arena_bytes >= 490
    assert found.signature is not None
    assert [t.name for t in found.signature.inputs] == ["spectrogram"]


def test_wrong_inputs_and_damaged_files_are_errors_in_words(programs: dict[str, Program], tmp_path: Path) -> None:
    """Wrong shape, dtype and name are DataErrors; truncated and foreign files SourceErrors; no crash."""
    from edge.targets.executorch.runtime import ExecuTorch

    runtime = ExecuTorch()
    session = runtime.open(programs["float32"].path, kernels="xnnpack", threads=1)
    good = np.zeros((1, 1, 49, 10), np.float32)
    with pytest.raises(DataError, match=r"got float32\[1, 49, 10\]; accepted: spectrogram: float32\[1, 1, 49, 10\]"):
        session.run({"spectrogram": good[0]})
    with pytest.raises(DataError, match="got float64"):
        session.run({"spectrogram": good.astype(np.float64)})
    with pytest.raises(DataError, match="'image' are no inputs"):
        session.run({"image": good})
    data = programs["float32"].path.read_bytes()
    for damaged in (b"", b"no program at all", data[: len(data) // 3], data[:64] + bytes(200) + data[264:]):
        (tmp_path / "bad.pte").write_bytes(damaged)
        with pytest.raises(SourceError):
            runtime.inspect(tmp_path / "bad.pte", None, {})
    with pytest.raises(UsageError, match=r"'neon' is unknown; accepted: xnnpack, portable, emulated"):
        runtime.open(programs["float32"].path, kernels="neon", threads=1)
    with pytest.raises(UsageError, match="portable kernels cannot run"):
        runtime.open(programs["float32"].path, kernels="portable", threads=1)


def test_golden_vectors_as_a_bundled_program(programs: dict[str, Program], tmp_path: Path) -> None:
    """A `.bpte` repeats its vectors in ExecuTorch's own checker, and a wrong vector is found."""
    from edge.targets.executorch import bundle
    from edge.targets.executorch.runtime import ExecuTorch

    made = programs["float32"]
    session = ExecuTorch().open(made.path, kernels="xnnpack", threads=1)
    inputs = [s.inputs for s in helpers.samples(made.signature, 3)]
    vectors = [(i, session.run(i)) for i in inputs]
    bundle.write_bundled(made.path, vectors, tmp_path / "model.bpte")
    assert bundle.verify_bundled(tmp_path / "model.bpte") == 3
    wrong = {name: np.asarray(v, np.float32) + 1 for name, v in vectors[1][1].items()}
    bundle.write_bundled(made.path, [vectors[0], (inputs[1], wrong)], tmp_path / "wrong.bpte")
    with pytest.raises(ArtifactError, match="does not repeat golden vector 1 of forward"):
        bundle.verify_bundled(tmp_path / "wrong.bpte")


def test_the_tracer_times_each_operator(programs: dict[str, Program]) -> None:
    """A profile lists XNNPACK's operators with times above 0 over the runs that were asked for."""
    from edge.targets.executorch.profile import profile

    made = programs["float32"]
    found = profile(made.path, helpers.samples(made.signature, 1)[0].inputs, runs=5)
    convolutions = [t for t in found if "Conv" in t.name]
    # The stem and two depthwise ones; convolutions of 1 x 1 are matrix products to XNNPACK.
    assert len(convolutions) == 3
    assert {t.place for t in convolutions} == {"XnnpackBackend"}
    assert all(t.mean_ms >= 0 and t.runs == 5 for t in found)


def test_dynamic_dimensions_of_the_signature_stay_dynamic(tmp_path: Path) -> None:
    """An int8 program with an open batch, height and width runs at several sizes, and refuses one beyond its memory."""
    import torch

    from edge.signature import Signature, TensorSpec
    from edge.sources import exported, torch_io
    from edge.sources.base import Declaration
    from edge.targets.executorch.runtime import ExecuTorch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)).eval()
    call = torch_io.from_example(module, (torch.rand(1, 3, 16, 16),), {}, Declaration())
    signature = Signature(
        inputs=(TensorSpec(name="image", shape=(-1, -1, -1, 3), layout="NHWC"),),
        outputs=(TensorSpec(name="map", shape=(-1, -1, -1, 2), layout="NHWC"),),
    )
    path, ends = tmp_path / "carrier.pt2", frozenset({0})
    found = exported.export_torch(module, call, signature, path, last_inputs=ends, last_outputs=ends)
    assert "sizes up to [8, 32, 32, 3]" in found[0].message
    random = np.random.default_rng(0)
    data = [Sample({"image": random.random((1, 16, 16, 3), np.float32)}) for _ in range(4)]
    model = Model(carrier="exported", path=path, signature=signature)
    made = helpers.build(model, recipes.named("int8"), tmp_path / "program", data=data)
    # The permutation of a channel-last input moves integers: the end is int8 although no operator stands there.
    assert [t.dtype for t in (*made.signature.inputs, *made.signature.outputs)] == ["int8", "int8"]
    session, reference = ExecuTorch().open(made.path, kernels="xnnpack", threads=1), ExecuTorch().open_carrier(path)
    for size in ((1, 16, 16, 3), (3, 24, 10, 3), (8, 32, 32, 3)):
        image = {"image": random.random(size, np.float32)}
        wanted = reference.run(image)
        assert wanted["map"].shape == (*size[:3], 2)
        assert helpers.snr_db([wanted], [helpers.run(session, image)])["map"] >= 30
    with pytest.raises(SourceError, match="failed while running"):
        helpers.run(session, {"image": np.zeros((8, 64, 64, 3), np.float32)})


# --- calibration -------------------------------------------------------------------------------------------------


def test_the_ranges_are_those_of_edgekits_estimator(model: Model) -> None:
    """The scale of the input is (high - low) / 255 of the smallest and largest value over all samples, 0 included."""
    from edge.targets.executorch import carrier, delegates, quantize

    exported, _ = carrier.load(model.path)
    data: Any = helpers.samples(model.signature, 5)
    chain = delegates.chosen({})
    made = quantize.quantize(exported, model.signature, recipes.named("int8"), chain[0], {}, data)
    stacked = np.concatenate([s.inputs["spectrogram"] for s in data])
    assert made.ranges is not None
    assert (made.ranges.samples, made.ranges.estimator) == (5, "minmax")
    scale = made.signature.inputs[0].quantization
    assert scale is not None
    assert scale.scale[0] == pytest.approx((float(stacked.max()) - float(stacked.min())) / 255, rel=1e-6)


def test_unusable_calibration_data_is_named(model: Model, tmp_path: Path) -> None:
    """NaN in a sample, a sample of another shape, no sample and no data are DataErrors that count the sample."""
    int8 = recipes.named("int8")
    good = helpers.samples(model.signature, 2)
    bad = {"spectrogram": np.full((1, 1, 49, 10), np.nan, np.float32)}
    with pytest.raises(DataError, match="Calibration sample 3: input 'spectrogram' holds NaN"):
        helpers.build(model, int8, tmp_path, data=[*good, Sample(bad)])
    with pytest.raises(DataError, match=r"Calibration sample 1: .*got float32\[49, 10\]"):
        helpers.build(model, int8, tmp_path, data=[Sample({"spectrogram": np.zeros((49, 10), np.float32)})])
    with pytest.raises(DataError, match="no samples"):
        helpers.build(model, int8, tmp_path, data=[])


def test_an_override_keeps_an_operator_float(model: Model) -> None:
    """An override by operator leaves it out of quantization; one that matches nothing is a finding."""
    from edge.targets.executorch import carrier, delegates, quantize

    exported, _ = carrier.load(model.path)
    data: Any = helpers.samples(model.signature, 2)
    recipe = Recipe(io="float32", overrides=(Override(operator="linear"), Override(operator="lstm")))
    made = quantize.quantize(exported, model.signature, recipe, delegates.chosen({})[0], {}, data)
    text = made.program.graph_module.code
    # Its input is another operator's int8 result, but its weight is the float one.
    assert re.search(r"aten\.linear\.default\(\w+, p_classify_weight, p_classify_bias\)", text)
    assert [f.rule for f in made.findings] == ["OVERRIDE_UNUSED"]
    assert "lstm" in made.findings[0].message


# --- recipes and delegates ---------------------------------------------------------------------------------------


def test_a_recipe_that_a_delegate_does_not_take_is_refused_in_words(model: Model, tmp_path: Path) -> None:
    """XNNPACK has no weight-only form, ExecuTorch no uint8 ends: the message lists what is accepted."""
    with pytest.raises(QuantizationError, match="xnnpack does not take the recipe weight-only; accepted: float32"):
        helpers.build(model, recipes.named("weight-only"), tmp_path)
    with pytest.raises(QuantizationError, match="int8 or float32 ends, not uint8"):
        helpers.build(model, recipes.named("int8", io="uint8"), tmp_path)


def test_weights_alone_in_8_bits_on_portable_kernels(
    model: Model, programs: dict[str, Program], tmp_path: Path
) -> None:
    """The portable kernels store weights in int8, dequantize them at run time, and need no backend."""
    from edge.targets.executorch.runtime import ExecuTorch

    made = helpers.build(model, recipes.named("weight-only"), tmp_path, delegates=["portable"])
    assert made.details["requires"]["backends"] == []
    assert "quantized_decomposed::dequantize_per_channel.out" in made.details["requires"]["operators"]
    float_bytes = ExecuTorch().inspect(programs["float32"].path, None, {}).parameter_bytes
    assert ExecuTorch().inspect(made.path, None, {}).parameter_bytes < 0.6 * float_bytes
    assert helpers.agreement(model, made) >= 30
    assert ExecuTorch().open(made.path, kernels="portable", threads=1).signature.inputs[0].name == "spectrogram"


def test_a_program_that_this_host_cannot_run_keeps_its_last_runnable_form(model: Model, tmp_path: Path) -> None:
    """Vulkan lowers here and runs elsewhere: `emulated.pt2` is opened instead, and a finding says what was not run."""
    from edge.targets.executorch.carrier import ExportedSession
    from edge.targets.executorch.runtime import ExecuTorch

    made = helpers.build(model, recipes.named("float32"), tmp_path, delegates=["vulkan"])
    assert made.details["not_run"] == ["VulkanBackend"]
    assert [f.rule for f in made.findings if f.rule == "NOT_RUN_HERE"] == ["NOT_RUN_HERE"]
    session = ExecuTorch().open(made.path, kernels="xnnpack", threads=1)
    assert isinstance(session, ExportedSession)
    assert (session.mode, session.not_run) == ("emulated", ("VulkanBackend",))
    assert helpers.agreement(model, made) >= 100
    made.extra_files[0].unlink()
    with pytest.raises(SourceError, match=r"needs VulkanBackend, which ExecuTorch on this host does not have"):
        ExecuTorch().open(made.path, kernels="xnnpack", threads=1)


def test_absent_sdks_and_unknown_delegates_say_what_to_do(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qualcomm without its SDK, MediaTek without its packages and a misspelt delegate end before any work."""
    monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    int8 = recipes.named("int8")
    with pytest.raises(MissingPackageError, match="QNN_SDK_ROOT is not set"):
        helpers.build(model, int8, tmp_path, delegates=["qualcomm"])
    with pytest.raises(MissingPackageError, match="mediatek needs mtk_converter"):
        helpers.build(model, int8, tmp_path, delegates=["mediatek"])
    with pytest.raises(ConfigError, match="'xnnpak'; accepted: xnnpack, coreml"):
        helpers.build(model, int8, tmp_path, delegates=["xnnpak"])
    with pytest.raises(ConfigError, match="min_delegated is 95"):
        helpers.build(model, int8, tmp_path, min_delegated=95)
    with pytest.raises(QuantizationError, match="not from litert"):
        helpers.build(replace(model, carrier="litert"), int8, tmp_path)


def test_the_catalogue_names_known_delegates() -> None:
    """Every target that runs ExecuTorch names delegates that exist, and one of its recipes is taken by the first."""
    from edge.targets.executorch.delegates import DELEGATES

    found = [t for t in map(registry.target, registry.names()) if "executorch" in t.runtimes]
    assert {"android", "android-gpu", "cortex-m55", "ethos-u55-128", "ios", "linux", "rpi5"} <= {t.name for t in found}
    for target in found:
        chain = target.options["executorch"]["delegates"]
        assert set(chain) <= set(DELEGATES), target.name
        assert target.recipe in DELEGATES[chain[0]].recipes, target.name


def test_what_is_computed_of_constants_is_delegated(tmp_path: Path) -> None:
    """A bias that the graph reshapes and a kernel that it transposes are constants, so that all is delegated."""
    import torch
    from torch import nn

    class Converted(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(8, 4)
            self.bias = nn.Parameter(torch.randn(1, 4))
            self.kernel = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Any) -> Any:
            hidden = torch.relu(nn.functional.linear(x, self.dense.weight, self.bias.reshape(-1)))
            return nn.functional.linear(hidden, self.kernel.t())

    torch.manual_seed(0)
    model = helpers.exported(Converted().eval(), (torch.randn(1, 8),), tmp_path)
    for name, least in (("float32", 100), ("int8", 25)):
        made = helpers.build(model, recipes.named(name), tmp_path / name)
        assert made.details["delegation"]["portable"] == [], name
        assert helpers.agreement(model, made) >= least


def test_dynamic_convolutions_before_a_relu_have_integer_weights(tmp_path: Path) -> None:
    """The framework's quantizer leaves them in float; the file shrinks and the answers stay."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(32, 128, 1),
        nn.ReLU6(),
        nn.ConvTranspose2d(128, 16, 2),
        nn.ReLU(),
    )
    model = helpers.exported(net.eval(), (torch.randn(1, 3, 12, 12),), tmp_path)
    parameters = 4 * sum(p.numel() for p in net.parameters())
    made = helpers.build(model, recipes.named("dynamic"), tmp_path / "dynamic")
    assert _parameter_bytes(made) < 0.45 * parameters
    assert helpers.agreement(model, made) >= 30
