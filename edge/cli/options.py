"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.errors import ConfigError

if TYPE_CHECKING:
    from edge.project import Dimension

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Evaluation = Annotated[
    str | None,
    typer.Option(help="Labelled samples: .npz, .npy, image folder, .csv, or file.py:callable.", metavar="DATA"),
]
Device = Annotated[
    str, typer.Option(help="local, coral, emulator:rpi4, ssh://pi@host, adb:SERIAL, or a name of devices.toml.")
]
Cpus = Annotated[str | None, typer.Option(help="Run on these processors only, such as 2,3.", metavar="N,...")]
NoControls = Annotated[
    bool, typer.Option("--no-controls", help="Leave the frequency governor alone; else it is performance meanwhile.")
]
Results = Annotated[Path, typer.Option("--output", "-o", help="Folder for the record and the raw samples.")]
ArtifactPath = Annotated[Path, typer.Argument(help="The folder that `edgekit build` wrote.", metavar="ARTIFACT")]
MlFlow = Annotated[
    str | None, typer.Option("--mlflow", help="Also log to MLflow: a folder such as mlruns, or its address.")
]
Reports = Annotated[
    list[Path] | None,
    typer.Option(
        "--report",
        help="Also write a report: .html, .md, .json, .xml (JUnit) or .sarif; may be repeated.",
        metavar="FILE",
    ),
]
MaxDrop = Annotated[str | None, typer.Option(help="Budget: loss of the metric, such as 1%.")]
MaxLatency = Annotated[
    str | None,
    typer.Option(help="Budget: '5ms', or '5ms p90 measured' (median, p90, p95, p99; measured, emulated, predicted)."),
]
MaxSize = Annotated[str | None, typer.Option(help="Budget: size of the program, such as 500kB.")]
MaxMemory = Annotated[str | None, typer.Option(help="Budget: tensors and parameters in memory, such as 2MB.")]
MinMapped = Annotated[str | None, typer.Option(help="Budget: share of operators on the Edge TPU, such as 95%.")]
MinDelegated = Annotated[
    str | None, typer.Option(help="Budget: share of operators on ExecuTorch's delegate, such as 95%.")
]
Preprocess = Annotated[
    list[str] | None,
    typer.Option(
        help="How raw samples become the input: 'scale=1/255' or 'image:scale=1/127.5,mean=1,resize=bilinear'.",
        metavar="[INPUT:]KEY=VALUE,...",
    ),
]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        help="Shape of an input: 'image=1,3,224,224'; open at run time (ExecuTorch): 'steps=1,1..64,12'.",
        metavar="[INPUT=]N,...",
    ),
]
Runner = Annotated[
    str, typer.Option(help="Who runs it there: auto, python (the agent), native (compiled here), tools (of Android).")
]


def values(texts: list[str] | None) -> dict[str, float]:
    """Return constant values by input name; raise ConfigError."""
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise ConfigError(f"--set {text!r}; accepted: INPUT=NUMBER, such as sr=16000")
    return found


def shapes(texts: list[str] | None) -> dict[str, tuple[Dimension, ...]]:
    """Return shapes by input name, open dimensions included; raise ConfigError."""
    from edge.project import parse_shape

    found = {}
    for text in texts or ():
        try:
            name, shape = parse_shape(text)
        except ValueError as error:
            raise ConfigError(f"--shape {error}") from None
        found[name] = shape
    return found


def fixed_shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Return shapes by input name where none may be open; raise ConfigError."""
    found = {}
    for name, shape in shapes(texts).items():
        sizes = tuple(d for d in shape if isinstance(d, int) and d > 0)
        if len(sizes) != len(shape):
            raise ConfigError(f"--shape {name}: an open dimension serves `edgekit build` only; give its size here.")
        found[name] = sizes
    return found


def preprocessing(texts: list[str] | None) -> dict[str, Any]:
    """Return preprocessing by input name (`"0"` where none is named); raise ConfigError."""
    from edge.preprocess import parse_preprocess

    found = {}
    for text in texts or ():
        name, colon, rest = text.partition(":")
        # A colon after the first `=` belongs to a value: mean=1:2:3.
        named = bool(colon) and "=" not in name
        found[name if named else "0"] = parse_preprocess(rest if named else text)
    return found


def cpu_numbers(text: str | None) -> tuple[int, ...]:
    """Return the numbers of processors; raise ConfigError."""
    if not text:
        return ()
    parts = text.split(",")
    if not all(p.strip().isdecimal() for p in parts):
        raise ConfigError(f"--cpus is {text!r}; accepted: numbers of processors, such as 2,3")
    return tuple(sorted({int(p) for p in parts}))
