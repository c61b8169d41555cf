"""`edgekit export`: a project for an app, from an artifact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edge.cli import options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "export",
        epilog="Example:\n\n"
        "  edgekit export edgekit-build/digits-rpi4 --platform android --package com.example.digits -o app",
    )(export)


def export(
    artifact: options.ArtifactPath,
    platform: Annotated[str, typer.Option(help="android, ios, cpp, python or web.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the project; may be an earlier export.")],
    package: Annotated[str | None, typer.Option(help="Package of the code, such as com.example.detector.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model's class, such as FaceDetector.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="litert, tflite, executorch, coreml or pytorch-mobile; default: by the program.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="One label per line, in place of the artifact's.")] = None,
    postprocess: Annotated[
        str, typer.Option(help="What becomes of the outputs, over what edgekit.toml declares.", metavar="KEY=VALUE,...")
    ] = "",
    author: Annotated[str | None, typer.Option(help="Author of the model, stated in contract and metadata.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the model, stated in contract and metadata.")] = None,
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="Write TFLite or Core ML metadata into the packed model.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Overwrite generated files that were edited.")] = False,
    json_: options.Json = False,
) -> int:
    """Write a project that runs the artifact in an app, with preprocessing, postprocessing and a golden test."""
    from edge.apps.bundle import ExportOptions
    from edge.apps.export import export as write
    from edge.apps.pins import PLATFORMS
    from edge.errors import ConfigError
    from edge.report.machine import dumps

    chosen = next((p for p in PLATFORMS if p == platform), None)
    if chosen is None:
        raise ConfigError(f"--platform is {platform!r}; accepted: {', '.join(PLATFORMS)}.")
    wanted = ExportOptions(
        platform=chosen,
        runtime=runtime,
        package=package,
        name=name,
        labels=labels,
        postprocess=postprocess,
        author=author,
        licence=licence,
        metadata=metadata,
    )
    done = write(artifact, output, wanted, force=force)
    if json_:
        from edge import codec

        sys.stdout.write(dumps(codec.to_json(done)))
        return 0
    files = done.files
    sys.stdout.write(
        f"{done.name} for {platform} with {done.contract.runtime.name} is in {done.folder}: "
        f"{len(files.written)} file(s) written, {len(files.unchanged)} unchanged, {len(files.removed)} removed\n"
    )
    for path in files.kept:
        sys.stdout.write(f"kept although no longer generated, because it was edited: {path}\n")
    sys.stdout.write(f"{'next':8}  read {Path(done.folder) / 'README.md'} and run the golden test on the device\n")
    return 0
