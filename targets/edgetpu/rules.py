"""What the Edge TPU compiler maps, read from `rules.toml`, and the tests that its rules name.

A test looks at one operator and answers whether the rule refuses it; its parameters (limits, multiples) stand in the
TOML file beside reason, certainty, fix and source.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge.errors import SourceError
from edge.targets.litert.flatbuffer import Graph, Op, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

Certainty = Literal["documented", "observed", "extrapolated"]
EIGHT_BIT = ("int8", "uint8")
# Operators whose second and later inputs are not data: axes, sizes, indices.
_ARGUMENTS = {
    "TRANSPOSE_CONV": 2,
    "SPLIT": 1,
}


@dataclass(frozen=True, kw_only=True)
class OperatorFacts:
    """What is known of one operator that the chip has. `elements` is the largest activation seen mapped."""

    version: int
    runtime: int
    documented: bool
    mapped: int
    elements: int


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One reason why an operator is not mapped.

    `observed` counts refused operators of the ground truth, `seen` those of public logs; `parameters` are the test's.
    """

    id: str
    operators: tuple[str, ...]
    test: str
    reason: str
    certainty: Certainty
    fix: str
    source: str
    observed: int = 0
    seen: int = 0
    parameters: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.test not in TESTS:
            raise ValueError(f"rule {self.id}: no test is named {self.test!r}; accepted: {', '.join(sorted(TESTS))}")
        if self.certainty == "observed" and not self.observed + self.seen:
            raise ValueError(f"rule {self.id} is observed but counts no observation")

    @property
    def certainty_text(self) -> str:
        """`documented`, `observed 12 times` or `extrapolated`."""
        times = self.observed + self.seen
        return f"observed {times} times" if self.certainty == "observed" else self.certainty

    def refuses(self, case: Case) -> bool:
        """Answer whether this rule keeps the operator off the chip."""
        return ("*" in self.operators or case.op.name in self.operators) and TESTS[self.test](case, self.parameters)


@dataclass(frozen=True, kw_only=True)
class RuleBook:
    """All rules in order, the operators that the chip has, the compiler's reason texts by key, the chip's sizes."""

    rules: tuple[Rule, ...]
    operators: Mapping[str, OperatorFacts]
    reasons: Mapping[str, str]
    tiles: int
    narrow_bytes: int

    def first(self, case: Case) -> Rule | None:
        """Return the first rule that refuses the operator, None where it is mapped."""
        return next((rule for rule in self.rules if rule.refuses(case)), None)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operator in its graph, with the Edge TPU runtime that the compilation asks for."""

    graph: Graph
    op: Op
    runtime: int
    book: RuleBook

    def inputs(self) -> list[Tensor]:
        """All inputs but omitted ones."""
        return [self.graph.tensors[t] for t in self.op.inputs if t >= 0]

    def outputs(self) -> list[Tensor]:
        """All outputs."""
        return [self.graph.tensors[t] for t in self.op.outputs]

    def data(self) -> list[Tensor]:
        """Inputs that are not constant, and outputs: what flows through the chip's activation memory."""
        return [t for t in self.inputs() if not t.is_constant] + self.outputs()

    def source(self) -> Tensor:
        """The tensor that the operator transforms."""
        return self.input(_ARGUMENTS.get(self.op.name, 0))

    def input(self, position: int) -> Tensor:
        """An input that the operator cannot do without; SourceError where it is missing."""
        if position >= len(self.op.inputs) or self.op.inputs[position] < 0:
            raise SourceError(f"Operator {self.op.index} ({self.op.name}) has no input {position}.")
        return self.graph.tensors[self.op.inputs[position]]

    def constant(self, position: int) -> NDArray[Any] | None:
        """Value of a constant input, None where it is absent or computed."""
        if position >= len(self.op.inputs) or self.op.inputs[position] < 0:
            return None
        return self.graph.data(self.op.inputs[position])


Parameters = Mapping[str, int]


def _output_not_8_bit(case: Case, _: Parameters) -> bool:
    return any(t.dtype not in EIGHT_BIT for t in case.outputs())


def _operator_not_listed(case: Case, _: Parameters) -> bool:
    return case.op.name not in case.book.operators


def _version_above_known(case: Case, _: Parameters) -> bool:
    return case.op.version > case.book.operators[case.op.name].version


def _input_not_8_bit(case: Case, _: Parameters) -> bool:
    return case.source().dtype not in EIGHT_BIT


def _runtime_too_old(case: Case, _: Parameters) -> bool:
    return case.op.name in case.book.operators and case.runtime < case.book.operators[case.op.name].runtime


def _more_than_three_dimensions(case: Case, _: Parameters) -> bool:
    return any(d > 1 for t in case.data() for d in t.shape[:-3])


def _weights_not_constant(case: Case, _: Parameters) -> bool:
    skip = {case.source().index}
    if case.op.name.endswith("LSTM"):  # its states are variable tensors
        skip |= {t.index for t in case.inputs() if t.is_variable}
    return any(not t.is_constant for t in case.inputs() if t.index not in skip)


def _argument_not_constant(case: Case, _: Parameters) -> bool:
    return any(t.dtype in ("int32", "int64") and not t.is_constant for t in case.inputs())


def _fused_activation(case: Case, _: Parameters) -> bool:
    return bool(case.op.option("fusedActivationFunction", 0))


def _constant_operand_not_padding(case: Case, _: Parameters) -> bool:
    constants = [t for t in case.inputs() if t.is_constant]
    return bool(constants) and (len(case.inputs()) != 2 or not all(_all_zero(case, t) for t in constants))


def _all_zero(case: Case, tensor: Tensor) -> bool:
    value = case.graph.data(tensor.index)
    zero = tensor.quantization.zero_point[0] if tensor.quantization else 0
    return value is not None and bool(np.all(value == zero))


def _shuffled_weights(case: Case, _: Parameters) -> bool:
    return bool(case.op.option("weightsFormat", 0))


def _splits_first_axis(case: Case, _: Parameters) -> bool:
    axis = case.constant(0)
    rank = len(case.source().shape)
    return (
        axis is not None and axis.size == 1 and len(case.op.outputs) > 1 and rank > 1 and int(axis.item()) % rank == 0
    )


def _pads_batch(case: Case, _: Parameters) -> bool:
    pads = case.constant(1)
    return pads is not None and pads.ndim == 2 and len(pads) >= 4 and bool(np.any(pads[:-3]))


def _axes(case: Case) -> set[int]:
    value = case.constant(1)
    rank = max(1, len(case.source().shape))
    return set() if value is None else {int(a) % rank for a in value.reshape(-1)}


def _reduces_batch(case: Case, _: Parameters) -> bool:
    rank = len(case.source().shape)
    return any(axis < rank - 3 and case.source().shape[axis] > 1 for axis in _axes(case))


def _reduces_odd_depth(case: Case, parameters: Parameters) -> bool:
    shape = case.source().shape
    return bool(shape) and len(shape) - 1 in _axes(case) and shape[-1] % parameters["multiple"] != 0


def _stride_not_one(case: Case, _: Parameters) -> bool:
    strides = case.constant(3)
    if case.op.option("ellipsisMask", 0) or case.op.option("newAxisMask", 0):
        return True
    return strides is not None and bool(np.any(strides != 1))


def _uneven_dilation(case: Case, _: Parameters) -> bool:
    across, down = case.op.option("dilationWFactor", 1), case.op.option("dilationHFactor", 1)
    # A dilation along an axis where the kernel is 1 long changes nothing.
    return across != down and all(side > 1 for side in case.input(1).shape[1:3])


def _last_axis_above(case: Case, parameters: Parameters) -> bool:
    shape = case.source().shape
    return bool(shape) and shape[-1] > parameters["limit"]


