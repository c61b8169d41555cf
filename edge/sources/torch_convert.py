"""From a PyTorch module with fixed inputs to a float flatbuffer by litert-torch, and what its failures mean."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge.errors import ConversionError, MissingPackageError
from edge.sources.carrier import check_operators
from edge.sources.factory import is_users, place
from edge.sources.torch_io import Call, flatten_outputs
from edge.sources.transposes import remove_transposes
from edge.targets import torch_fake_quant
from edge.targets.litert import flatbuffer as fb
from edge.targets.litert import learned


def channel_first(tensor: Any) -> Any:
    """Return an NHWC tensor as NCHW, an NLC one as NCL, in memory too.

    So `view` in a module works as on the module's own inputs.
    """
    import torch

    # Not contiguous(): for one channel it is satisfied with the strides of NHWC, and convolutions pass those on.
    return _permuted(tensor, (0, tensor.dim() - 1, *range(1, tensor.dim() - 1))).clone(
        memory_format=torch.contiguous_format
    )


def channel_last(tensor: Any) -> Any:
    """Return an NCHW tensor as NHWC, an NCL one as NLC; values stay where they are in memory."""
    return _permuted(tensor, (0, *range(2, tensor.dim()), 1))


def _permuted(tensor: Any, order: tuple[int, ...]) -> Any:
    # Not movedim(): quantizers pass their annotations through permute() alone, and ends behind others stay float.
    return tensor.permute(order)


def wrapper(module: Any, call: Call, last_inputs: frozenset[int], last_outputs: frozenset[int]) -> Any:
    """Return a module of flat tensors to a tuple of tensors, the inputs and outputs at these positions channel-last."""
    import torch

    class Flat(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *flat: Any) -> tuple[Any, ...]:
            first = [channel_first(t) if i in last_inputs else t for i, t in enumerate(flat)]
            args, kwargs = call.arguments(first)
            results = [t for _, t in flatten_outputs(self.module(*args, **kwargs))]
            return tuple(channel_last(t) if i in last_outputs else t for i, t in enumerate(results))

    return Flat()


def convert(module: Any, call: Call, last_inputs: frozenset[int], last_outputs: frozenset[int]) -> Any:
    """Return the `ModelT`; inputs are named `args_0`, …, outputs `output_0`, …. Raises ConversionError."""
    try:
        import litert_torch  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "Converting a PyTorch module needs the package litert-torch, which cannot be imported.",
            hint="pip install 'edgekit[torch]'",
        ) from error
    flat = wrapper(module, call, last_inputs, last_outputs)
    sample = [t.movedim(1, -1).contiguous() if i in last_inputs else t for i, t in enumerate(call.tensors)]
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder) / "model.tflite"
        try:
            # The wrapper's own mode only: an exported program's module refuses train() and eval().
            flat.training = False
            _converted(flat, tuple(sample), path)
        except Exception as error:  # torch, jax and MLIR each have their own kinds
            raise explain(error) from error
        model = fb.load(path, name="The converted program")
    check_operators(model, "The converted program")
    if not learned.carries(model):
        remove_transposes(model)
        return model
    # Between TRANSPOSE operators, pairs of fake quantization would keep them from meeting.
    learned.strip(model)
    remove_transposes(model)
    learned.insert(model)
    return model


def _converted(flat: Any, sample: tuple[Any, ...], path: Path) -> None:
    import litert_torch

    try:
        litert_torch.convert(flat, sample, strict_export=False).export(str(path))
    except Exception:
        # It knows fake quantization only as pairs of operators with constant scales, around floats.
        if (paired := _paired(flat, sample)) is None:
            raise
        litert_torch.convert(paired, sample, strict_export=False).export(str(path))


def _paired(flat: Any, sample: tuple[Any, ...]) -> Any:
    """Return the graph of a module with fake quantization as such pairs; None where it has none or has no graph."""
    import torch

    try:
        graph = torch.export.export(flat, sample, strict=False).module(check_guards=False)
    except Exception:  # what litert-torch said of the module says more
        return None
    if not torch_fake_quant.marks(graph.graph):
        return None
    torch_fake_quant.rewrite(graph)
    # litert-torch turns layouts within pairs, which goes wrong where one reader of a pair is turned and another is not.
    torch_fake_quant.split_readers(graph)
    return graph


def _where(error: BaseException) -> str:
    """Return the user's line: from the frames of the error, or from the places that its text quotes."""
    if found := place(error):
        return f" at {found}"
    quoted = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s*([^\n]*)', _texts(error))
    own = [(Path(f).name, line, code.strip()) for f, line, code in quoted if is_users(f)]
    if own:
        return " at {}, line {} ({})".format(*own[-1])
    plain = [(Path(f).name, line) for f, line in re.findall(r"(\S+\.py):(\d+)", _texts(error)) if is_users(f)]
    return " at {}, line {}".format(*plain[-1]) if plain else ""


