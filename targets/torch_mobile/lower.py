"""Trace, freeze and save a module for the lite interpreter, and prove each step on real inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge import codec
from edge.errors import ConversionError
from edge.findings import Finding
from edge.signature import Signature
from edge.targets.torch_common import CONTRACT, first_line, quiet
from edge.targets.torch_mobile.quantize import engine

# Of a step that must not change the arithmetic, relative to the output's largest value.
TOLERANCE = 1e-4
_CONTROL_FLOW_HINT = (
    "Write the branch with torch.cond, the loop with torch.while_loop (edgekit keeps both as scripted branches), "
    "choose between results with torch.where, or script the module (--script)."
)


def trace(module: Any, inputs: Sequence[Sequence[Any]]) -> Any:
    """Return the frozen trace of a module of flat tensors, the same as the module on all `inputs`.

    Raises ConversionError where another input than the traced one gives something else: the trace has taken one side of
    a decision that depends on the data.
    """
    import torch

    with engine(), quiet(), torch.no_grad():
        try:
            traced = torch.jit.freeze(torch.jit.trace(module, tuple(inputs[0]), check_trace=False).eval())
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConversionError(
                f"The module cannot be traced: {first_line(error)}", hint="Use `--runtime executorch`."
            ) from error
        for number, tensors in enumerate(inputs):
            _same(module, traced, tensors, number)
    return traced


def _same(module: Any, traced: Any, tensors: Sequence[Any], number: int) -> None:
    expected = _flat(module(*tensors))
    try:
        found = _flat(traced(*tensors))
    except RuntimeError as error:
        raise ConversionError(
            f"The trace of input 0 fails on input {number}: {first_line(error)}", hint=_CONTROL_FLOW_HINT
        ) from error
    if (apart := largest_difference(expected, found)) > TOLERANCE:
        raise ConversionError(
            f"The trace of input 0 differs on input {number} by {apart:.3g} of the output: the module decides by the "
            "values of its data, and a trace keeps one side only.",
            hint=_CONTROL_FLOW_HINT,
        )


def _flat(value: Any) -> list[Any]:
    from torch.utils import _pytree as pytree

    return list(pytree.tree_leaves(value))


def largest_difference(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """Return the largest max |expected - found| / max |expected| of the outputs; infinity for another shape or NaN."""
    import torch

    worst = 0.0
    for one, two in zip(expected, found, strict=True):
        if one.shape != two.shape or one.dtype != two.dtype:
            return float("inf")
        if one.numel() == 0 or torch.equal(one, two):
            continue
        a, b = one.double(), two.double()
        same = (a == b) | (a.isnan() & b.isnan())  # infinities of the same sign too
        finite = a[a.isfinite()].abs()
        size = max(float(finite.max()), 1e-6) if len(finite) else 1.0
        apart = (a - b).abs().masked_fill(same, 0.0)
        worst = max(worst, float("inf") if apart.isnan().any() else float(apart.max()) / size)
    return worst


def optimized(traced: Any) -> tuple[Any, Finding | None]:
    """Return the module with prepacked float kernels; unchanged, with a finding, where this PyTorch cannot."""
    from torch.utils.mobile_optimizer import optimize_for_mobile

    try:
        with quiet():
            return optimize_for_mobile(traced), None
    except RuntimeError as error:
        finding = Finding(
            rule="MOBILE_OPTIMIZER_ABSENT",
            severity="info",
            message="Float layers are not prepacked for XNNPACK: this PyTorch is built without its mobile optimizer "
            f"({first_line(error)[-120:]}).",
            fix="Nothing is needed for int8. For float, pass the .ptl's TorchScript through optimize_for_mobile of a "
            "PyTorch that was built with USE_XNNPACK=1, or use `--runtime executorch`.",
        )
        return traced, finding


def save(module: Any, signature: Signature, path: Path) -> None:
    """Write the `.ptl` with its contract inside. Raises ConversionError for what the lite interpreter cannot hold."""
    try:
        with quiet(), engine():
            module._save_for_lite_interpreter(str(path), _extra_files={CONTRACT: codec.dumps(codec.to_json(signature))})
            _drop_debug(path)
    except RuntimeError as error:
        raise ConversionError(
            f"The module cannot be saved for the lite interpreter: {first_line(error)}",
            hint="Use `--runtime executorch`.",
        ) from error


def _drop_debug(path: Path) -> None:
    """Write the archive anew without the source lines of the trace: they hold paths of the building machine."""
    import torch

    reader = torch._C.PyTorchFileReader(str(path))
    held = reader.get_all_records()
    version = next(int(reader.get_record(n)) for n in held if n in ("version", ".data/version"))
    # The writer makes these itself.
    made = ("version", ".data/version", "byteorder", ".data/serialization_id")
    names = [n for n in held if not n.endswith(".debug_pkl") and n not in made]
    records = {name: reader.get_record(name) for name in names}
    del reader
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.set_min_version(version)
    for name, data in records.items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()


def verify(run: Callable[[Sequence[Any]], Sequence[Any]], module: Any, inputs: Sequence[Sequence[Any]]) -> float:
    """Return the largest difference of the reloaded program (`run`) from its module.

    Raises ConversionError above 1e-4.
    """
    import torch

    worst = 0.0
    with engine(), quiet(), torch.no_grad():
        for tensors in inputs:
            worst = max(worst, largest_difference(_flat(module(*tensors)), list(run(tensors))))
    if worst > TOLERANCE:
        raise ConversionError(
            f"The lite interpreter computes something else than the module: {worst:.3g} of the output apart.",
            hint="Use `--runtime executorch`.",
        )
    return worst
