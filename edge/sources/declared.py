"""Bring together what a source says of its inputs and outputs and what the user declared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from edge.errors import ConfigError
from edge.findings import Finding
from edge.signature import Layout, Signature, TensorSpec
from edge.sources.base import Declaration, InputDeclaration

# How a message tells the user to declare a shape.
HOW_TO_DECLARE = "Declare it: --shape {name}={shape}, or `shape` of the input in edgekit.toml."


def inputs_of(declaration: Declaration, names: Sequence[str]) -> tuple[InputDeclaration, ...]:
    """Return the declaration of each input, by name or by position. Raises ConfigError for names that do not exist."""
    accepted = {**{str(i): n for i, n in enumerate(names)}, **{n: n for n in names}}
    if unknown := [key for key in declaration.inputs if key not in accepted]:
        raise ConfigError(
            f"The model has no input {', '.join(map(repr, unknown))}; its inputs are {', '.join(names)}.",
            hint="Name an input as the model does, or by its position, from 0.",
        )
    found: dict[str, InputDeclaration] = {}
    for key, value in declaration.inputs.items():
        if accepted[key] in found:
            raise ConfigError(f"The input {accepted[key]!r} is declared twice, by name and by position.")
        found[accepted[key]] = value
    return tuple(found.get(n, InputDeclaration()) for n in names)


def output_names(declaration: Declaration, names: Sequence[str]) -> tuple[str, ...]:
    """Return the declared output names, or the source's. Raises ConfigError for a wrong count or repeated names."""
    declared = declaration.outputs
    if not declared:
        return tuple(names)
    if len(declared) != len(names) or len(set(declared)) != len(declared):
        raise ConfigError(
            f"The outputs are declared as {', '.join(declared)}; the model has {len(names)}: {', '.join(names)}.",
            hint="Give one different name for each output, in this order.",
        )
    return declared


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names with `_1`, `_2`, … added where one is taken."""
    taken: dict[str, None] = {}
    for name in names:
        candidate, number = name, 0
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken[candidate] = None
    return tuple(taken)


def static_shape(name: str, shape: Sequence[int | None], declared: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the shape to build for: fixed dimensions as they are, an open batch as 1, the rest as declared.

    `shape` has None or -1 for open dimensions. Raises ConfigError where the declaration does not fit or is missing.
    """
    source = tuple(-1 if d is None or d < 0 else int(d) for d in shape)
    if declared is not None and -1 in declared:
        raise ConfigError(
            f"The input {name!r} is declared with an open dimension, {list(declared)}, which this kind of source does "
            "not take.",
            hint="Open dimensions come from PyTorch modules, .pt2 programs and Keras models; declare fixed sizes.",
        )
    if declared is not None:
        fits = len(declared) == len(source) and all(s in (-1, d) for s, d in zip(source, declared, strict=True))
        if not fits:
            raise ConfigError(
                f"The input {name!r} is declared as {list(declared)}; the model takes {list(source)} (-1 is open)."
            )
    wanted = list(declared if declared is not None else source)
    if wanted and wanted[0] == -1:
        wanted[0] = 1
    if any(d < 1 for d in wanted):
        example = ",".join(str(d) if d > 0 else "N" for d in wanted)
        raise ConfigError(
            f"The input {name!r} has the open or empty shape {wanted}; a program for a device needs sizes above 0.",
            hint=HOW_TO_DECLARE.format(name=name, shape=example),
        )
    return tuple(wanted)


def open_shape(name: str, shape: Sequence[int | None], wish: InputDeclaration) -> tuple[int, ...]:
    """Return the shape of the program with -1 where a dimension is declared open; else as `static_shape`.

    Raises ConfigError where the source fixes a dimension that is declared open.
    """
    if not wish.open or wish.shape is None:
        return static_shape(name, shape, wish.shape)
    if len(shape) == len(wish.shape):
        held = [d.axis for d in wish.open if (shape[d.axis] or -1) > 0]
        if held:
            raise ConfigError(
                f"Dimension {held[0]} of {name!r} is declared open; the model takes {shape[held[0]]} there."
            )
    fixed = static_shape(name, shape, example_shape(name, wish))
    return tuple(-1 if d == -1 else f for d, f in zip(wish.shape, fixed, strict=True))