def _texts(error: BaseException) -> str:
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < 8:
        parts.append(f"{type(seen).__name__}: {seen}")
        seen = seen.__cause__ or seen.__context__
    return "\n".join(parts)


_TRAINING_HINT = (
    "Call eval() in the factory, or export the program in evaluation mode; draw no random numbers in forward."
)
_Explain = Callable[[re.Match[str]], tuple[str, str]]
_REASONS: tuple[tuple[str, _Explain], ...] = (
    (
        r"GuardOnDataDependentSymNode|data-dependent|Could not guard|DynamicOutputShape|DataDependentOutput",
        lambda _: (
            "The module decides by the values of its data",
            "A program has fixed control flow and fixed sizes: use torch.where, or move the decision out of forward.",
        ),
    ),
    (
        r"NonConcreteBooleanIndexError|boolean indices must be concrete",
        lambda _: (
            "The module selects with a Boolean mask, so that the result's size depends on the data",
            "Use torch.where or topk with a fixed count, and select after the program.",
        ),
    ),
    (
        r"Lowering not found: (?:aten\.)?((?:native_)?dropout|rand\w*|bernoulli|normal\w*)",
        lambda m: (f"The module draws random numbers ({m[1]})", _TRAINING_HINT),
    ),
    (
        r"Lowering not found: (cond|while_loop|map_impl|scan)\b",
        lambda m: (
            f"The module has control flow that litert-torch does not lower ({m[1]})",
            "Compute both sides and choose with torch.where, or write the loop out.",
        ),
    ),
    (
        r"Lowering not found: ([\w.]+)",
        lambda m: (f"litert-torch has no LiteRT form of the operator {m[1]}", "Write it with other operators."),
    ),
    (
        r"failed to legalize operation '([\w.]+)'",
        lambda m: (
            f"The converter cannot express {m[1]} with these options, shapes or dtypes",
            "Keep to float32 and rank 6; ConvTranspose without output_padding; write the line with other operators.",
        ),
    ),
    (
        r"Exporting a ScriptModule|ScriptModule|LinearPackedParams",
        lambda _: (
            "The module is a TorchScript or an already quantized one",
            "Give the plain float module.",
        ),
    ),
)


def explain(error: Exception) -> ConversionError:
    """Return the ConversionError that says in the user's terms why litert-torch failed, and at which of their lines."""
    text = _texts(error)
    for pattern, reason in _REASONS:
        if match := re.search(pattern, text):
            message, hint = reason(match)
            return ConversionError(f"{message}{_where(error)}.", hint=hint)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return ConversionError(f"litert-torch failed{_where(error)}: {type(error).__name__}: {first[:400]}")


def positions(layouts: Sequence[str]) -> frozenset[int]:
    """Return the positions of channel-first tensors."""
    return frozenset(i for i, layout in enumerate(layouts) if layout == "NCHW")
