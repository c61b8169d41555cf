"""edgekit.toml and the command line to one frozen Project; all configuration errors are collected before any work."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edge import budgets as budgets_
from edge import codec, postprocess_options
from edge.budgets import Budgets
from edge.calibration import recipe as recipes
from edge.calibration.recipe import InputOutput, Override, Recipe
from edge.errors import ConfigError
from edge.signature import Preprocess
from edge.sources.base import Declaration, InputDeclaration, OpenDimension

FILE = "edgekit.toml"
DEFAULT_OUTPUT = "edgekit-build"
DEFAULT_CALIBRATION_SAMPLES = 300
AUTO = "auto"
QAT = "qat"
INPUT_KEYS = ("shape", "dtype", "layout", "preprocess", "value")


@dataclass(frozen=True, kw_only=True)
class Training:
    """A fine-tune with fake quantization: `function` is `file.py:train`, called as train(model, epoch) per epoch."""

    function: str
    epochs: int = 5
    seed: int = 0
    time_limit_s: float = 1800.0


@dataclass(frozen=True, kw_only=True)
class Project:
    """One build, resolved: what to build, for which targets, with which data, recipe and budgets."""

    source: str
    name: str
    targets: tuple[str, ...]
    calibration: str | None = None
    evaluation: str | None = None
    calibration_samples: int = DEFAULT_CALIBRATION_SAMPLES
    evaluation_samples: int | None = None
    metric: str | None = None
    recipe: str | None = None
    search: bool = False
    training: Training | None = None
    io: InputOutput | None = None
    overrides: tuple[Override, ...] = ()
    runtimes: tuple[str, ...] = ()
    split_outputs: bool = False
    fold_preprocessing: bool = False
    declaration: Declaration = field(default_factory=Declaration)
    layout: Literal["keep", "channel-last"] | None = None
    budgets: Budgets = field(default_factory=Budgets)
    output: Path = Path(DEFAULT_OUTPUT)
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 3600.0
    latency_profile: str = "smoke"
    cache: bool = True

    def recipe_for(self, default: str, io: InputOutput) -> Recipe:
        """Return the recipe of one target: the project's, else the target's default."""
        chosen = recipes.named(self.recipe or default, io=self.io or io)
        # Only what has ranges can have branches that clash.
        split = self.split_outputs and chosen.needs_calibration
        return replace(chosen, overrides=self.overrides, split_outputs=split)

    def recorded(self, target: str, runtime: str) -> dict[str, Any]:
        """Return what decides the artifact of one target, as JSON-compatible data: not where it goes, nor how fast."""
        one = replace(self, targets=(target,), runtimes=(runtime,))
        data: dict[str, Any] = codec.to_json(one)
        return {key: value for key, value in data.items() if key not in ("output", "timeout_s", "cache")}


_SECTIONS: dict[str, tuple[str, ...]] = {
    "model": (
        *("source", "name", "layout", "inputs", "outputs", "task", "labels", "postprocess"),
        *("trust", "signature", "dequantize"),
    ),
    "recipe": ("train", "epochs", "seed", "train_time"),
    "data": ("calibration", "evaluation", "calibration_samples", "evaluation_samples", "metric"),
    "build": (
        "targets",
        "recipe",
        "io",
        "runtime",
        "output",
        "keep_float",
        "split_outputs",
        "fold_preprocessing",
        "timeout_s",
        "latency",
        "cache",
        "options",
    ),
    "budgets": budgets_.KEYS,
}


# A dimension as it is declared: its size, -1 for an open one, or the bounds (least, most) of an open one.
Dimension = int | tuple[int, int]


def parse_shape(text: str) -> tuple[str, tuple[Dimension, ...]]:
    """Return name (or position) and shape of `image=1,3,32,32`; a bare `1,3,32,32` is input `0`; raise ValueError.

    A dimension may be open: `1,1..64,12` takes 1 to 64 steps, `-1` any size up to what memory is planned for.
    """
    name, equals, numbers = text.rpartition("=")
    try:
        shape = tuple(_dimension(n) for n in numbers.replace("x", ",").split(","))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}; accepted: NAME=1,3,32,32, an open dimension as 1..64 or -1") from None
    return (name if equals else "0"), shape


def _dimension(value: Any) -> Dimension:
    """Return a dimension of a text or of TOML; raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"{value!r} is no size")
    least, dots, most = str(value).strip().partition("..")
    try:
        bounds = (int(least), int(most)) if dots else (int(least),)
    except ValueError:
        raise ValueError(f"{value!r} is no size") from None
    if dots:
        if not 1 <= bounds[0] < bounds[-1]:
            raise ValueError(f"{value!r} must go from 1 or more to a larger size")
        return bounds[0], bounds[-1]
    if bounds[0] < 1 and bounds[0] != -1:
        raise ValueError(f"{value!r}; every dimension must be at least 1")
    return bounds[0]


