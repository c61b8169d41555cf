"""`edgekit inspect`: operators, placement, memory and findings of models, without building."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edge.cli import options
from edge.cli.talk import Talk

_EXAMPLES = """Examples:

  edgekit inspect model.tflite

  edgekit inspect a.tflite b.tflite --target coral --json
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect", epilog=_EXAMPLES)(inspect)


def inspect(
    models: Annotated[
        list[str], typer.Argument(help="Models, compiled models or artifacts; any number.", metavar="MODEL...")
    ],
    target: Annotated[str | None, typer.Option("--target", "-t", help="Predict placement for this target.")] = None,
    multiple_subgraphs: Annotated[
        bool, typer.Option("--multiple-subgraphs", help="Edge TPU: keep every mapped subgraph (compiler's -a).")
    ] = False,
    min_runtime_version: Annotated[
        int | None, typer.Option(help="Edge TPU: runtime version to compile for (10 to 14).", min=1, max=99)
    ] = None,
    co_compile: Annotated[
        bool, typer.Option("--co-compile", help="Edge TPU: the models share the parameter cache, in this order.")
    ] = False,
    shape: options.Shape = None,
    trust: Annotated[bool, typer.Option("--trust", help="Allow code that the model file carries to run.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object per model and line.")] = False,
    quiet: options.Quiet = False,
) -> int:
    """Show operators, placement, memory and findings; nothing is built."""
    from edge import errors, inspection
    from edge.report import listing
    from edge.targets import registry

    request = inspection.Request(
        target=registry.target(target) if target else None,
        options={
            k: v
            for k, v in {"multiple_subgraphs": multiple_subgraphs, "min_runtime_version": min_runtime_version}.items()
            if v
        },
        shapes=options.fixed_shapes(shape),
        trust=trust,
    )
    talk = Talk(quiet=quiet or json_)
    code = errors.EXIT_OK
    cache = inspection.SharedCache([Path(m) for m in models]) if co_compile else None
    for model in models:
        try:
            found: Any = inspection.inspect(Path(model), model, request, talk, cache)
        except errors.EdgekitError as error:
            if len(models) == 1:
                raise
            # One bad file among many must not hide the others.
            code = code or error.exit_code
            listing.show_error(model, error, as_json=json_)
            continue
        finally:
            talk.done()
        if json_:
            sys.stdout.write(listing.json_line(found))
        else:
            listing.show(found)
    return code
