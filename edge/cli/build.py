"""`edgekit build`: a trained model to verified artifacts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.cli import options
from edge.cli.talk import Talk

if TYPE_CHECKING:
    from edge.project import Project

_EXAMPLES = """Examples:

  edgekit build model.keras --target coral --calibration images/ --preprocess scale=1/255

  edgekit build net.py:make_net --target rpi4 --target coral --calibration data.npz --max-drop 1%

  edgekit build model.onnx --target coral --calibration images/ --preprocess scale=1/255 --fold-preprocessing

  edgekit build net.py:make_net --target coral --recipe qat --train train.py:train --calibration data.npz

  edgekit build steps.py:make --target android --runtime executorch --shape steps=1,1..64,12 --calibration steps.npz

  edgekit build net.py:make_net --target pytorch-mobile --recipe float32 --script

  edgekit build      (with an edgekit.toml in the folder)
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("build", epilog=_EXAMPLES)(build)


def build(
    source: Annotated[
        str | None,
        typer.Argument(
            help=".keras, .h5, .tflite, .pt2, or file.py:factory; default: model.source of edgekit.toml.",
            metavar="[SOURCE]",
        ),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="Target name or .toml file; may be repeated.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Representative samples, the same forms as --evaluation.", metavar="DATA")
    ] = None,
    evaluation: options.Evaluation = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="float32, float16, dynamic, dynamic-4, weight-only, weight-only-4, int8, int8x16; refined: "
            "int8[-per-tensor][-ESTIMATOR][-weights-mse][-tuned][-equalized][-rounded][-corrected][-ptq|-aeq], "
            "ESTIMATOR: minmax, moving-average, percentile, percentile-99.9, mse, entropy; auto: search within the "
            "accuracy budget; or qat: fine-tune with fake quantization (--train)."
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="With --recipe qat: file.py:function, called as train(model, epoch).", metavar="FILE:FUNCTION"
        ),
    ] = None,
    train_epochs: Annotated[
        int | None, typer.Option(help="With --recipe qat: epochs of fine-tuning (default 5).")
    ] = None,
    io: Annotated[str | None, typer.Option(help="dtype at the ends of an int8 program: int8, uint8, float32.")] = None,
    max_drop: options.MaxDrop = None,
    max_latency: options.MaxLatency = None,
    max_size: options.MaxSize = None,
    max_memory: options.MaxMemory = None,
    min_mapped: options.MinMapped = None,
    min_delegated: options.MinDelegated = None,
    metric: Annotated[
        str | None, typer.Option(help="top1, top5, mae, psnr, miou, auc, ap50, ... or file.py:metric.")
    ] = None,
    preprocess: options.Preprocess = None,
    shape: options.Shape = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="An input that becomes a constant, such as sr=16000.")
    ] = None,
    signature: Annotated[str | None, typer.Option(help="Which of a model's several signatures.")] = None,
    layout: Annotated[str | None, typer.Option(help="channel-last (default) or keep.")] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(help="Operator type, tensor:REGEX, or front-end (LiteRT), that stays float; may be repeated."),
    ] = None,
    split_outputs: Annotated[
        str | None, typer.Option(help="auto: branches of very different size (boxes, scores) get scales of their own.")
    ] = None,
    fold_preprocessing: Annotated[
        bool,
        typer.Option("--fold-preprocessing", help="Scale, mean and std become part of the program: it takes pixels."),
    ] = False,
    runtime: Annotated[
        list[str] | None, typer.Option(help="Another runtime of the target than its first; may be repeated.")
    ] = None,
    calibration_samples: Annotated[
        int | None, typer.Option(help="How many samples calibrate (default 300, evenly spread).")
    ] = None,
    evaluation_samples: Annotated[int | None, typer.Option(help="At most this many samples evaluate.")] = None,
    latency: Annotated[
        str | None, typer.Option(help="Latency profile: none, smoke (default), quick, standard.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for one stage (default 3600).")] = None,
    multiple_subgraphs: Annotated[
        bool, typer.Option("--multiple-subgraphs", help="Edge TPU: keep every mapped subgraph (compiler's -a).")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute everything anew; results are not stored either.")
    ] = False,
    script: Annotated[
        bool, typer.Option("--script", help="PyTorch Mobile: script the module, so that branches on data stay.")
    ] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Allow code that the model file carries to run.")] = False,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Read an int8 .tflite as a float model, with its rounding.")
    ] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder for the artifacts (default edgekit-build).")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Another edgekit.toml.")] = None,
    reports: options.Reports = None,
    mlflow: options.MlFlow = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Import, quantize, lower, check and write one verified artifact per target."""
    given: dict[str, Any] = {
        "source": source,
        "targets": target,
        "calibration": calibration,
        "evaluation": evaluation,
        "recipe": recipe,
        "io": io,
        "train": train,
        "epochs": train_epochs,
        "max_drop": max_drop,
        "max_latency": max_latency,
        "max_size": max_size,
        "max_memory": max_memory,
        "min_mapped": min_mapped,
        "min_delegated": min_delegated,
        "metric": metric,
        "preprocess": options.preprocessing(preprocess) or None,
        "shapes": options.shapes(shape) or None,
        "values": options.values(set_) or None,
        "signature": signature,
        "layout": layout,
        "keep_float": keep_float,
        "split_outputs": split_outputs,
        "fold_preprocessing": fold_preprocessing or None,
        "runtime": runtime,
        "calibration_samples": calibration_samples,
        "evaluation_samples": evaluation_samples,
        "latency": latency,
        "timeout_s": timeout,
        "options": _options(multiple_subgraphs=multiple_subgraphs, script=script) or None,
        "cache": False if no_cache else None,
        "trust": trust or None,
        "dequantize": dequantize or None,
        "output": output,
    }
    return _run(_project(given, config), reports or [], mlflow, as_json=json_, quiet=quiet)


def _options(*, multiple_subgraphs: bool, script: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"multiple_subgraphs": True} if multiple_subgraphs else {}
    return found | ({"torch_mobile": {"script": True}} if script else {})


def _project(given: dict[str, Any], config: Path | None) -> Project:
    from edge import project

    path = config or Path(project.FILE)
    settings: dict[str, Any] = {}
    # With a source on the command line, a file that happens to lie in the folder is another model's.
    if config or (given["source"] is None and path.is_file()):
        settings = project.flat(project.read_file(path))
    settings |= {key: value for key, value in given.items() if value not in (None, [])}
    return project.resolve(settings)


def _run(project: Project, reports: list[Path], mlflow: str | None, *, as_json: bool, quiet: bool) -> int:
    from edge import errors, pipeline
    from edge.cli import report
    from edge.report import console, machine

    report.ready(reports, mlflow)
    talk = Talk(quiet=quiet)
    try:
        artifacts = pipeline.build(project, talk)
    finally:
        talk.done()
    report.save(artifacts, reports)
    if as_json:
        records = [machine.build_record(a) for a in artifacts]
        sys.stdout.write(machine.dumps(records[0] if len(records) == 1 else records))
    else:
        for artifact in artifacts:
            console.show(artifact)
    report.log(artifacts, mlflow, quiet=quiet)
    failed = any(a.manifest.verdict == "fail" for a in artifacts)
    return errors.EXIT_BUDGET if failed else errors.EXIT_OK
