"""How much of a model's accuracy hangs on the last bit: int8 programs with rounding as different as the chip's.

The Edge TPU's arithmetic is the reference kernels' up to the rounding of some requantizations. Here the program gets,
behind each such operator, an ADD of a further input with the tensor's scale, which takes values of -1, 0 and +1 steps:

    x' = clamp(x + noise), noise in {-1, 0, 1}        int8 ADD of equal scales is exact, so noise 0 changes nothing

Where and how often the chip differs is not published; that a share of `rate` of the elements differs is an assumption,
and the result says how sensitive the model is, not what the chip computes. Mode: `emulated`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ConfigError, QuantizationError
from edge.signature import Signature
from edge.targets.base import Mode, Session
from edge.targets.litert import edit, flatbuffer
from edge.targets.litert.session import LiteRTSession

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

MODE: Mode = "emulated"
# Operators that requantize without a 32-bit accumulator per weight, or look up a table: their last bit is the kernel's.
# CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED accumulate exactly and are left as they are.
NOISY = frozenset(
    {
        *("ADD", "SUB", "MUL", "SQUARED_DIFFERENCE", "PRELU", "L2_NORMALIZATION", "RSQRT"),
        *("AVERAGE_POOL_2D", "MEAN", "SUM", "LOGISTIC", "TANH", "SOFTMAX"),
        *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "QUANTIZE"),
    }
)
# Values of a zero point that leave room for one step to both sides.
_MIDDLE = {"int8": 0, "uint8": 128}
_DEFAULT_RATE = 0.25


@dataclass(frozen=True, kw_only=True)
class NoiseInput:
    """An input that was added: its name in the signature, shape and dtype, and the operator that it disturbs."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    op: int
    operator: str

    def draw(self, random: np.random.Generator, rate: float) -> Array:
        """Return noise of the input's shape: one step up or down in a share of `rate` of the elements, 0 elsewhere."""
        steps = random.integers(0, 2, self.shape, dtype=np.int16) * 2 - 1
        steps *= random.random(self.shape, dtype=np.float32) < rate
        return (steps + _MIDDLE[self.dtype]).astype(self.dtype)


def with_rounding_noise(model: Any, mapped: Sequence[bool] | None = None) -> tuple[Any, tuple[NoiseInput, ...]]:
    """Return a copy of a quantized `ModelT` with noise inputs behind the operators of `NOISY`, and those inputs.

    `mapped` keeps the noise to operators that run on the Edge TPU. Tensors keep their names and indices: what an
    operator computes moves to a new tensor, and the ADD computes the old one. Noise has the tensors' concrete shapes:
    a batch that is declared dynamic stays 1. Raises ConfigError where `mapped` does not fit.
    """
    noisy = copy.deepcopy(model)
    graph = noisy.subgraphs[0]
    view = flatbuffer.graph(noisy)
    if mapped is not None and len(mapped) != len(view.ops):
        raise ConfigError(f"There are {len(mapped)} placements for {len(view.ops)} operators.")
    added, operators = [], []
    for op, written in zip(view.ops, graph.operators or [], strict=True):
        operators.append(written)
        if _disturbed(view, op) and (mapped is None or mapped[op.index]):
            operators.append(_disturb(noisy, graph, written, op.index))
            tensor = view.tensors[op.outputs[0]]
            added.append(_noise_input(tensor, op))
    graph.operators = operators
    _declare(noisy, graph, added, first=len(graph.tensors) - 2 * len(added))
    return noisy, tuple(added)


def _disturbed(graph: flatbuffer.Graph, op: flatbuffer.Op) -> bool:
    if op.name not in NOISY or len(op.outputs) != 1:
        return False
    tensor = graph.tensors[op.outputs[0]]
    return tensor.dtype in _MIDDLE and tensor.quantization is not None and tensor.quantization.axis is None


def _noise_input(tensor: flatbuffer.Tensor, op: flatbuffer.Op) -> NoiseInput:
    return NoiseInput(
        name=f"rounding_noise_{op.index}", shape=tensor.shape, dtype=tensor.dtype, op=op.index, operator=op.name
    )


def _disturb(model: Any, graph: Any, written: Any, index: int) -> Any:
    """Move an operator's output to a new tensor and return the ADD that computes the old one; append two tensors."""
    schema = flatbuffer.schema()
    target = int(written.outputs[0])
    exact, noise = copy.deepcopy(graph.tensors[target]), copy.deepcopy(graph.tensors[target])
    exact.name = flatbuffer.text(exact.name).encode() + b"/exact"
    noise.name = f"rounding_noise_{index}".encode()
    noise.quantization.zeroPoint = np.asarray([_middle(noise)], np.int64)
    noise.shapeSignature = None
    graph.tensors += [exact, noise]
    written.outputs = np.asarray([len(graph.tensors) - 2], np.int32)
    add = schema.OperatorT()
    add.opcodeIndex = edit.code_index(model, "ADD", 2)
    add.inputs = np.asarray([len(graph.tensors) - 2, len(graph.tensors) - 1], np.int32)
    add.outputs = np.asarray([target], np.int32)
    add.builtinOptionsType = schema.BuiltinOptions.AddOptions
    add.builtinOptions = schema.AddOptionsT()
    return add


