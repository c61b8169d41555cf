"""`--platform cpp`: one header over LiteRT's C API, CMake, and the golden test, for embedded Linux."""

from __future__ import annotations

from edge.apps import naming
from edge.apps.bundle import Bundle
from edge.apps.literals import Syntax, double, post_values, rows_of, tensor
from edge.apps.readme import values_of
from edge.apps.render import render, template

_ENUMS = {"bool": "boolean"}
SYNTAX = Syntax(
    text=naming.cpp,
    enum=lambda kind, name: f"{kind}::{_ENUMS.get(name, name)}",
    ints=lambda values: "{" + ", ".join(map(str, values)) + "}",
    floats=lambda values: "{" + ", ".join(f"{v}f" for v in values) + "}",
    single=lambda text: f"{text}f",
    double=lambda text: text,
    boolean=lambda value: str(value).lower(),
    row=lambda cells: "    {" + ", ".join(text for _, text in cells) + "},",
)


def files(bundle: Bundle) -> dict[str, bytes]:
    """Return the project's files by path."""
    contract, snake = bundle.contract, naming.snake(bundle.name)
    tolerance = contract.golden.tolerance
    values = {
        **values_of(bundle),
        **post_values(contract.postprocess),
        "INPUTS": "\n".join(tensor(t, SYNTAX) for t in contract.inputs),
        "OUTPUTS": "\n".join(tensor(t, SYNTAX) for t in contract.outputs),
        "LABELS": "\n".join(f"    {naming.cpp(label)}," for label in contract.labels),
        "ANCHORS": rows_of(contract.postprocess.anchors, "f"),
        "GOLDEN_VECTORS": str(contract.golden.vectors),
        "GOLDEN_IMAGES": str(contract.golden.images),
        "TOLERANCE_STEPS": double(tolerance.steps),
        "TOLERANCE_SHARE": double(tolerance.share),
        "TOLERANCE_RELATIVE": double(tolerance.relative),
        "TOLERANCE_RESULT": double(tolerance.result),
        "CPP_PARAMETERS": ", ".join(f"const {_kind(t.image)}& {t.identifier}" for t in contract.inputs),
        "CPP_ENCODED": ", ".join(f"encode({t.identifier}, inputs()[{i}])" for i, t in enumerate(contract.inputs)),
        "CPP_EXAMPLE": ", ".join(t.identifier for t in contract.inputs),
    }
    made = {
        f"include/{snake}.hpp": render(template("cpp/model.hpp"), values),
        "test/golden_test.cpp": render(template("cpp/golden_test.cpp"), values),
        "CMakeLists.txt": render(template("cpp/CMakeLists.txt"), values),
        "README.md": render(template("cpp/README.md"), values),
    }
    packed = {f"data/{path}": data for path, data in bundle.resources.items()}
    return {path: text.encode() for path, text in made.items()} | packed


def _kind(image: bool) -> str:
    return "Pixels" if image else "Floats"
