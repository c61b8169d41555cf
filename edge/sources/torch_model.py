"""A PyTorch module that is opened: its signature, its reference outputs, and its way to a float flatbuffer."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge.errors import ConversionError, EdgekitError, SourceError
from edge.findings import Finding
from edge.isolate import Progress, no_progress
from edge.signature import Layout, Signature, TensorSpec
from edge.sources import declared, factory
from edge.sources.base import Declaration
from edge.sources.carrier import count, set_signature, signature_tensors, transposed_ends, turned_series
from edge.sources.torch_convert import channel_first, convert
from edge.sources.torch_io import Call, dtype_name, flatten_outputs, narrowed, program_dtype
from edge.targets.litert import flatbuffer as fb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

# One input or output: its side and its name.
End = tuple[Literal["input", "output"], str]

_INT32 = np.iinfo(np.int32)
_LAST = ("NHWC", "NLC")


class LoadedTorch:
    """A module in evaluation mode with fixed inputs.

    Channel-last by declaration: every 4-D float input (unless declared otherwise) and output is taken as channel-first
    and becomes NHWC, but for those ends where that only moves a TRANSPOSE into the program (a flattening network, an
    attention map): they keep their order, with a finding. So do 3-D float ends become NLC whose TRANSPOSE goes by that:
    the channels of a convolution over a series. Raises ConversionError for a module that keeps state.
    """

    def __init__(
        self,
        module: Any,
        call: Call,
        declaration: Declaration,
        *,
        digest: str,
        findings: Sequence[Finding],
        kind: str = "torch",
        methods: Mapping[str, tuple[Any, ...]] | None = None,
    ) -> None:
        self._methods = dict(methods or {})
        self._module, self._call, self._declaration = module, call, declaration
        self.kind, self.digest = kind, digest
        self.findings: tuple[Finding, ...] = tuple(findings)
        self.tools: Mapping[str, str] = declared.versions("torch", "litert-torch", "litert-converter", "ai-edge-litert")
        results = self._settled()
        self._names = declared.output_names(declaration, declared.unique(n for n, _ in results))
        self._outputs = tuple(t for _, t in results)
        self._open_outputs = self._follow_sizes() if call.open else {}
        self._check_outputs()
        self._source = self._source_layouts()
        self._converted: Any = None
        self._layouts = self._decide()
        self.signature: Signature = self._signature()

    def _run(self, tensors: Sequence[Any]) -> list[tuple[str, Any]]:
        import torch

        args, kwargs = self._call.arguments(tensors)
        try:
            # The fast path of attention layers exists in eager mode only and writes 0 where the program does not.
            with torch.no_grad(), _no_fast_path():
                results = flatten_outputs(self._module(*args, **kwargs))
        except EdgekitError:
            raise
        except Exception as error:  # the user's forward runs here
            shapes = ", ".join(f"{n}{list(t.shape)}" for n, t in zip(self._call.names, tensors, strict=True))
            text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
            raise SourceError(
                f"{factory.place(error) or 'The module'}: calling it with {shapes} raised "
                f"{type(error).__name__}: {text[:300]}",
                hint="Give example inputs or declared shapes that the module takes.",
            ) from error
        # A module may return its own buffer or input: later calls must not change what was returned.
        return [(name, tensor.detach().clone()) for name, tensor in results]

    def _settled(self) -> list[tuple[str, Any]]:
        """Return the outputs; raise where the same input twice, another one between, gives other outputs or buffers.

        The first call is not compared: a module may fill a cache at it.
        """
        other = [t + 0.5 if t.is_floating_point() else t for t in self._call.tensors]
        self._run(self._call.tensors)
        first, before = self._run(self._call.tensors), self._state()
        self._run(other)
        second, after = self._run(self._call.tensors), self._state()
        changed = [n for n, v in before.items() if not _same(v, after.get(n))]
        different = [n for (n, a), (_, b) in zip(first, second, strict=True) if not _same(a, b)]
        if changed or different:
            what = f"its buffers {', '.join(changed)}" if changed else f"the outputs {', '.join(different)}"
            raise ConversionError(
                f"The module keeps state or draws random numbers: calls with the same input change {what}. "
                "A program for a device would drop that without a word.",
                hint="Make the state an input and an output of the module; call eval() in the factory.",
            )
        return second

    def _follow_sizes(self) -> dict[str, frozenset[int]]:
        """Return the dimensions of each output that change where the open ones of the inputs do."""
        refused: SourceError | None = None
        for tensors in resized(self._call):
            try:
                others = [t for _, t in self._run(tensors)]
            except SourceError as error:
                refused = error
                continue
            return {
                name: frozenset(k for k, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b)
                for name, one, two in zip(self._names, self._outputs, others, strict=True)
            }
        raise ConversionError(
            f"The module takes no other size of its open dimensions. {refused.message if refused else ''}".strip(),
            hint="Declare fixed sizes, or remove what depends on one size (a reshape, a position table).",
        )

    def _state(self) -> dict[str, Any]:
        return {name: copy.deepcopy(value.detach()) for name, value in self._module.named_buffers()}

    def _check_outputs(self) -> None:
        if not self._outputs:
            raise ConversionError("The module returns no tensor.", hint="Return at least one tensor.")
        for name, tensor in zip(self._names, self._outputs, strict=True):
            if 0 in tensor.shape:
                raise ConversionError(f"The output {name!r} has the empty shape {list(tensor.shape)}.")
        pairs = [*zip(self._call.names, self._call.tensors, strict=True), *zip(self._names, self._outputs, strict=True)]
        for name, tensor in pairs:
            self.findings += narrowed(name, dtype_name(tensor))

    def _source_layouts(self) -> dict[End, Layout]:
        ends: dict[End, Layout] = {("input", n): v for n, v in zip(self._call.names, self._call.layouts, strict=True)}
        for name, tensor in zip(self._names, self._outputs, strict=True):
            ends["output", name] = "NCHW" if tensor.dim() == 4 and tensor.is_floating_point() else "other"
        return ends

    def _decide(self) -> dict[End, Layout]:
        """Return the layout of each end in the program: the source's, but NHWC where that is to be channel-last."""
        ends = self._source
        images = {end for end, layout in ends.items() if layout == "NCHW"}
        series = self._series()
        if self._declaration.layout == "keep" or not images | series:
            return ends
        if decided := self._declaration.decided:
            last: dict[End, Layout] = {("input", t.name): t.layout for t in decided.inputs}
            last |= {("output", t.name): t.layout for t in decided.outputs}
            chosen = {end for end in images | series if last.get(end) in _LAST}
        else:
            chosen = self._trial(images) if images else set()
            chosen |= self._series_trial(chosen, series) if series else set()
        return {**ends, **{end: "NHWC" if end in images else "NLC" for end in chosen}}

    def _series(self) -> set[End]:
        """Return the 3-D float ends that may have their channels in front."""
        named: list[tuple[End, Any]] = [
            *((("input", n), t) for n, t in zip(self._call.names, self._call.tensors, strict=True)),
            *((("output", n), t) for n, t in zip(self._names, self._outputs, strict=True)),
        ]
        return {
            end
            for end, tensor in named
            if tensor.dim() == 3 and tensor.is_floating_point() and self._source[end] in ("other", "NCL")
        }

    def _series_trial(self, last: set[End], series: set[End]) -> set[End]:
        """Return those of the 3-D ends that the program only turns, where it has fewer TRANSPOSE with them turned."""
        try:
            model = self._converted or self._convert(last)
        except ConversionError:  # to_litert tells it, if that is what is wanted
            return set()
        self._converted = model
        read, written = turned_series(model)
        found: set[End] = {("input", n) for i, n in enumerate(self._call.names) if i in read}
        found |= {("output", n) for i, n in enumerate(self._names) if i in written}
        if not (found := found & series):
            return set()
        other = self._convert(last | found)
        if count(other, "TRANSPOSE") >= count(model, "TRANSPOSE"):
            return set()
        self._converted = other
        return found

    def _trial(self, images: set[End]) -> set[End]:
        model = self._convert(images)
        read, written = transposed_ends(model)
        stray: set[End] = {("input", n) for i, n in enumerate(self._call.names) if i in read}
        stray |= {("output", n) for i, n in enumerate(self._names) if i in written}
        stray &= images
        if not stray:
            self._converted = model
            return images
        other = self._convert(images - stray)
        if count(other, "TRANSPOSE") >= count(model, "TRANSPOSE"):
            self._converted = model
            self.findings += tuple(_stray_finding(*end) for end in sorted(stray))
            return images
        self._converted = other
        self.findings += tuple(_kept_finding(*end) for end in sorted(stray))
        return images - stray

    @property
    def call(self) -> Call:
        """How the module is called."""
        return self._call

    def arguments(self, inputs: Mapping[str, Array]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return args and kwargs of the module for inputs by signature name, in the signature's layouts."""
        import torch

        tensors = []
        for name, example in zip(self._call.names, self._call.tensors, strict=True):
            value = torch.from_numpy(np.array(inputs[name])).to(example.dtype)
            tensors.append(channel_first(value) if self._turned(("input", name)) else value)
        return self._call.arguments(tensors)

    @property
    def convertible(self) -> Any:
        """The module that converters take; the reference itself, but for kinds that they refuse."""
        return self._module

    def _convert(self, channel_last: set[End]) -> Any:
        inputs = frozenset(i for i, n in enumerate(self._call.names) if ("input", n) in channel_last)
        outputs = frozenset(i for i, n in enumerate(self._names) if ("output", n) in channel_last)
        return convert(self.convertible, self._call, inputs, outputs)

    def _turned(self, end: End) -> bool:
        """Tell whether an end is channel-first in the source and channel-last in the program."""
        return self._layouts[end] in _LAST and self._source[end] != self._layouts[end]

    def _signature(self) -> Signature:
        inputs = [self._spec(("input", n), t) for n, t in zip(self._call.names, self._call.tensors, strict=True)]
        outputs = [self._spec(("output", n), t) for n, t in zip(self._names, self._outputs, strict=True)]
        return declared.signature(self._declaration, inputs, outputs)

    def _spec(self, end: End, tensor: Any) -> TensorSpec:
        shape = tuple(-1 if k in self._open_axes(end) else int(d) for k, d in enumerate(tensor.shape))
        if self._turned(end):
            shape = (shape[0], *shape[2:], shape[1])
        return declared.tensor(end[1], shape, program_dtype(dtype_name(tensor), end[1]), self._layouts[end])

    def _open_axes(self, end: End) -> frozenset[int]:
        if end[0] == "input":
            return frozenset(self._call.axes(self._call.names.index(end[1])))
        return self._open_outputs.get(end[1], frozenset())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the module's float outputs by signature name, in the signature's layouts and dtypes."""
        import torch

        tensors = []
        for name, example in zip(self._call.names, self._call.tensors, strict=True):
            value = torch.from_numpy(np.array(inputs[name])).to(example.dtype)
            tensors.append(channel_first(value) if self._turned(("input", name)) else value)
        results = {}
        for spec, (_, tensor) in zip(self.signature.outputs, self._run(tensors), strict=True):
            turned = tensor.movedim(1, -1) if self._turned(("output", spec.name)) else tensor
            results[spec.name] = _narrow(spec, turned.contiguous().cpu().numpy())
        return results

    def to_litert(self, path: Path) -> None:
        """Write a float flatbuffer by litert-torch, in the layouts of the signature."""
        model = self._converted or self._convert({end for end in self._layouts if self._turned(end)})
        inputs, outputs = signature_tensors(model)
        set_signature(
            model,
            [(n, inputs[f"args_{i}"]) for i, n in enumerate(self._call.names)],
            [(n, outputs[f"output_{i}"]) for i, n in enumerate(self._names)],
        )
        path.write_bytes(fb.dump(model))

    def to_scripted(self, path: Path) -> None:
        """Write a TorchScript carrier, which keeps branches that depend on data. Raises ConversionError."""
        import torch

        from edge.targets.torch_mobile import scripted

        _unwrapped(self._call)
        if not isinstance(self._module, torch.nn.Module) or self.kind != "torch":
            raise ConversionError(f"A source of kind {self.kind} has no Python to script.", hint="Drop --script.")
        args, kwargs = self._call.arguments(self._call.tensors)
        with torch.no_grad(), _no_fast_path():
            results = self._module(*args, **kwargs)
        dtypes = [dtype_name(t) for t in self._call.tensors]
        scripted.script(self._module, self.signature, dtypes, results, path)

    def to_exported(self, path: Path, progress: Progress = no_progress) -> tuple[Finding, ...]:
        """Write the exported carrier (`.pt2`), in the layouts of the signature. Raises ConversionError."""
        from edge.sources.exported import export_methods, export_torch

        progress("exporting with torch.export", None)
        inputs = frozenset(i for i, n in enumerate(self._call.names) if self._turned(("input", n)))
        outputs = frozenset(i for i, n in enumerate(self._names) if self._turned(("output", n)))
        found = export_torch(
            self.convertible, self._call, self.signature, path, last_inputs=inputs, last_outputs=outputs
        )
        export_methods(self._module, self._methods, path)
        return found


def resized(call: Call) -> Iterator[list[Any]]:
    """Yield the example with other sizes of its open dimensions: the largest, the smallest, and near ones."""
    import torch

    for pick in (
        lambda size, most, _: size // 2 if size == most else most,
        lambda size, _, least: least if size != least else size + 1,
        lambda size, most, _: size - 1 if size == most else size + 1,
    ):
        tensors = []
        for position, example in enumerate(call.tensors):
            shape = list(example.shape)
            for axis, d in call.axes(position).items():
                shape[axis] = pick(shape[axis], d.most or declared.largest(axis, shape[axis]), d.least)
            random = torch.rand(shape).to(example.dtype)
            tensors.append(random if example.is_floating_point() else torch.zeros(shape, dtype=example.dtype))
        yield tensors


def _unwrapped(call: Call) -> None:
    """Raise where a module is not called with its tensors one after the other: only those can be scripted."""
    if call.positions != tuple(range(len(call.leaves))):
        raise ConversionError(
            "The module takes values that are no tensors, which the script route cannot pass on.",
            hint="Give them a default in forward, or build without --script.",
        )


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _same(a: Any, b: Any) -> bool:
    import torch

    return b is not None and a.shape == b.shape and bool(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)))


def _narrow(spec: TensorSpec, array: Array) -> Array:
    if array.dtype == np.int64 and array.size and not (_INT32.min <= array.min() and array.max() <= _INT32.max):
        raise ConversionError(
            f"The output {spec.name!r} has the value {int(np.abs(array).max())}, beyond the program's int32.",
            hint="Return float32, or smaller integers.",
        )
    return array.astype(spec.dtype, copy=False)


def _kept_finding(side: str, name: str) -> Finding:
    return Finding(
        rule="LAYOUT_KEPT",
        severity="warning",
        op=name,
        message=f"The {side} {name!r} stays channel-first: as channel-last it would need a TRANSPOSE in the program.",
        fix="Give it in the layout that the signature says.",
    )


def _stray_finding(side: str, name: str) -> Finding:
    return Finding(
        rule="TRANSPOSE_AT_END",
        severity="warning",
        op=name,
        message=f"The {side} {name!r} is transposed in the program in either layout.",
    )