def declared_shape(shape: tuple[Dimension, ...]) -> dict[str, Any]:
    """Return the fields of an InputDeclaration that a shape fills: `shape` with -1 where it is open, and `open`."""
    bounds = [(axis, d) for axis, d in enumerate(shape) if d == -1 or not isinstance(d, int)]
    return {
        "shape": tuple(d if isinstance(d, int) else -1 for d in shape),
        "open": tuple(
            OpenDimension(axis=axis) if isinstance(d, int) else OpenDimension(axis=axis, least=d[0], most=d[1])
            for axis, d in bounds
        ),
    }


class _Collector:
    """Collects problems instead of stopping at the first."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def take(self, where: str, parse: Any, value: Any) -> Any:
        if value is None:
            return None
        try:
            return parse(value)
        except (ValueError, TypeError, OverflowError, ConfigError) as error:
            self.problems.append(f"{where}: {error}")
            return None

    def raise_if_any(self, what: str) -> None:
        if self.problems:
            raise ConfigError(
                f"{what} has {len(self.problems)} problem(s):\n  " + "\n  ".join(self.problems),
                hint=f"`edgekit init` writes a commented {FILE} to start from.",
            )


def read_file(path: Path) -> dict[str, Any]:
    """Return the tables of an edgekit.toml, paths in it made relative to its folder; raise ConfigError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no TOML: {error}.") from error
    problems = _Collector()
    for section, table in tables.items():
        if section not in _SECTIONS or not isinstance(table, dict):
            problems.problems.append(f"[{section}]: no such section ({', '.join(_SECTIONS)})")
            continue
        problems.problems += [
            f"{section}.{key}: no such key ({', '.join(_SECTIONS[section])})"
            for key in table
            if key not in _SECTIONS[section]
        ]
    problems.raise_if_any(str(path))
    for section, key in (
        ("model", "source"),
        ("data", "calibration"),
        ("data", "evaluation"),
        ("build", "output"),
        ("recipe", "train"),
    ):
        value = tables.get(section, {}).get(key)
        if isinstance(value, str) and value and not Path(value).is_absolute():
            tables[section][key] = str(path.parent / value)
    declared = tables.get("model", {}).get("postprocess")
    if isinstance(declared, dict) and isinstance(declared.get("anchors"), str):
        declared["anchors"] = str(path.parent / declared["anchors"])
    return tables


def flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of all sections in one mapping; no key stands in two sections."""
    return {key: value for table in tables.values() for key, value in table.items()}


def resolve(settings: Mapping[str, Any], *, what: str = "The configuration") -> Project:
    """Return the Project of `flat` settings (file, then command line on top); raise ConfigError with every problem."""
    get = settings.get
    c = _Collector()
    if not get("source"):
        c.problems.append(f"source: no model is given (an argument, or model.source in {FILE})")
    if not get("targets"):
        c.problems.append("targets: no target is given (--target NAME, or build.targets)")
    source = str(get("source") or "")
    options = {
        "calibration_samples": c.take("calibration_samples", _positive, get("calibration_samples")),
        "evaluation_samples": c.take("evaluation_samples", _positive, get("evaluation_samples")),
        "recipe": c.take("recipe", _recipe_name, get("recipe")),
        "search": get("recipe") == AUTO or None,
        "training": _training(settings, c),
        "io": c.take("io", _one_of("int8", "uint8", "float32"), get("io")),
        "overrides": c.take("keep_float", _overrides, get("keep_float")),
        "timeout_s": c.take("timeout_s", _positive_number, get("timeout_s")),
        "latency_profile": c.take("latency", _one_of("none", "smoke", "quick", "standard"), get("latency")),
        "cache": c.take("cache", _one_of(True, False), get("cache")),
        "fold_preprocessing": c.take("fold_preprocessing", _one_of(True, False), get("fold_preprocessing")),
        "options": c.take("options", dict, get("options")),
        "layout": c.take("layout", _one_of("keep", "channel-last"), get("layout")),
        "split_outputs": c.take("split_outputs", lambda v: _one_of("auto", "never")(v) == "auto", get("split_outputs")),
    }
    declaration = _declaration(settings, c)
    budgets = budgets_.parse(settings, c.problems)
    targets = c.take("targets", _strings, get("targets")) or ()
    runtimes = c.take("runtime", _strings, get("runtime")) or ()
    texts = {key: c.take(key, _text, get(key)) for key in ("calibration", "evaluation", "metric", "name", "output")}
    c.raise_if_any(what)
    return Project(
        source=source,
        name=texts["name"] or default_name(source),
        targets=targets,
        calibration=texts["calibration"],
        evaluation=texts["evaluation"],
        metric=texts["metric"],
        runtimes=runtimes,
        declaration=declaration,
        budgets=budgets,
        output=Path(texts["output"] or DEFAULT_OUTPUT),
        **{k: v for k, v in options.items() if v is not None},
    )


def default_name(source: str) -> str:
    """Return a folder-safe name for a source: `nets/model.py:make_net` is `make_net`."""
    path, _, attribute = source.rpartition(":")
    base = attribute if path.endswith(".py") else Path(source).stem
    return "".join(ch if ch.isalnum() or ch in "-_." else "_" for ch in base).strip("._") or "model"


def _recipe_name(value: Any) -> str | None:
    """`auto` means the target's own recipe, refined by a search within the accuracy budget."""
    if value == QAT:
        return "int8"
    return None if value == AUTO else recipes.named(value).name


def _training(settings: Mapping[str, Any], c: _Collector) -> Training | None:
    get = settings.get
    if get("recipe") != QAT:
        if get("train") and get("recipe") is not None:
            c.problems.append(f"train: goes with the recipe {QAT}, not with {get('recipe')}")
        return None
    if not get("train"):
        c.problems.append(
            f"recipe: {QAT} needs a function that trains for one epoch, train(model, epoch): --train FILE.py:FUNCTION, "
            f"or train = ... in [recipe] of {FILE}"
        )
        return None
    seconds = c.take("train_time", budgets_.parse_duration_ms, get("train_time"))
    given = {
        "epochs": c.take("epochs", _positive, get("epochs")),
        "seed": c.take("seed", int, get("seed")),
        "time_limit_s": None if seconds is None else seconds / 1e3,
    }
    return Training(function=str(get("train")), **{k: v for k, v in given.items() if v is not None})


def _positive(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value) or int(value) < 1:
        raise ValueError(f"{value!r}; accepted: a whole number from 1")
    return int(value)


def _positive_number(value: Any) -> float:
    if isinstance(value, bool) or not float(value) > 0:
        raise ValueError(f"{value!r}; accepted: a number above 0")
    return float(value)


def _one_of(*accepted: str | bool) -> Any:
    def parse(value: Any) -> Any:
        if value not in accepted or type(value) is not type(accepted[0]):
            raise ValueError(f"{value!r}; accepted: {', '.join(map(str, accepted)).lower()}")
        return value

    return parse


def _text(value: Any) -> str:
    if not isinstance(value, (str, Path)):
        raise ValueError(f"{value!r}; accepted: a text")
    return str(value)


def _strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v for v in value):
        raise ValueError(f"{value!r}; accepted: a list of texts")
    return tuple(dict.fromkeys(value))


