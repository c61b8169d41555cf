"""Look at a program with its framework's own reader, which runs foreign code over an untrusted file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import codec
from edge.targets import registry
from edge.targets.base import Target

if TYPE_CHECKING:
    from edge.isolate import Progress


def inspect_program(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Stage: inspect `path` by `runtime` for `target` (None for none) with `options`."""
    progress(f"reading {Path(request['path']).name}", None)
    target = codec.from_json(Target, request["target"]) if request["target"] else None
    found = registry.runtime(request["runtime"]).inspect(Path(request["path"]), target, request["options"])
    return {"inspection": codec.to_json(found)}
