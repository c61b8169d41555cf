"""What a source is: something that yields a float model, its signature, and reference outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edge.findings import Finding
from edge.signature import Layout, Preprocess, Signature, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class OpenDimension:
    """A dimension of an input that the caller chooses at run time: from `least` to `most`, None where not said."""

    axis: int
    least: int = 1
    most: int | None = None


@dataclass(frozen=True, kw_only=True)
class InputDeclaration:
    """What the user says of one input: every field is optional and wins over what the source says.

    `shape` has -1 where a dimension stays open at run time, and `open` the bounds of each of these. `value` fixes a
    scalar input (a sampling rate, a mode): it is a constant of the program, not an input of it.
    """

    shape: tuple[int, ...] | None = None
    open: tuple[OpenDimension, ...] = ()
    dtype: str | None = None
    layout: Layout | None = None
    preprocess: Preprocess | None = None
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What the user says of a source: inputs by name (or by position, `"0"`), output names in order, layout wish.

    `layout` is what the built program's image inputs shall have: `keep`, or `channel-last` (4-D channel-first inputs
    and outputs become NHWC). `trust` allows what can run code that a model file carries (a Keras Lambda).
    Shapes and layouts of `inputs` are the source's own, before `layout` is applied. `signature` chooses one of several
    signatures of a file. `dequantize` lets a quantized `.tflite` be read as a float model. `decided` hands back the
    signature of an earlier load of the same source and declaration: a PyTorch source then needs no trial conversion to
    find out which ends take channel-last.
    """

    inputs: Mapping[str, InputDeclaration] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    layout: Literal["keep", "channel-last"] = "channel-last"
    task: Task = "other"
    labels: tuple[str, ...] = ()
    postprocess: Mapping[str, Any] = field(default_factory=dict)
    trust: bool = False
    signature: str = ""
    decided: Signature | None = None
    dequantize: bool = False


class LoadedSource(Protocol):
    """A source opened in a child process.

    `signature` has the layouts of the program that will be built: where the source is channel-first and channel-last
    was asked for, `run` takes channel-last arrays and transposes for the source itself. `findings` grow with
    `to_litert`. `tools` maps the packages that shape the result to their versions. `digest` is a sha256 in hexadecimal
    over what defines the model: the file, or a factory's text and its parameters. `kind` is the source's.
    """

    @property
    def kind(self) -> str:
        """The kind of source."""
        ...

    @property
    def digest(self) -> str:
        """The sha256 of the source."""
        ...

    @property
    def signature(self) -> Signature:
        """The contract of the program that will be built."""
        ...

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found while loading and converting."""
        ...

    @property
    def tools(self) -> Mapping[str, str]:
        """Versions of the packages that shape the result."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the float reference outputs, by signature name."""
        ...

    def to_litert(self, path: Path) -> None:
        """Write a float LiteRT flatbuffer whose signature names are the signature's. Raises ConversionError."""
        ...


class Source(Protocol):
    """One kind of source. `matches` reads at most the first bytes of the file and imports no framework."""

    kind: str
    packages: tuple[str, ...]

    def matches(self, location: str) -> bool:
        """Tell whether `location` is of this kind, by content."""
        ...

    def load(self, location: str, declaration: Declaration) -> LoadedSource:
        """Open the source in this process. Raises SourceError, MissingPackageError."""
        ...
