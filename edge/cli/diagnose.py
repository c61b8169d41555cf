"""`edgekit diagnose`: where a network loses accuracy on the way to int8, which layers do it, and what helps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edge.cli import options
from edge.cli.talk import Talk

_EXAMPLES = """Examples:

  edgekit diagnose model.keras --target coral --calibration data.npz

  edgekit diagnose model.pt2 --target android --runtime executorch --calibration data.npz

  edgekit diagnose edgekit-build/net-rpi4 --calibration data.npz --evaluation test.npz --device emulator:rpi4
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("diagnose", epilog=_EXAMPLES)(diagnose)


def diagnose(
    model: Annotated[str, typer.Argument(help="A source, or the folder of an artifact.", metavar="SOURCE|ARTIFACT")],
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Target name or .toml file; default: the artifact's, or linux.")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Another runtime of the target than its first, such as executorch.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Representative samples, the same forms as --evaluation.", metavar="DATA")
    ] = None,
    evaluation: options.Evaluation = None,
    metric: Annotated[str | None, typer.Option(help="top1, top5, mae, ... or file.py:metric.")] = None,
    recipe: Annotated[str | None, typer.Option(help="int8, or a refined one such as int8-mse.")] = None,
    preprocess: options.Preprocess = None,
    shape: options.Shape = None,
    calibration_samples: Annotated[int | None, typer.Option(help="How many samples calibrate (default 300).")] = None,
    evaluation_samples: Annotated[int | None, typer.Option(help="At most this many samples evaluate.")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Run the int8 program there too: emulator:rpi4, ssh://pi@host, adb:SERIAL, or a name."),
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Allow code that the model file carries to run.")] = False,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Compare float, weights only, activations only and int8; rank the layers; measure what fixes bring."""
    from edge import artifact, errors
    from edge.report import diagnosis as report
    from edge.report import machine

    talk = Talk(quiet=quiet)
    given: dict[str, Any] = {
        "source": model,
        "targets": target or "linux",
        "runtime": runtime,
        "calibration": calibration,
        "evaluation": evaluation,
        "metric": metric,
        "recipe": recipe,
        "preprocess": options.preprocessing(preprocess) or None,
        "shapes": options.shapes(shape) or None,
        "calibration_samples": calibration_samples,
        "evaluation_samples": evaluation_samples,
        "trust": trust or None,
    }
    try:
        built = (Path(model) / artifact.MANIFEST).is_file()
        answer = _artifact(given, target, device, talk) if built else _source(given, device, talk)
    finally:
        talk.done()
    if json_:
        sys.stdout.write(machine.dumps({"schema": "edgekit.diagnosis/1", **answer}))
    else:
        report.show(answer)
    return errors.EXIT_OK


def _source(given: dict[str, Any], device: str | None, talk: Talk) -> dict[str, Any]:
    from edge import diagnosis, project

    resolved = project.resolve({k: v for k, v in given.items() if v is not None})
    return diagnosis.of_source(resolved, talk, device=device)


def _artifact(given: dict[str, Any], target: str | None, device: str | None, talk: Talk) -> dict[str, Any]:
    from edge import diagnosis
    from edge.errors import UsageError

    if given["calibration"] is None:
        raise UsageError(
            "An artifact holds no data: give the samples that it was calibrated with (--calibration DATA)."
        )
    question = {
        k: given[k]
        for k in ("calibration", "evaluation", "metric", "calibration_samples", "evaluation_samples")
        if given[k] is not None
    }
    asked = diagnosis.Question(**question, target=target, device=device)
    return diagnosis.of_artifact(Path(given["source"]), asked, talk)