def _middle(tensor: Any) -> int:
    return next(middle for dtype, middle in _MIDDLE.items() if flatbuffer.dtype_code(dtype) == tensor.type)


def _declare(model: Any, graph: Any, added: Sequence[NoiseInput], *, first: int) -> None:
    """Make the noise tensors inputs of the graph and of its signatures."""
    indices = [first + 2 * number + 1 for number in range(len(added))]
    graph.inputs = np.asarray([*graph.inputs, *indices], np.int32)
    for signature in model.signatureDefs or ():
        if signature.subgraphIndex == 0:
            for noise, index in zip(added, indices, strict=True):
                entry = flatbuffer.schema().TensorMapT()
                entry.name, entry.tensorIndex = noise.name.encode(), index
                signature.inputs = [*signature.inputs, entry]


class NoisySession:
    """An opened program that draws new rounding noise at every run; a Session with the original's signature."""

    def __init__(
        self, session: Session, noise: Sequence[NoiseInput], signature: Signature, *, rate: float, seed: int
    ) -> None:
        self.signature = signature
        self._session = session
        self._noise = noise
        self._rate = rate
        self._random = np.random.default_rng(seed)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once with fresh noise; raises as the session below."""
        drawn = {noise.name: noise.draw(self._random, self._rate) for noise in self._noise}
        return self._session.run({**inputs, **drawn})


@dataclass(frozen=True, kw_only=True)
class RoundingSensitivity:
    """Scores of the program as it is and with rounding that differs, in the unit of the score that was given.

    `baseline` is the score without disturbance, `scores` one for each noisy run. `rate` is the share of elements
    that differ by one step; `operators` counts the disturbed ones. A higher score is taken to be better.
    """

    baseline: float
    scores: tuple[float, ...]
    rate: float
    operators: int
    mode: Mode = MODE

    @property
    def deltas(self) -> tuple[float, ...]:
        """Score of each noisy run minus the baseline."""
        return tuple(score - self.baseline for score in self.scores)

    @property
    def mean_delta(self) -> float:
        """Average change of the score."""
        return sum(self.deltas) / len(self.scores)

    @property
    def worst_delta(self) -> float:
        """The largest loss of any run."""
        return min(self.deltas)


def _kernels(graph: flatbuffer.Graph) -> str:
    """Return the kernels to score with: LiteRT's reference kernel of a quantized SUM ignores the output's scale."""
    sums = (op for op in graph.ops if op.name == "SUM")
    return "builtin" if any(graph.tensors[op.outputs[0]].quantization for op in sums) else "reference"


def run_sensitivity(
    model: Any,
    score: Callable[[Session], float],
    *,
    mapped: Sequence[bool] | None = None,
    runs: int = 5,
    rate: float = _DEFAULT_RATE,
    seed: int = 0,
    threads: int = 1,
) -> RoundingSensitivity:
    """Score a quantized `ModelT` without disturbance, then `runs` times with random rounding of one step.

    `score` runs its evaluation data through the session that it gets. Run number i draws from `seed + i`. Raises
    QuantizationError for a model with nothing to disturb, ConfigError for `runs` below 1 or a `rate` not in 0 to 1.
    """
    if runs < 1 or not 0 < rate <= 1:
        raise ConfigError(f"Rounding sensitivity with {runs} runs at a rate of {rate:g}; accepted: 1 or more, 0 to 1.")
    noisy, noise = with_rounding_noise(model, mapped)
    if not noise:
        raise QuantizationError(
            "The program has no 8-bit operator whose rounding can differ, so there is nothing to try.",
            hint=f"Operators that are tried: {', '.join(sorted(NOISY))}.",
        )
    kernels = _kernels(flatbuffer.graph(model))
    exact = LiteRTSession(flatbuffer.dump(model), kernels=kernels, threads=threads)
    disturbed = LiteRTSession(flatbuffer.dump(noisy), kernels=kernels, threads=threads)
    # The noisy program's own signature has the noise as inputs, which a score must not see.
    sessions = (NoisySession(disturbed, noise, exact.signature, rate=rate, seed=seed + i) for i in range(runs))
    return RoundingSensitivity(
        baseline=score(exact),
        scores=tuple(score(session) for session in sessions),
        rate=rate,
        operators=len(noise),
    )