# The size that stands for an open dimension without bounds where no example gives one, and how far it grows.
_OPEN_BATCH = 2
_GROWTH, _LEAST_BATCH = 2, 8


def example_shape(name: str, wish: InputDeclaration, like: Sequence[int] = ()) -> tuple[int, ...]:
    """Return a fixed shape within the declared bounds: open sizes as in `like` where that fits, else their middle.

    Raises ConfigError for an open dimension of which nothing tells the size.
    """
    shape = list(wish.shape or like)
    for d in wish.open:
        given = like[d.axis] if len(like) == len(shape) else 0
        if given >= d.least and given >= 1 and (d.most is None or given <= d.most):
            shape[d.axis] = given
        elif d.most is not None:
            shape[d.axis] = (d.least + d.most) // 2
        elif d.axis == 0:
            shape[d.axis] = _OPEN_BATCH
        else:
            example = ",".join("1..64" if k == d.axis else str(n) for k, n in enumerate(wish.shape or ()))
            raise ConfigError(
                f"Dimension {d.axis} of {name!r} is open, and nothing tells which sizes it has.",
                hint=f"Give its bounds: --shape {name}={example}.",
            )
    return tuple(shape)


def largest(axis: int, example: int) -> int:
    """Return the size up to which memory is planned for an open dimension without bounds: twice the example's.

    A leading dimension (the batch) is planned for 8 at least.
    """
    return max(_GROWTH * example, _LEAST_BATCH if axis == 0 else 0)


def check_dtype(name: str, dtype: str, declared: str | None) -> None:
    """Raise ConfigError where the declared dtype is not the source's."""
    if declared is not None and declared != dtype:
        raise ConfigError(f"The input {name!r} is declared as {declared}; the model takes {dtype}.")


def default_layout(shape: Sequence[int], dtype: str, declared: Layout | None = None) -> Layout:
    """Return the layout of a channel-last framework's tensor: float of rank 4 is NHWC."""
    return declared or ("NHWC" if len(shape) == 4 and dtype.startswith("float") else "other")


def signature(declaration: Declaration, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Signature:
    """Return the signature with the declared preprocessing, task and labels. Raises ConfigError."""
    declared = inputs_of(declaration, [t.name for t in inputs])
    preprocess = {t.name: d.preprocess for t, d in zip(inputs, declared, strict=True) if d.preprocess is not None}
    try:
        return Signature(
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            preprocess=preprocess,
            task=declaration.task,
            labels=declaration.labels,
            postprocess=declaration.postprocess,
        )
    except ValueError as error:
        raise ConfigError(f"The model's inputs and outputs make no signature: {error}.") from error


def tensor(name: str, shape: Sequence[int], dtype: str, layout: Layout) -> TensorSpec:
    """Return a TensorSpec; raise ConfigError where dtype, shape or layout do not go together."""
    try:
        return TensorSpec(name=name, shape=tuple(shape), dtype=dtype, layout=layout)
    except ValueError as error:
        raise ConfigError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from error


def batch_finding(name: str, shape: Sequence[int | None]) -> tuple[Finding, ...]:
    """Return a finding where an open batch dimension becomes 1."""
    if not shape or (shape[0] is not None and shape[0] >= 0):
        return ()
    return (
        Finding(
            rule="BATCH_FIXED",
            severity="info",
            op=name,
            message=f"The batch dimension of {name!r} is open in the source and 1 in the program.",
        ),
    )


def file_digest(path: Path) -> str:
    """Return the sha256 of a file; of a folder, over its sorted relative names and their contents."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for member in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{member.relative_to(path).as_posix()}\0{file_digest(member)}\n".encode())
    return total.hexdigest()


def versions(*packages: str) -> Mapping[str, str]:
    """Return the installed versions of those of the packages that are installed."""
    installed = {}
    for package in packages:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed
