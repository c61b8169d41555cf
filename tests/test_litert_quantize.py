"""Recipes of the LiteRT runtime on small graphs: what comes out, who made it, what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge.calibration import recipe as recipes
from edge.calibration.recipe import Override, Recipe
from edge.errors import QuantizationError
from edge.isolate import no_progress
from edge.targets.base import Model, Target
from edge.targets.litert import aeq, contract, coverage, flatbuffer, ptq, quantize, session
from edge.targets.litert.runtime import LiteRT
from tests.tflite_builder import GraphBuilder, Samples, f32, normal_samples

SHAPE = (1, 8, 8, 3)
SAMPLES: Any = normal_samples({"x": SHAPE})


def _classifier() -> bytes:
    """Convolution, ReLU, mean, dense, softmax."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.input("x", SHAPE)
    features = builder.conv(x, rng.standard_normal((8, 3, 3, 3)) * 0.3, rng.standard_normal(8) * 0.1, name="conv")
    active = builder.op("RELU", [features], (1, 6, 6, 8), name="relu")
    pooled = builder.op("MEAN", [active, builder.const("axes", [1, 2])], (1, 8), name="mean")
    logits = builder.fully_connected(pooled, rng.standard_normal((4, 8)), rng.standard_normal(4), name="logits")
    builder.output(builder.op("SOFTMAX", [logits], (1, 4), name="probabilities"), "p")
    return builder.build()


def _after_conv(operator: str, constant: Any = None, shape: tuple[int, ...] = (1, 6, 6, 4)) -> bytes:
    """One operator after a convolution and before another layer, so that it stands inside of the graph."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.input("x", SHAPE)
    features = builder.conv(x, rng.standard_normal((4, 3, 3, 3)) * 0.3, rng.standard_normal(4) * 0.1)
    inputs = [features] if constant is None else [features, builder.const("constant", constant)]
    middle = builder.op(operator, inputs, shape, name="middle")
    builder.output(builder.fully_connected(middle, rng.standard_normal((5, 4)), np.zeros(5)), "y")
    return builder.build()


def _quantized(program: bytes, recipe: Recipe, samples: Samples | None = SAMPLES, **options: Any) -> quantize.Quantized:
    return quantize.quantize(flatbuffer.load(program), recipe, samples, **options)


def _relative_error(program: bytes, made: bytes, output: str) -> float:
    source = session.LiteRTSession(program, kernels="builtin", threads=1)
    built = session.LiteRTSession(made, kernels="builtin", threads=1)
    wanted = np.concatenate([source.run(s.inputs)[output] for s in SAMPLES])
    found = np.concatenate([session.run_float(built, s.inputs)[output] for s in SAMPLES])
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / np.sqrt(np.mean(wanted**2)))


@pytest.mark.parametrize(
    ("name", "limit", "dtype"),
    [
        ("int8", 0.03, "int8"),
        ("int8x16", 0.02, "int16"),
        ("dynamic", 0.03, "float32"),
        ("dynamic-4", 0.3, "float32"),
        ("weight-only", 0.02, "float32"),
        ("weight-only-4", 0.3, "float32"),
        ("float16", 1e-3, "float32"),
    ],
)
def test_recipes_compute_the_float_model(name: str, limit: float, dtype: str) -> None:
    """Every recipe is within its tolerance of float and has the dtype that it promises at its ends."""
    made = _quantized(_classifier(), recipes.named(name))
    signature = contract.signature_of(flatbuffer.load(made.program))
    assert [t.dtype for t in (*signature.inputs, *signature.outputs)] == [dtype, dtype]
    assert _relative_error(_classifier(), made.program, "p") < limit


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_ends_have_the_declared_dtype(io: Any) -> None:
    """int8, uint8 and float ends compute the same; names stay."""
    made = _quantized(_classifier(), recipes.named("int8", io=io))
    signature = contract.signature_of(flatbuffer.load(made.program))
    assert [(t.name, t.dtype) for t in (*signature.inputs, *signature.outputs)] == [("x", io), ("p", io)]
    assert _relative_error(_classifier(), made.program, "p") < 0.03
    assert made.coverage.cost == (0, 0)


@pytest.mark.parametrize("name", recipes.NAMES)
def test_same_input_gives_same_bytes(name: str, tmp_path: Path) -> None:
    """A build is reproducible to the byte."""
    first, second = (_build(tmp_path, _classifier(), recipes.named(name)).path.read_bytes() for _ in range(2))
    assert first == second


def test_softmax_has_the_scale_that_kernels_demand() -> None:
    """An int8 softmax output has scale 1/256 and zero point -128."""
    model = flatbuffer.load(_quantized(_classifier(), recipes.named("int8")).program)
    spec = contract.signature_of(model).outputs[0]
    assert spec.quantization is not None
    assert (spec.quantization.scale, spec.quantization.zero_point) == ((1 / 256,), (-128,))


def test_granularity_tensor_has_one_scale_per_tensor() -> None:
    """Per-tensor recipes give every constant a single scale, per-channel ones do not."""
    scales = {}
    for granularity in ("channel", "tensor"):
        made = _quantized(_classifier(), Recipe(scheme="int8", granularity=granularity))
        view = flatbuffer.graph(flatbuffer.load(made.program))
        scales[granularity] = max(len(t.quantization.scale) for t in view.tensors if t.quantization)
    assert scales == {"channel": 8, "tensor": 1}


ABSORBED = [
    ("LEAKY_RELU", None, (1, 6, 6, 4)),
    ("PRELU", np.full((1, 1, 4), 0.2, np.float32), (1, 6, 6, 4)),
    ("RELU", None, (1, 6, 6, 4)),
    ("RELU6", None, (1, 6, 6, 4)),
    ("MINIMUM", np.full((1, 1, 1, 4), 0.2, np.float32), (1, 6, 6, 4)),
    ("MAXIMUM", np.full((1, 1, 1, 4), 0.2, np.float32), (1, 6, 6, 4)),
    ("REDUCE_MAX", [1, 2], (1, 4)),
    ("REDUCE_MIN", [1, 2], (1, 4)),
    ("ABS", None, (1, 6, 6, 4)),
]


@pytest.mark.parametrize(("operator", "constant", "shape"), ABSORBED)
def test_operators_with_an_integer_form_get_it(operator: str, constant: Any, shape: tuple[int, ...]) -> None:
    """One of the two quantizers makes the operator int8; its result is right."""
    program = _after_conv(operator, constant, shape)
    made = _quantized(program, recipes.named("int8"), full_integer=True)
    assert made.coverage.left_float == ()
    assert _relative_error(program, made.program, "y") < 0.06


def test_the_quantizer_is_named() -> None:
    """The first quantizer is used where it covers all, the second where it covers more."""
    assert _quantized(_classifier(), recipes.named("int8")).quantizer == aeq.NAME
    assert (
        _quantized(_after_conv("PRELU", np.full((1, 1, 4), 0.2, np.float32)), recipes.named("int8")).quantizer
        == ptq.NAME
    )


def test_operator_without_integer_form_is_a_finding() -> None:
    """What stays float is said with type, count and place."""
    made = _quantized(_after_conv("ELU"), recipes.named("int8"))
    assert made.coverage.left_float == (("ELU", "middle"),)
    assert [(f.rule, f.op) for f in made.findings] == [("OPS_LEFT_FLOAT", "ELU"), ("EXTRA_QUANTIZE", None)]
    assert "'middle'" in made.findings[0].message


def test_operator_without_integer_form_is_an_error_for_integer_targets() -> None:
    """A target that runs integers only refuses the program and names the operator."""
    with pytest.raises(QuantizationError, match=r"these operators stay float: ELU \(1\)"):
        _quantized(_after_conv("ELU"), recipes.named("int8"), full_integer=True)


def test_override_keeps_a_tensor_float() -> None:
    """An override by tensor name leaves that operator float, on purpose, and nothing else."""
    recipe = Recipe(scheme="int8", overrides=(Override(tensor="^logits$"),))
    made = _quantized(_classifier(), recipe)
    assert (made.coverage.by_wish, made.coverage.left_float) == (1, ())
    assert made.quantizer == aeq.NAME


def test_the_last_override_wins() -> None:
    """A later override for all tensors undoes an earlier one for some."""
    keep = Override(operator="FULLY_CONNECTED")
    undo = Override(operator="*", tensor=".*", scheme="int8")
    assert _quantized(_classifier(), Recipe(overrides=(keep, undo))).coverage.by_wish == 0
    assert _quantized(_classifier(), Recipe(overrides=(undo, keep))).coverage.by_wish == 1


def test_override_that_matches_nothing_is_a_finding() -> None:
    """A misspelt override is not silent."""
    made = _quantized(_classifier(), Recipe(overrides=(Override(tensor="logitz"),)))
    assert [f.rule for f in made.findings] == ["OVERRIDE_UNUSED"]


def test_override_with_a_broken_expression_is_refused() -> None:
    """The message quotes the expression."""
    with pytest.raises(QuantizationError, match=r"'\(' is no regular expression"):
        _quantized(_classifier(), Recipe(overrides=(Override(tensor="("),)))


def test_recipe_that_changes_nothing_is_refused() -> None:
    """A model without weights has no weight-only form; leaving it as it is would be silent."""
    builder = GraphBuilder()
    x = builder.input("x", SHAPE)
    builder.output(builder.op("TANH", [x], SHAPE), "y")
    with pytest.raises(QuantizationError, match="weight-only changed nothing"):
        _quantized(builder.build(), recipes.named("weight-only"), None)


def test_wide_range_is_a_finding() -> None:
    """A run-time mask of -1e9 makes int8 blind to ordinary values, which is said."""
    builder = GraphBuilder()
    x = builder.input("x", SHAPE)
    builder.output(builder.op("MUL", [x, builder.const("c", f32([1, 1, -1e9]))], SHAPE, name="scaled"), "y")
    made = _quantized(builder.build(), recipes.named("int8"))
    assert ("WIDE_RANGE", "scaled") in [(f.rule, f.op) for f in made.findings]


def test_unused_buffers_are_dropped() -> None:
    """No bytes of the float weights stay in the int8 file."""
    model = flatbuffer.load(_quantized(_classifier(), recipes.named("int8")).program)
    used = {t.buffer for g in model.subgraphs for t in g.tensors} | {m.buffer for m in model.metadata or ()}
    assert {0, *used} == set(range(len(model.buffers)))


def _target(**options: Any) -> Target:
    return Target(name="t", title="T", family="f", runtimes=("litert",), options=options)


def _build(folder: Path, program: bytes, recipe: Recipe, **options: Any) -> Any:
    source = folder / "float.tflite"
    source.write_bytes(program)
    model = Model(carrier="litert", path=source, signature=contract.signature_of(flatbuffer.load(program)))
    return LiteRT().build(model, recipe, _target(**options), SAMPLES, folder, no_progress)


def test_build_returns_the_program_with_its_quantization(tmp_path: Path) -> None:
    """Signature, tools, quantizer and file are those of the program."""
    program = _build(tmp_path, _classifier(), recipes.named("int8"))
    assert program.path.parent == tmp_path
    assert program.signature.inputs[0].quantization is not None
    assert set(program.tools) == {"ai-edge-litert", "ai-edge-quantizer"}
    assert program.details["calibration_samples"] == 16


def test_float32_build_changes_no_weights(tmp_path: Path) -> None:
    """The recipe float32 hands the model on."""
    program = _build(tmp_path, _classifier(), recipes.named("float32"))
    assert program.quantizer == "none"
    assert _relative_error(_classifier(), program.path.read_bytes(), "p") == 0.0


def test_full_integer_target_refuses(tmp_path: Path) -> None:
    """`options.full_integer` of the target reaches the quantizer."""
    with pytest.raises(QuantizationError, match="integers only"):
        _build(tmp_path, _after_conv("ELU"), recipes.named("int8"), full_integer=True)


def test_wrong_carrier_is_refused(tmp_path: Path) -> None:
    """An ExportedProgram is not for this runtime."""
    signature = contract.signature_of(flatbuffer.load(_classifier()))
    model = Model(carrier="exported", path=tmp_path / "m.pt2", signature=signature)
    with pytest.raises(QuantizationError, match="not from exported"):
        LiteRT().build(model, recipes.named("int8"), _target(), SAMPLES, tmp_path, no_progress)


def test_progress_is_reported(tmp_path: Path) -> None:
    """Calibration tells how many samples it has seen, and the share."""
    told: list[tuple[str, float | None]] = []
    _quantized(_classifier(), recipes.named("int8"), progress=lambda text, share=None: told.append((text, share)))
    assert told[0] == ("calibrating", 1.0)


def test_coverage_counts_float_and_integer(tmp_path: Path) -> None:
    """A float program is float throughout, its int8 form not at all."""
    assert len(coverage.of(flatbuffer.load(_classifier())).left_float) == 5
    assert coverage.of(flatbuffer.load(_quantized(_classifier(), recipes.named("int8")).program)).left_float == ()


def test_weights_that_were_quantized_before_are_a_finding() -> None:
    """Quantizing the result of a weight-only recipe works, and says that its weights were quantized already."""
    stored = _quantized(_classifier(), recipes.named("weight-only"), None)
    made = _quantized(stored.program, recipes.named("int8"))
    assert [f.rule for f in made.findings] == ["WEIGHTS_RESTORED"]
    assert _relative_error(_classifier(), made.program, "p") < 0.04


def test_the_bytes_that_a_quantizer_points_into_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """TFLite's wrapper does not own the model that it is given: freed under it, it crashes or finds ranges missing."""
    held: list[bool] = []

    class Wrapper:
        def __init__(self, content: bytes, *_: Any) -> None:
            self.address = id(content)

        def QuantizeModel(self, *_: Any) -> bytes:  # noqa: N802 - the library's name
            caller = inspect.currentframe()
            assert caller is not None
            assert caller.f_back is not None
            held.append(any(id(value) == self.address for value in caller.f_back.f_locals.values()))
            return b""

    monkeypatch.setattr(ptq, "_library", lambda: SimpleNamespace(CalibrationWrapper=Wrapper))
    samples = normal_samples({"x": (1, 4)})
    builder = GraphBuilder()
    builder.output(builder.fully_connected(builder.input("x", (1, 4)), np.eye(4), name="end"), "y")
    ready = quantize.calibrated(flatbuffer.load(builder.build()), recipes.named("int8"), samples)
    assert ready.ranges is not None
    ptq.quantize(ready.program, recipes.named("int8"), ready.ranges, samples)
    assert held == [True]
