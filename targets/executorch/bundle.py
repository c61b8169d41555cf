"""Golden vectors in the form that ExecuTorch's own tools check on a device: a BundledProgram (`.bpte`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ArtifactError, EdgekitError
from edge.targets.executorch import carrier, program

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    # Inputs and outputs of one run by name, in the program's own dtypes.
    Vector = tuple[Mapping[str, Array], Mapping[str, Array]]


def write_bundled(pte: Path, vectors: Sequence[Vector], path: Path) -> None:
    """Write the program of `pte` with golden inputs and outputs of its first method.

    Raises ArtifactError for vectors that do not fit the program.
    """
    from executorch.devtools import BundledProgram
    from executorch.devtools.bundled_program.serialize import serialize_from_bundled_program_to_flatbuffer

    view = program.read(pte)
    if view.signature is None or not vectors:
        raise ArtifactError(f"{pte} cannot be bundled without vectors or with ends that are no tensors.")
    try:
        suite = _suite(view, vectors)
        bundled = BundledProgram(None, [suite], pte_file_path=str(pte))
        data = serialize_from_bundled_program_to_flatbuffer(bundled)
    except EdgekitError:
        raise
    except Exception as error:  # ExecuTorch asserts what fits
        raise ArtifactError(f"The golden vectors do not fit {pte}: {str(error)[:300]}") from error
    path.write_bytes(bytes(data))


def _suite(view: program.View, vectors: Sequence[Vector]) -> Any:
    import torch
    from executorch.devtools.bundled_program.config import MethodTestCase, MethodTestSuite

    assert view.signature is not None
    names = [t.name for t in view.signature.outputs]
    cases = [
        MethodTestCase(
            inputs=carrier.as_tensors(view.signature, inputs),
            expected_outputs=[torch.from_numpy(np.array(outputs[n])) for n in names],
        )
        for inputs, outputs in vectors
    ]
    method = "forward" if "forward" in view.methods else view.methods[0]
    return MethodTestSuite(method_name=method, test_cases=cases)


def verify_bundled(path: Path, *, relative: float = 1e-3, absolute: float = 1e-4) -> int:
    """Run a `.bpte` here and return how many vectors it repeats; raise ArtifactError at the first that it does not."""
    from executorch.devtools.bundled_program.serialize import deserialize_from_flatbuffer_to_bundled_program
    from executorch.extension.pybindings import portable_lib

    data = path.read_bytes()
    try:
        suites = deserialize_from_flatbuffer_to_bundled_program(data).method_test_suites
        bundled = portable_lib._load_bundled_program_from_buffer(data)
    except Exception as error:
        raise ArtifactError(f"{path} is no bundled program: {str(error)[:200]}") from error
    count = 0
    for suite in suites:
        for number in range(len(suite.test_cases)):
            try:
                bundled.verify_result_with_bundled_expected_output(suite.method_name, number, relative, absolute)
            except RuntimeError as error:
                raise ArtifactError(
                    f"{path} does not repeat golden vector {number} of {suite.method_name}: {str(error)[:200]}"
                ) from error
            count += 1
    return count
