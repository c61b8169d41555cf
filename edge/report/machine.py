"""The JSON that commands print; the schemas are published under edge/report/schemas and tested."""

from __future__ import annotations

import json
from typing import Any

from edge import codec
from edge.artifact import Artifact

VERSION = 1


def dumps(data: object) -> str:
    """Return one line of JSON with its newline."""
    return json.dumps(data, allow_nan=False) + "\n"


def build_record(artifact: Artifact) -> dict[str, Any]:
    """Return what `build --json` and `check --json` print for one artifact."""
    m = artifact.manifest
    program = m.file("program")
    return {
        "schema": VERSION,
        "artifact": str(artifact.path),
        "name": m.name,
        "target": m.target,
        "runtime": m.runtime,
        "recipe": m.recipe_name,
        "quantizer": m.quantizer,
        "verdict": m.verdict,
        "reasons": list(m.reasons),
        "size_bytes": program.bytes if program else 0,
        "metrics": codec.to_json(m.metrics),
        "findings": [codec.to_json(f) for f in m.findings],
        "files": {f.role: f.path for f in reversed(m.files)},
    }
