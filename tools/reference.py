"""Write the generated parts of the documentation: `python -m tools.reference`.

With --check it tells which are out of date and exits with 1. A part stands in a page between
`<!-- generated: KIND [NAME] -->` and `<!-- end -->`; the text around it is written by hand. KIND is a key of `_PARTS`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from edge import budgets, errors, project
from edge.cli import application
from edge.report.machine import SCHEMAS
from edge.sources import registry as sources
from edge.targets import registry as targets
from edge.targets.base import Target
from tools import messages

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
_PART = re.compile(r"(<!-- generated: ([\w-]+) ?([^ ]*) -->\n).*?(<!-- end -->)", re.DOTALL)

# Of each key of edgekit.toml: the form of its value, and what it says. `_key_rows` holds it against edge/project.py.
_KEYS: Mapping[str, tuple[str, str]] = {
    "model.source": ("path", "The model, as on the command line; relative to the file's folder."),
    "model.name": ("text", "Name of the artifacts; default: that of the source."),
    "model.layout": ("`channel-last`, `keep`", "What image inputs of the program are."),
    "model.inputs": ("tables", "`[model.inputs.NAME]`: see below."),
    "model.outputs": ("list of names", "The outputs and their order; default: the source's."),
    "model.task": (
        "`classification`, `regression`, `segmentation`, `detection`, `other`",
        "Chooses the metric, and the postprocessing of an exported app.",
    ),
    "model.labels": ("list, or a file with one per line", "Names of the classes."),
    "model.postprocess": ("table", "See [apps](apps.md)."),
    "model.trust": ("`true`, `false`", "Whether code that the model file carries may run."),
    "model.signature": ("text", "Which of a file's several signatures."),
    "model.dequantize": ("`true`, `false`", "Read a quantized `.tflite` as a float model."),
    "recipe.train": ("`file.py:function`", 'With `recipe = "qat"`: trains for one epoch.'),
    "recipe.epochs": ("number", "Epochs of fine-tuning (default 5)."),
    "recipe.seed": ("number", "Seed of the first epoch (default 0)."),
    "recipe.train_time": ("duration", "When fine-tuning ends at the latest (default 30min)."),
    "data.calibration": ("path or `file.py:callable`", "Representative samples."),
    "data.evaluation": ("path or `file.py:callable`", "Labelled samples, other ones than those that calibrate."),
    "data.calibration_samples": ("number", "How many calibrate, evenly spread (default 300)."),
    "data.evaluation_samples": ("number", "At most this many evaluate."),
    "data.metric": ("text", "`top1`, `mae`, ... or `file.py:metric`."),
    "build.targets": ("list", "Names or `.toml` files of targets."),
    "build.recipe": ("text", "See [accuracy](accuracy.md#recipes-by-name); `auto` searches, `qat` fine-tunes."),
    "build.io": ("`int8`, `uint8`, `float32`", "dtype at the ends of an int8 program."),
    "build.runtime": ("list", "Other runtimes than the target's first."),
    "build.output": ("path", "Folder for the artifacts (default `edgekit-build`)."),
    "build.keep_float": ("list", "Operator types, `tensor:REGEX`, or `front-end`, that stay float."),
    "build.split_outputs": ("`auto`, `never`", "Branches of very different size get scales of their own."),
    "build.fold_preprocessing": ("`true`, `false`", "Scale, mean and std become part of the program."),
    "build.timeout_s": ("number", "Seconds for one stage (default 3600)."),
    "build.latency": ("`none`, `smoke`, `quick`, `standard`", "The latency profile of the build."),
    "build.cache": ("`true`, `false`", "Whether stored results are used: see [cache](cache.md)."),
    "build.options": ("table", "`[build.options]`: options of runtimes, as in a target's `[options]`."),
    "budgets.max_drop": ("`1%`, `0.01`", "Points that the metric may lose."),
    "budgets.max_latency": ("`5ms`, `5ms p90`, `8ms p99 emulated`", "Limit, statistic (median), mode (measured)."),
    "budgets.max_size": ("`500kB`, `2MiB`", "Size of the program."),
    "budgets.max_memory": ("`2MB`, `64MB measured`", "Tensors and parameters; mode (predicted)."),
    "budgets.min_mapped": ("`95%`", "Share of operators on the Edge TPU."),
    "budgets.min_delegated": ("`95%`", "Share of operators on ExecuTorch's delegate."),
}
_INPUT_KEYS: Mapping[str, tuple[str, str]] = {
    "shape": ("list", 'Sizes, batch first; an open dimension is `"1..64"` or -1.'),
    "dtype": ("text", "Where the source leaves it open."),
    "layout": ("`NHWC`, `NCHW`, `NLC`, `NCL`, `other`", "What the axes are."),
    "preprocess": ('table, or `"scale=1/255"`', "How raw samples become the input: see [concepts](concepts.md)."),
    "value": ("number", "The input becomes a constant."),
}
# Of each variable of the environment that a user may set: what it does. A test holds it against the code.
VARIABLES: Mapping[str, str] = {
    "EDGEKIT_CACHE": "Folder of stored results, emulated boards and compiled runners; default `~/.cache/edgekit`.",
    "EDGEKIT_CACHE_LIMIT_GB": "How large the stored results may grow together (default 10); 0 switches them off.",
    "EDGEKIT_DEBUG": "Set: tracebacks with every error, as `--debug`.",
    "EDGEKIT_DEVICES": "Path of a `devices.toml`; default: the current folder's, else that of `~/.config/edgekit/`.",
    "EDGEKIT_EDGETPU_COMPILER": "The command line that starts Google's compiler; default: `edgetpu_compiler` on PATH.",
    "EDGEKIT_FILE_LIMIT_GB": "The largest file that a child process may write.",
    "EDGEKIT_LOCK_WAIT": "Seconds to wait for a device that another run uses.",
    "EDGEKIT_MEMORY_LIMIT_GB": "Memory that a child process may use.",
}


def main(arguments: Sequence[str]) -> int:
    """Write the parts, or with `--check` compare them; return the exit code."""
    stale = [page for page, (old, new) in pages().items() if old != new]
    for page in stale:
        if "--check" in arguments:
            old, new = pages()[page]
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), str(page), n=0))
        else:
            page.write_text(pages()[page][1], encoding="utf-8")
    sys.stdout.write(f"{len(stale)} page(s) {'out of date' if '--check' in arguments else 'written'}\n")
    return 1 if stale and "--check" in arguments else 0


def pages() -> dict[Path, tuple[str, str]]:
    """Return each page with generated parts as it is and as it should be."""
    found = {}
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if _PART.search(text):
            found[page] = (text, _PART.sub(_filled, text))
    return found


def _filled(match: re.Match[str]) -> str:
    begin, kind, name, end = match.groups()
    return f"{begin}\n{_PARTS[kind](name).strip()}\n\n{end}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; what would end a cell is escaped."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(_cell(c) for c in row) + " |" for row in rows)])


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", r"\|").strip()


def _prose(text: str) -> str:
    """Return a text of the program for a page: angle brackets and stars stand for themselves."""
    return re.sub(r"([<>*_\[\]])", r"\\\1", text) if "`" not in text else text.replace("<", "&lt;")


# Commands


def _commands(_name: str) -> str:
    import typer.main

    group = typer.main.get_command(application())
    found = "\n\n".join(_command(c, ("edgekit", name)) for name, c in group.commands.items())  # type: ignore[attr-defined]
    return f"{found}\n\n## Exit codes\n\n{_prose(str(group.epilog))}"


def _command(command: Any, path: tuple[str, ...]) -> str:
    if inner := getattr(command, "commands", None):
        head = f"## {' '.join(path)}\n\n{_prose(command.help or '')}"
        return "\n\n".join([head, *(_command(c, (*path, name)) for name, c in inner.items())])
    usage = " ".join([*path, *command.collect_usage_pieces(_context(command, path))])
    parts = [f"{'#' * min(len(path), 3)} {' '.join(path)}", _prose(command.help or ""), f"```text\n{usage}\n```"]
    if rows := [_parameter(p, command, path) for p in command.params if not getattr(p, "hidden", False)]:
        parts.append(table(("option", "what"), [r for r in rows if r]))
    if examples := list(_examples(command.epilog or "")):
        parts.append("\n".join(["```sh", *examples, "```"]))
    return "\n\n".join(parts)


def _context(command: Any, path: tuple[str, ...]) -> Any:
    return command.make_context(path[-1], [], resilient_parsing=True)


def _parameter(p: Any, command: Any, path: tuple[str, ...]) -> tuple[str, ...]:
    shown = p.get_help_record(_context(command, path))
    if shown is None:
        return ()
    name, text = shown
    return f"`{name}`", _prose(text)


def _examples(epilog: str) -> Iterator[str]:
    """Yield the commands of an epilog, what is said of them as a comment."""
    for line in epilog.splitlines():
        if line.strip().startswith("edgekit "):
            command, gap, said = line.strip().partition("      (")
            yield f"{command}   # {said.rstrip(')')}" if gap else command


# Configuration


def _keys(_name: str) -> str:
    known = {f"{section}.{key}" for section, keys in project._SECTIONS.items() for key in keys}
    _same(known, set(_KEYS), "edgekit.toml")
    parts = []
    for section in project._SECTIONS:
        rows = [(f"`{k.partition('.')[2]}`", *said) for k, said in _KEYS.items() if k.startswith(f"{section}.")]
        parts.append(f"## [{section}]\n\n{table(('key', 'value', 'what'), rows)}")
    _same(set(project.INPUT_KEYS), set(_INPUT_KEYS), "[model.inputs.NAME]")
    rows = [(f"`{k}`", *said) for k, said in _INPUT_KEYS.items()]
    parts.insert(1, f"## [model.inputs.NAME]\n\n{table(('key', 'value', 'what'), rows)}")
    return "\n\n".join(parts)


def _same(known: set[str], described: set[str], what: str) -> None:
    if known != described:
        raise ValueError(f"{what}: tools/reference.py must describe {sorted(known ^ described)}")


def _budget_units(_name: str) -> str:
    durations, sizes = ", ".join(budgets._DURATIONS), ", ".join(sorted(budgets._SIZES, key=lambda u: budgets._SIZES[u]))
    return table(
        ("of", "accepted"),
        [
            ("durations", f"a number with {durations}; without a unit: ms"),
            ("sizes", f"a number with {sizes} (upper or lower case); without a unit: bytes"),
            ("statistics of a latency", ", ".join(get_args(budgets.Statistic))),
            ("modes, the strongest first", ", ".join(budgets._MODES)),
        ],
    )


def _variables(_name: str) -> str:
    return table(("variable", "what"), [(f"`{name}`", what) for name, what in VARIABLES.items()])


def _target_keys(_name: str) -> str:
    rows = [(f"`{f.name}`", _default(f)) for f in dataclasses.fields(Target) if f.name != "name"]
    extends = ("`extends`", "none: the name of a target whose values these are laid over")
    return table(("key", "default"), [extends, *rows])


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{json.dumps(field.default)}`" if field.default else "empty"
    return "empty table" if field.default_factory is not dataclasses.MISSING else "must be given"


# Findings, errors, schemas


def _findings(_name: str) -> str:
    rows = [(f"`{t.rule}`", t.severity, _prose(t.message), _prose(t.fix)) for t in messages.findings()]
    return table(("rule", "severity", "message", "what to do"), list(dict.fromkeys(rows)))


def _error_tree(_name: str) -> str:
    tree = (errors.__doc__ or "").partition("\n\n")[2].partition("\n\n")[0]
    return f"```text\n{tree}\n```"


def _errors(_name: str) -> str:
    by_class: dict[str, list[messages.Told]] = {}
    for told in messages.messages():
        by_class.setdefault(told.rule, []).append(told)
    parts = []
    for kind, told_ones in by_class.items():
        cls = getattr(errors, kind)
        rows = list(dict.fromkeys((_prose(t.message), _prose(t.fix)) for t in told_ones))
        head = f"## {kind}\n\n{(cls.__doc__ or '').splitlines()[0]} Exit code {cls.exit_code}."
        parts.append(f"{head}\n\n{table(('message', 'what to do'), rows)}")
    return "\n\n".join(parts)


def _schemas(_name: str) -> str:
    return "\n\n".join(_schema(name) for name in SCHEMAS)


def _schema(name: str) -> str:
    path = f"edge/report/schemas/{name}.schema.json"
    data = json.loads((ROOT / path).read_text(encoding="utf-8"))
    parts = [f"## {name}", f"`{path}`", _fields(data)]
    for inner, definition in data.get("$defs", {}).items():
        if "properties" in definition:
            parts += [f"### {inner} (in {name})", _fields(definition)]
    return "\n\n".join(parts)


def _fields(definition: Mapping[str, Any]) -> str:
    required = set(definition.get("required", ()))
    rows = [(f"`{k}`", _type(v), "yes" if k in required else "no") for k, v in definition["properties"].items()]
    return table(("field", "type", "required"), rows)


def _type(value: Mapping[str, Any]) -> str:
    if "$ref" in value:
        return str(value["$ref"]).rpartition("/")[2]
    if "anyOf" in value:
        return ", ".join(_type(v) for v in value["anyOf"])
    if "enum" in value:
        return ", ".join(f"`{v}`" for v in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    inner = value.get("items") or value.get("additionalProperties")
    name = str(value.get("type", "anything"))
    return f"{name} of {_type(inner)}" if isinstance(inner, dict) and inner else name


# Targets and sources


def _targets(_name: str) -> str:
    rows = []
    for name in targets.names():
        t = targets.target(name)
        rows.append((f"[{name}](targets/{name}.md)", t.title, t.status, ", ".join(t.runtimes), t.recipe))
    return table(("target", "device", "status", "runtimes, the first is the default", "recipe"), rows)


def _target(name: str) -> str:
    t = targets.target(name)
    rows = [
        ("device", t.title),
        ("status", t.status),
        ("runtimes", ", ".join(f"`{r}`" for r in t.runtimes) + " (the first is the default)"),
        ("recipes", ", ".join(f"**`{r}`**" if r == t.recipe else f"`{r}`" for r in t.recipes)),
        ("dtype at the ends of an int8 program", f"`{t.io}`"),
        *((f"hardware: {key}", _value(value)) for key, value in t.hardware.items() if not isinstance(value, dict)),
        *((f"option: {key}", _value(value)) for key, value in _flat(t.options)),
        *((f"reached by: {key}", _value(value)) for key, value in t.reach.items()),
        *(("source of these facts", s) for s in t.sources),
    ]
    note = f"\n\n{t.note}" if t.note else ""
    return table(("of the catalogue", f"`targets/catalog/{name}.toml`"), rows) + note


def _flat(options: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _own_kinds() -> list[sources.Kind]:
    # Kinds that installed packages bring are no part of this project.
    return [k for k in sources.kinds() if k.kind in sources._ABOUT]


def _source(name: str) -> str:
    kind = next(k for k in _own_kinds() if k.kind == name)
    rows = [
        ("what is read", kind.what),
        ("install", f"`pip install '.[{kind.extra}]'` in a clone"),
        ("packages", ", ".join(kind.packages)),
        *([("for some models", ", ".join(kind.optional))] if kind.optional else []),
        *((f"routes to {_CARRIERS[carrier]}", ", ".join(names) or "none") for carrier, names in kind.routes.items()),
    ]
    return table(("of the registry", f"`{name}`"), rows)


_CARRIERS = {"litert": "LiteRT (LiteRT, Edge TPU)", "exported": "torch.export (ExecuTorch, Core ML, PyTorch Mobile)"}
_PARTS: Mapping[str, Callable[[str], str]] = {
    "commands": _commands,
    "keys": _keys,
    "budget-units": _budget_units,
    "variables": _variables,
    "target-keys": _target_keys,
    "findings": _findings,
    "error-tree": _error_tree,
    "errors": _errors,
    "schemas": _schemas,
    "targets": _targets,
    "target": _target,
    "source": _source,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
