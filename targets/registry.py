"""Targets by name or path, and runtimes by name. Listing names imports no framework."""

from __future__ import annotations

import functools
import importlib
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import codec
from edge.errors import ConfigError
from edge.targets.base import Target

if TYPE_CHECKING:
    from edge.targets.base import Runtime

# Built-in runtimes are looked up here first; a package adds its own by the entry point group edgekit.runtimes.
_RUNTIMES = {
    "litert": "edge.targets.litert.runtime:LiteRT",
    "edgetpu": "edge.targets.edgetpu.runtime:EdgeTPU",
    "executorch": "edge.targets.executorch.runtime:ExecuTorch",
    "torch_mobile": "edge.targets.torch_mobile.runtime:TorchMobile",
    "coreml": "edge.targets.coreml.runtime:CoreML",
}


def names() -> tuple[str, ...]:
    """Return the names of the catalogue, sorted."""
    files = resources.files("edge.targets.catalog").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def target(name: str) -> Target:
    """Return a target of the catalogue, or of the user's own TOML file where `name` is a path; raise ConfigError."""
    if name.endswith(".toml"):
        return _from_file(Path(name))
    if name not in names():
        raise ConfigError(
            f"Target {name!r} is unknown; accepted: {', '.join(names())}, or the path of a .toml file.",
            hint="`edgekit targets` describes each of them.",
        )
    return _parse(_catalogue_table(name), name, f"target {name}")


def _catalogue_table(name: str) -> dict[str, Any]:
    text = (resources.files("edge.targets.catalog") / f"{name}.toml").read_text(encoding="utf-8")
    return _extended(tomllib.loads(text), f"target {name}")


def _from_file(path: Path) -> Target:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The target file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"The target file {path} is no TOML: {error}.") from error
    return _parse(_extended(table, str(path)), path.stem, str(path))


def _extended(table: dict[str, Any], where: str) -> dict[str, Any]:
    base = table.pop("extends", None)
    if base is None:
        return table
    if base not in names():
        raise ConfigError(f"{where}: extends = {base!r}; accepted: {', '.join(names())}.")
    return merged(_catalogue_table(base), table)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`, nested tables merged."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def _parse(table: dict[str, Any], name: str, where: str) -> Target:
    from pydantic import ValidationError

    known = set(Target.__dataclass_fields__)
    problems = [f"{key}: no such key" for key in table if key not in known]
    try:
        result = codec.from_json(Target, {"name": name, **{k: v for k, v in table.items() if k in known}})
    except ValidationError as error:
        problems += [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    else:
        problems += _contradictions(result)
    if problems:
        raise ConfigError(
            f"{where} has {len(problems)} problem(s):\n  " + "\n  ".join(problems),
            hint=f"Accepted keys: {', '.join(sorted(known - {'name'}))}, extends.",
        )
    return result


def _contradictions(target: Target) -> list[str]:
    from edge.calibration import recipe

    problems = [
        f"recipes: {r!r} is no recipe ({', '.join(recipe.NAMES)})" for r in target.recipes if r not in recipe.NAMES
    ]
    if target.recipe not in target.recipes:
        problems.append(f"recipe: {target.recipe!r} is not among recipes")
    if not target.runtimes:
        problems.append("runtimes: at least one is needed")
    return problems + [
        f"runtimes: {r!r} is unknown ({', '.join(runtime_names())})"
        for r in target.runtimes
        if r not in runtime_names()
    ]


@functools.cache  # looks into each installed package
def _entry_points() -> dict[str, str]:
    from importlib.metadata import entry_points

    return {e.name: e.value for e in entry_points(group="edgekit.runtimes")}


def runtime_names() -> tuple[str, ...]:
    """Return the names of all runtimes, built-in and installed."""
    return tuple(sorted({*_RUNTIMES, *_entry_points()}))


def runtime(name: str) -> Runtime:
    """Return the runtime of that name; its framework is imported only when its methods run. Raises ConfigError."""
    location = _RUNTIMES.get(name) or _entry_points().get(name)
    if location is None:
        raise ConfigError(f"Runtime {name!r} is unknown; accepted: {', '.join(runtime_names())}.")
    module, _, attribute = location.partition(":")
    result: Runtime = getattr(importlib.import_module(module), attribute)()
    return result


def recipes(name: str, target: Target) -> tuple[str, ...]:
    """Return the kinds of recipes that a runtime makes with a target's options. Raises ConfigError."""
    found = runtime(name)
    narrowed = getattr(found, "recipes_for", None)  # of those with delegates
    kinds: tuple[str, ...] = narrowed(target) if narrowed else found.recipes
    return kinds
