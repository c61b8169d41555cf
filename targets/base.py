"""What a target is (data) and what a runtime does (a protocol); no framework is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edge.calibration.recipe import InputOutput, Recipe
from edge.findings import Finding
from edge.signature import Signature

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.calibration.data import Dataset
    from edge.isolate import Progress

    Array = NDArray[np.generic]

Carrier = Literal["litert", "exported", "scripted"]
Mode = Literal["measured", "emulated", "predicted"]
Status = Literal["supported", "maintenance", "legacy"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device or a family of devices as data: one TOML file of `targets/catalog/`, or the user's own.

    `runtimes` in order of preference; `recipe` the scheme that it needs or runs best; `io` the dtype at the ends of an
    int8 program; `recipes` what it can run at all. `hardware` and `options` are free tables that runtimes read.
    """

    name: str
    title: str
    family: str
    status: Status = "supported"
    runtimes: tuple[str, ...]
    recipe: str = "int8"
    recipes: tuple[str, ...] = ("int8",)
    io: InputOutput = "int8"
    hardware: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    budgets: Mapping[str, float] = field(default_factory=dict)
    reach: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Model:
    """An imported source: a float program in one of two carriers with its signature.

    `path` is a float LiteRT flatbuffer (`litert`) or a saved ExportedProgram (`exported`).
    """

    carrier: Carrier
    path: Path
    signature: Signature


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a runtime made of a model: the main file, files beside it, the signature as the program has it.

    `tools` maps each package that shaped the bytes to its version; `quantizer` names the one that quantized.
    """

    path: Path
    signature: Signature
    recipe: Recipe
    quantizer: str = "none"
    tools: Mapping[str, str] = field(default_factory=dict)
    extra_files: tuple[Path, ...] = ()
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of a program in execution order; `place` is where it runs, `reason` why not on the accelerator."""

    index: int
    op: str
    outputs: tuple[str, ...]
    place: str = "cpu"
    reason: str | None = None
    certainty: str | None = None
    subgraph: int = 0


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What can be said of a program without running it. Sizes in bytes; `details` is JSON for the report."""

    operators: tuple[Operator, ...]
    parameter_bytes: int
    arena_bytes: int | None = None
    signature: Signature | None = None
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """An opened program. Inputs and outputs are in the program's own dtypes, by signature name, batch included.

    One that runs something else than the kernels it was opened with has the name of that in `kernels`.
    """

    signature: Signature

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once: copy in, invoke, copy out."""
        ...


class Runtime(Protocol):
    """The code that quantizes, lowers, inspects and runs programs of one format.

    All methods run in a child process (edge.isolate); they may import their framework and write only below `workdir`.
    """

    name: str
    carrier: Carrier
    suffix: str
    recipes: tuple[str, ...]
    kernel_sets: tuple[str, ...]

    def build(
        self, model: Model, recipe: Recipe, target: Target, samples: Dataset | None, workdir: Path, progress: Progress
    ) -> Program:
        """Quantize and lower; `samples` is not None where the recipe needs calibration. Raises QuantizationError."""
        ...

    def inspect(self, path: Path, target: Target | None, options: Mapping[str, Any]) -> Inspection:
        """Read the program's operators, placement and memory. Raises SourceError for what is no valid program."""
        ...

    def open(self, path: Path, *, kernels: str, threads: int) -> Session:
        """Load the program with one of `kernel_sets`. Raises SourceError."""
        ...

    def open_carrier(self, path: Path) -> Session:
        """Load a float carrier of this runtime's kind, to compare programs with."""
        ...