def _overrides(value: Any) -> tuple[Override, ...]:
    """`"SOFTMAX"` keeps an operator type float, `"tensor:regex"` the operators whose output name matches.

    `"front-end"` (LiteRT) stands for all that leads to a spectrum's logarithm or root.
    """
    import re

    found = []
    for entry in _strings(value):
        kind, _, pattern = entry.partition(":")
        if kind == "tensor" and pattern:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{entry!r} is no regular expression: {error}") from None
            found.append(Override(tensor=pattern))
        else:
            found.append(Override(operator=entry.upper()))
    return tuple(found)


def _declaration(settings: Mapping[str, Any], c: _Collector) -> Declaration:
    inputs: dict[str, InputDeclaration] = {}
    declared = c.take("inputs", _table, settings.get("inputs")) or {}
    for name, table in declared.items():
        inputs[name] = _input(name, table, c)
    for name, shape in (settings.get("shapes") or {}).items():
        inputs[name] = replace(inputs.get(name, InputDeclaration()), **declared_shape(shape))
    for name, value in (settings.get("values") or {}).items():
        inputs[name] = replace(inputs.get(name, InputDeclaration()), value=value)
    for name, pre in (settings.get("preprocess") or {}).items():
        inputs[name] = replace(inputs.get(name, InputDeclaration()), preprocess=pre)
    return Declaration(
        inputs=inputs,
        outputs=c.take("outputs", _strings, settings.get("outputs")) or (),
        task=c.take(
            "task", _one_of("classification", "regression", "segmentation", "detection", "other"), settings.get("task")
        )
        or "other",
        labels=c.take("labels", _labels, settings.get("labels")) or (),
        postprocess=c.take("postprocess", postprocess_options.from_table, settings.get("postprocess")) or {},
        trust=bool(settings.get("trust", False)),
        dequantize=bool(settings.get("dequantize", False)),
        signature=str(settings.get("signature") or ""),
    )


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise ValueError(f"{value!r}; accepted: tables such as [model.inputs.image]")
    return value


def _labels(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(line.strip() for line in Path(value).read_text(encoding="utf-8").splitlines() if line.strip())
    return _strings(value)


def _input(name: str, table: Mapping[str, Any], c: _Collector) -> InputDeclaration:
    where = f"inputs.{name}"
    c.problems += [f"{where}.{k}: no such key ({', '.join(INPUT_KEYS)})" for k in table if k not in INPUT_KEYS]
    return InputDeclaration(
        **declared_shape(c.take(f"{where}.shape", _shape, table["shape"]) or ()) if "shape" in table else {},
        dtype=c.take(f"{where}.dtype", str, table.get("dtype")),
        layout=c.take(f"{where}.layout", _one_of("NHWC", "NCHW", "NLC", "NCL", "other"), table.get("layout")),
        preprocess=c.take(f"{where}.preprocess", preprocess, table.get("preprocess")),
        value=c.take(f"{where}.value", float, table.get("value")),
    )


def _shape(value: Any) -> tuple[Dimension, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{value!r}; accepted: a list of sizes, batch first")
    try:
        return tuple(_dimension(v) for v in value)
    except ValueError as error:
        raise ValueError(f"{error}; accepted: whole numbers from 1, an open dimension as '1..64' or -1") from None


def preprocess(value: Any) -> Preprocess:
    """Return the Preprocess of a table or a text such as `scale=1/255`; raise ValueError, ConfigError."""
    if isinstance(value, str):
        from edge.preprocess import parse_preprocess

        return parse_preprocess(value)
    if not isinstance(value, dict):
        raise ValueError(f"{value!r}; accepted: a table or a text such as 'scale=1/255'")
    known = Preprocess.__dataclass_fields__
    if unknown := [k for k in value if k not in known]:
        raise ValueError(f"no such key {', '.join(unknown)} ({', '.join(known)})")
    from pydantic import ValidationError

    try:
        return codec.from_json(
            Preprocess,
            {k: [v] if k in ("mean", "std") and isinstance(v, (int, float)) else v for k, v in value.items()},
        )
    except ValidationError as error:
        raise ValueError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from None
