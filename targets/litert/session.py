"""Run a LiteRT program through its signature, with a stated set of kernels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.calibration.affine import from_program, to_program
from edge.errors import DataError, MissingPackageError, SourceError, UsageError
from edge.signature import TensorSpec
from edge.targets.litert import contract, flatbuffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

KERNEL_SETS = ("reference", "builtin", "xnnpack")


def interpreter(program: bytes, *, kernels: str, threads: int, preserve: bool = False) -> Any:
    """Return an interpreter whose tensors are allocated.

    `kernels`: `reference` (plain C++), `builtin` (optimized, no delegate) or `xnnpack` (the default of phones and
    boards; int16 activations stay on the builtin kernels, about 20 times slower than float). `preserve` keeps every
    intermediate tensor readable. Raises SourceError with the interpreter's own words.
    """
    if kernels not in KERNEL_SETS:
        raise UsageError(f"The kernel set {kernels!r} is unknown; accepted: {', '.join(KERNEL_SETS)}.")
    try:
        from ai_edge_litert import interpreter as litert
    except ImportError as error:
        raise MissingPackageError(
            "Running a .tflite file needs the package ai-edge-litert, which is not installed.",
            hint="pip install 'edgekit[litert]'",
        ) from error
    resolvers = litert.OpResolverType
    chosen = {
        "reference": resolvers.BUILTIN_REF,
        "builtin": resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "xnnpack": resolvers.BUILTIN,
    }[kernels]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # preserving tensors "is intended for debugging": that is the use here
            made = litert.Interpreter(
                model_content=program,
                num_threads=threads,
                experimental_op_resolver_type=chosen,
                experimental_preserve_all_tensors=preserve,
            )
        made.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise SourceError(
            f"LiteRT cannot load the program: {_first_line(error)}",
            hint="Custom and Flex operators are not supported; an operator may be newer than this LiteRT.",
        ) from error
    return made


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:400]


class LiteRTSession:
    """An opened program. `run` takes and returns arrays in the program's own dtypes, by signature name.

    Every run starts from zeroed state variables, so that samples are independent of their order.
    """

    def __init__(self, program: bytes, *, kernels: str, threads: int, preserve: bool = False) -> None:
        model = flatbuffer.load(program)
        self.signature = contract.signature_of(model)
        names = contract.contract_of(model)
        if names.subgraph != 0:
            raise SourceError("The program's signature is not its first subgraph.", hint="Convert the model again.")
        self._inputs = [(spec, names.inputs[spec.name]) for spec in self.signature.inputs]
        self._outputs = [(spec.name, names.outputs[spec.name]) for spec in self.signature.outputs]
        self._stateful = any(t.isVariable for g in model.subgraphs for t in g.tensors or ())
        self._interpreter = interpreter(program, kernels=kernels, threads=threads, preserve=preserve)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once and return copies. Raises DataError for a wrong name, shape or dtype, SourceError if it fails."""
        self.invoke(inputs)
        return {name: self.tensor(index) for name, index in self._outputs}

    def invoke(self, inputs: Mapping[str, Array]) -> None:
        """Run once and leave the results in the interpreter, for `tensor`. Raises as `run` does."""
        if unknown := set(inputs) - {spec.name for spec, _ in self._inputs}:
            raise DataError(f"{_names(unknown)} are no inputs; accepted: {_names(s.name for s, _ in self._inputs)}.")
        for spec, index in self._inputs:
            self._feed(spec, index, inputs)
        try:
            if self._stateful:
                self._interpreter.reset_all_variables()
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise SourceError(
                f"LiteRT failed while running the program: {_first_line(error)}",
                hint="Run it with the reference kernels to see whether one kernel set is at fault.",
            ) from error

    def tensor(self, index: int) -> Array:
        """Return a copy of a tensor after `invoke`; intermediate ones need a session that preserves them."""
        values: Array = self._interpreter.get_tensor(index)
        return values

    def _feed(self, spec: TensorSpec, index: int, inputs: Mapping[str, Array]) -> None:
        values = np.asarray(_value(spec, inputs))
        if values.dtype == np.uint8 and spec.dtype == "float32":
            values = values.astype(np.float32)  # raw pixels, for the float form of a program that takes them
        if values.dtype != spec.dtype or not _fits(values.shape, spec.shape):
            got = f"{values.dtype}[{', '.join(map(str, values.shape))}]"
            raise DataError(f"Input {spec.name!r} got {got}; accepted: {spec}.")
        try:
            if -1 in spec.shape and tuple(self._interpreter.get_tensor(index).shape) != values.shape:
                self._interpreter.resize_tensor_input(index, values.shape)
                self._interpreter.allocate_tensors()
            self._interpreter.set_tensor(index, values)
        except (ValueError, RuntimeError) as error:
            raise SourceError(f"LiteRT does not take input {spec.name!r}: {_first_line(error)}") from error


def _value(spec: TensorSpec, inputs: Mapping[str, Array]) -> Array:
    try:
        return inputs[spec.name]
    except KeyError:
        raise DataError(f"Input {spec.name!r} is missing; given: {_names(inputs)}.") from None


def _names(names: Any) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"


def _fits(got: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(got) == len(wanted) and all(w in (-1, g) for g, w in zip(got, wanted, strict=True))


def open_program(path: Path, *, kernels: str, threads: int) -> LiteRTSession:
    """Open the program file. Raises SourceError for what is no valid program."""
    try:
        program = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
    return LiteRTSession(program, kernels=kernels, threads=threads)


def run_float(session: LiteRTSession, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run with float inputs and return float outputs, quantized and dequantized by the program's own parameters."""
    signature = session.signature
    known = {s.name for s in signature.inputs}
    fed = {n: to_program(signature.input(n), np.asarray(v)) if n in known else v for n, v in inputs.items()}
    found = session.run(fed)
    return {spec.name: from_program(spec, found[spec.name]) for spec in signature.outputs}
