"""Run a float flatbuffer in ai-edge-litert's interpreter, on kernels without delegates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge.errors import ConversionError, MissingPackageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

Kernels = Literal["reference", "optimized"]


def interpreter(program: bytes, kernels: Kernels) -> Any:
    """Return an interpreter that is not allocated yet. Raises MissingPackageError, and what the interpreter raises."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise MissingPackageError(
            "Running a .tflite file needs the package ai-edge-litert, which is not installed.",
            hint="pip install 'edgekit[litert]'",
        ) from error
    resolver = (
        OpResolverType.BUILTIN_REF if kernels == "reference" else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    return Interpreter(model_content=program, experimental_op_resolver_type=resolver, num_threads=2)


class FloatRunner:
    """A flatbuffer whose graph inputs and outputs stand in the order of `inputs` and `outputs`.

    Reference kernels where they cover the model and are asked for, else the optimized ones; `kernels` tells which.
    Variable tensors (of fused LSTM operators) are cleared before each run.
    """

    def __init__(
        self, program: bytes, inputs: Sequence[str], outputs: Sequence[str], *, kernels: Kernels = "reference"
    ) -> None:
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self.kernels = kernels
        try:
            self._interpreter = _allocated(program, kernels)
        except (RuntimeError, ValueError) as error:
            if kernels == "optimized":
                raise _cannot_run(error) from error
            self.kernels = "optimized"
            try:
                self._interpreter = _allocated(program, self.kernels)
            except (RuntimeError, ValueError) as second:
                raise _cannot_run(second) from second

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; inputs are cast to the program's dtypes. Raises ConversionError where the program fails."""
        runner = self._interpreter
        try:
            runner.reset_all_variables()
            for name, detail in zip(self._inputs, runner.get_input_details(), strict=True):
                runner.set_tensor(detail["index"], np.asarray(inputs[name]).astype(detail["dtype"], copy=False))
            runner.invoke()
            details = runner.get_output_details()
            return {n: runner.get_tensor(d["index"]) for n, d in zip(self._outputs, details, strict=True)}
        except (RuntimeError, ValueError) as error:
            raise _cannot_run(error) from error


def _allocated(program: bytes, kernels: Kernels) -> Any:
    runner = interpreter(program, kernels)
    runner.allocate_tensors()
    return runner


def _cannot_run(error: Exception) -> ConversionError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ConversionError(
        f"ai-edge-litert cannot run the float program: {(lines or ['no message'])[0][:300]}",
        hint="The operator or shape that it names is at fault; `edgekit inspect` lists the operators.",
    )
