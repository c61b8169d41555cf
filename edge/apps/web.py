"""`--platform web`: an npm package over LiteRT.js with types and a golden test for node and for a browser."""

from __future__ import annotations

from edge.apps import naming
from edge.apps.bundle import Bundle
from edge.apps.literals import Syntax, double, post_values, rows_of, tensor
from edge.apps.readme import values_of
from edge.apps.render import render, template
from edge.errors import ConfigError

SYNTAX = Syntax(
    text=naming.typescript,
    enum=lambda _, name: f"'{name}'",
    ints=lambda values: "[" + ", ".join(map(str, values)) + "]",
    # A double of a float32's shortest decimal is not that float32: it is rounded where it is read.
    floats=lambda values: "[" + ", ".join(f"Math.fround({v})" for v in values) + "]",
    single=lambda text: f"Math.fround({text})",
    double=lambda text: text,
    boolean=lambda value: str(value).lower(),
    row=lambda cells: "  { " + ", ".join(f"{k}: {v}" for k, v in cells) + " },",
)
# LiteRT.js refuses other element types of inputs and outputs.
_DTYPES = ("float32", "int32", "uint8")


def files(bundle: Bundle) -> dict[str, bytes]:
    """Return the project's files by path; raise ConfigError for dtypes that LiteRT.js does not pass."""
    contract, tolerance = bundle.contract, bundle.contract.golden.tolerance
    for spec in (*contract.inputs, *contract.outputs):
        if spec.dtype not in _DTYPES:
            raise ConfigError(
                f"LiteRT.js passes {', '.join(_DTYPES)}; the tensor {spec.name[:60]!r} is {spec.dtype}.",
                hint="Build it with --io float32 or --io uint8.",
            )
    kinds = {True: "Pixels", False: "Numbers"}
    values = {
        **values_of(bundle),
        **post_values(contract.postprocess),
        "INPUTS": "\n".join(tensor(t, SYNTAX) for t in contract.inputs),
        "OUTPUTS": "\n".join(tensor(t, SYNTAX) for t in contract.outputs),
        "LABELS": "\n".join(f"  {naming.typescript(label)}," for label in contract.labels),
        "ANCHORS": rows_of(contract.postprocess.anchors),
        "GOLDEN_VECTORS": str(contract.golden.vectors),
        "TOLERANCE_STEPS": str(tolerance.steps),
        "TOLERANCE_SHARE": double(tolerance.share),
        "TOLERANCE_RELATIVE": double(tolerance.relative),
        "TOLERANCE_RESULT": double(tolerance.result),
        "NPM_NAME": naming.snake(bundle.name).replace("_", "-"),
        "JS_PARAMETERS": ", ".join(t.identifier for t in contract.inputs),
        "TS_PARAMETERS": ", ".join(f"{t.identifier}: {kinds[t.image]}" for t in contract.inputs),
        "JS_ENCODED": ", ".join(f"encode({t.identifier}, inputs[{i}])" for i, t in enumerate(contract.inputs)),
        "JS_EXAMPLE": ", ".join(f"pixels({t.identifier})" if t.image else t.identifier for t in contract.inputs),
    }
    plan = {
        "package.json": "package.json.txt",
        "README.md": "README.md",
        **{f"src/{name}": name for name in ("index.js", "index.d.ts", "contract.js", "prepost.js")},
        **{f"test/{name}": name for name in ("golden.js", "golden_node.js", "golden.html")},
    }
    made = {path: render(template(f"web/{source}"), values).encode() for path, source in plan.items()}
    golden = contract.golden.file
    return made | {f"{'test' if n == golden else 'assets'}/{n}": data for n, data in bundle.resources.items()}