def _alpha_not_1d(case: Case, _: Parameters) -> bool:
    alpha = case.input(1).shape
    return sum(d > 1 for d in alpha) > 1


def _time_major_or_peephole(case: Case, _: Parameters) -> bool:
    # Inputs 9-11 are peephole weights, 16-17 the projection, 20-23 layer normalisation (TFLite LSTM, full kernel).
    extra = [p for p in (9, 10, 11, 16, 17, 20, 21, 22, 23) if p < len(case.op.inputs)]
    return bool(case.op.option("timeMajor", False)) or any(case.op.inputs[p] >= 0 for p in extra)


def _larger_than_one_tile(case: Case, parameters: Parameters) -> bool:
    return parameters["tensors"] * case.source().elements > case.book.narrow_bytes


def _larger_than_all_tiles(case: Case, _: Parameters) -> bool:
    return case.outputs()[0].elements > case.book.narrow_bytes * case.book.tiles


def _sizes(case: Case) -> list[tuple[int, int]]:
    return list(zip(case.source().shape[-3:-1], case.outputs()[0].shape[-3:-1], strict=False))


def _resizes_single_pixel(case: Case, _: Parameters) -> bool:
    return any(before == 1 and after > 1 for before, after in _sizes(case))


def _resizes_more_than(case: Case, parameters: Parameters) -> bool:
    return any(after > parameters["limit"] * before for before, after in _sizes(case))


def _flattened_too_large(case: Case, _: Parameters) -> bool:
    # Rank 3 [1, rows, long axis]: one row of 4 tiles shares the rows, the long axis stays whole in each of them.
    tensors = case.data()
    flat = [t for t in tensors if len(t.shape) >= 3 and t.shape[-1] >= 1024 and all(d == 1 for d in t.shape[:-2])]
    return sum(-(-t.shape[-2] // 4) * t.shape[-1] for t in flat) > case.book.narrow_bytes


TESTS: Mapping[str, Callable[[Case, Parameters], bool]] = {
    test.__name__.lstrip("_"): test
    for test in (
        _output_not_8_bit,
        _operator_not_listed,
        _version_above_known,
        _input_not_8_bit,
        _runtime_too_old,
        _more_than_three_dimensions,
        _weights_not_constant,
        _argument_not_constant,
        _fused_activation,
        _constant_operand_not_padding,
        _shuffled_weights,
        _splits_first_axis,
        _pads_batch,
        _reduces_batch,
        _reduces_odd_depth,
        _stride_not_one,
        _uneven_dilation,
        _last_axis_above,
        _alpha_not_1d,
        _time_major_or_peephole,
        _larger_than_one_tile,
        _larger_than_all_tiles,
        _resizes_single_pixel,
        _resizes_more_than,
        _flattened_too_large,
    )
}
_FIELDS = ("id", "operators", "test", "reason", "certainty", "fix", "source", "observed", "seen")


def _rule(entry: dict[str, Any], reasons: Mapping[str, str]) -> Rule:
    known = {k: v for k, v in entry.items() if k in _FIELDS}
    known |= {"operators": tuple(entry["operators"]), "reason": reasons[entry["reason"]]}
    return Rule(**known, parameters={k: v for k, v in entry.items() if k not in _FIELDS})


@functools.cache
def load() -> RuleBook:
    """Return the rules of `rules.toml`; ValueError for a rule that names no test (a bug of ours)."""
    data = tomllib.loads(resources.files(__package__).joinpath("rules.toml").read_text(encoding="utf-8"))
    return RuleBook(
        rules=tuple(_rule(entry, data["reasons"]) for entry in data["rules"]),
        operators={name: OperatorFacts(**entry) for name, entry in data["operators"].items()},
        reasons=data["reasons"],
        tiles=data["chip"]["tiles"],
        narrow_bytes=data["chip"]["narrow_bytes"],
    )
