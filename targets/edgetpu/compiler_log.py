"""Read what the Edge TPU compiler says: its standard output and its `.log` files, versions 1 to 16.

The parser takes any text: a line that it does not know is skipped, a number that is none is absent. So a log of a
version not seen yet, or one cut short by a timeout, still gives what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

MAPPED = "Mapped to Edge TPU"


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of the operator table: how many operators of a kind have that status."""

    operator: str
    count: int
    status: str


@dataclass(frozen=True, kw_only=True)
class CompiledModelLog:
    """What is said of one model. Sizes in bytes (printed with two digits after the point), None where not printed.

    `on_chip_available_bytes` is what versions 1 and 2 print before the model took its part,
    `on_chip_remaining_bytes` what later ones print after.
    """

    input: str | None = None
    output: str | None = None
    input_bytes: int | None = None
    output_bytes: int | None = None
    on_chip_used_bytes: int | None = None
    on_chip_remaining_bytes: int | None = None
    on_chip_available_bytes: int | None = None
    off_chip_bytes: int | None = None
    subgraphs: int | None = None
    operations: int | None = None
    edgetpu_operations: int | None = None
    cpu_operations: int | None = None
    operation_log: str | None = None
    table: tuple[TableRow, ...] = ()

    def mapped(self) -> int:
        """Return the number of operators that the table says are mapped."""
        return sum(row.count for row in self.table if row.status == MAPPED)


@dataclass(frozen=True, kw_only=True)
class CompilerError:
    """An error that the compiler printed: a stable id, the line, what it means and what to do."""

    rule: str
    line: str
    reason: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class CompilerLog:
    """Everything that a log says. `segments` are the operator counts that a delegate search tried."""

    version: str | None = None
    succeeded: bool = False
    elapsed_ms: int | None = None
    timed_out: bool = False
    models: tuple[CompiledModelLog, ...] = ()
    errors: tuple[CompilerError, ...] = ()
    segments: tuple[int, ...] = ()
    intermediate_tensors: tuple[tuple[str, ...], ...] = field(default=())

    @property
    def major(self) -> int | None:
        """The version's first number: 16 of 16.0.384591198."""
        return int(self.version.split(".")[0]) if self.version else None


@dataclass(frozen=True)
class _Known:
    rule: str
    pattern: re.Pattern[str]
    reason: str
    fix: str


def _known(rule: str, pattern: str, reason: str, fix: str) -> _Known:
    return _Known(rule, re.compile(pattern), reason, fix)


# First match wins: the special stand before the general.
_ERRORS = (
    _known(
        "EDGETPU_INTERNAL_ERROR",
        r"Internal compiler error",
        "The compiler gave up without a reason; an operator it does accept on its own breaks it in this graph.",
        "edgekit looks for the operator with intermediate tensors; compile up to the cut it names, or use "
        "--search-delegate.",
    ),
    _known(
        "EDGETPU_LARGE_ACTIVATIONS",
        r"large activation tensors",
        "A feature map does not fit the chip's activation memory (3 MiB over 16 tiles).",
        "Use a smaller input size or fewer channels in the first layers.",
    ),
    _known(
        "EDGETPU_NOT_QUANTIZED",
        r"Model not quantized",
        "The model's tensors are not 8-bit.",
        "Quantize to int8 with int8 or uint8 inputs and outputs before compiling.",
    ),
    _known(
        "EDGETPU_DYNAMIC_SHAPES",
        r"static-sized tensors",
        "A tensor's size is known only at run time.",
        "Fix the batch and image sizes at conversion: no SHAPE operator may be left.",
    ),
    _known(
        "EDGETPU_OP_VERSION",
        r"Didn't find op for builtin opcode '(?P<op>[^']{1,80})' version '(?P<version>[^']{1,20})'",
        "The compiler's TensorFlow Lite is older than the operator version {version} of {op}.",
        "Let edgekit normalise the model: it lowers operator versions where no newer feature is used.",
    ),
    _known(
        "EDGETPU_OP_UNKNOWN",
        r"Op builtin_code out of range: (?P<op>\d{1,9})",
        "The operator with code {op} is newer than the compiler.",
        "Replace the layer by older operators, or let it run on the CPU behind the Edge TPU part.",
    ),
    _known(
        "EDGETPU_CUSTOM_OP",
        r"Encountered unresolved custom op: (?P<op>[^.\s]{1,80})",
        "The compiler does not have the custom operator {op}.",
        "Cut the model before that operator and run it after the Edge TPU.",
    ),
    _known(
        "EDGETPU_INTERPRETER_FAILED",
        r"Model failed in Tflite interpreter",
        "The compiler's own interpreter could not load or run the model.",
        "Run the model with ai-edge-litert first; if that works, an operator or its version is too new for it.",
    ),
    _known(
        "EDGETPU_DELEGATE_FAILED",
        r"Restored original execution plan after delegate application failure",
        "The part meant for the Edge TPU could not be compiled, and the model was left as it was.",
        "See the error before it.",
    ),
    _known(
        "EDGETPU_TIMEOUT",
        r"(?i)compilation (?:child process )?(?:timed out|did not complete within)|timer (?:has )?expired",
        "The compiler ran out of its own time.",
        "Give it more with --compiler-timeout.",
    ),
    _known(
        "EDGETPU_INVALID_MODEL",
        r"Invalid model: (?P<op>.{1,300})",
        "The compiler does not accept the file {op}.",
        "Check that it is an int8 .tflite file that ai-edge-litert runs.",
    ),
    _known(
        "EDGETPU_COMPILATION_FAILED",
        r"Compilation failed: (?P<op>.{1,300})",
        "The compiler says: {op}",
        "Look for the message among the compiler's known problems; try --search-delegate.",
    ),
)
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?) ?(B|KiB|MiB|GiB)$")
_COUNT = re.compile(r"(\d{1,12})$")
_HEADER = re.compile(r"Operator\s+Count\s+Status\s*$")
_ROW = re.compile(r"(\S{1,200})\s+(\d{1,9})\s+(\S.{0,500}?)\s*$")
_VERSION = re.compile(r"Edge TPU Compiler version (\d{1,4}(?:\.\d{1,12}){1,4})")
_COMPILED = re.compile(r"Models? compiled successfully in (\d{1,12}) ?ms")
_SEGMENT = re.compile(r"Try to compile segment with (\d{1,9}) ops")
_TENSORS = re.compile(r"Intermediate tensors: (.{1,10000})$")


def _size(text: str) -> int | None:
    found = _SIZE.match(text)
    return round(float(found[1]) * _UNITS[found[2]]) if found else None


def _count(text: str) -> int | None:
    found = _COUNT.match(text)
    return int(found[1]) if found else None


def _text(text: str) -> str | None:
    return text or None


# What stands before the colon -> the field it fills and how its value is read.
_FIELDS: dict[str, tuple[str, Callable[[str], int | str | None]]] = {
    "Input": ("input", _text),
    "Input model": ("input", _text),
    "Output": ("output", _text),
    "Output model": ("output", _text),
    "Input size": ("input_bytes", _size),
    "Output size": ("output_bytes", _size),
    "On-chip memory available for caching model parameters": ("on_chip_available_bytes", _size),
    "On-chip memory used for caching model parameters": ("on_chip_used_bytes", _size),
    "On-chip memory remaining for caching model parameters": ("on_chip_remaining_bytes", _size),
    "Off-chip memory used for streaming uncached model parameters": ("off_chip_bytes", _size),
    "Number of Edge TPU subgraphs": ("subgraphs", _count),
    "Total number of operations": ("operations", _count),
    "Number of operations that will run on Edge TPU": ("edgetpu_operations", _count),
    "Number of operations that will run on CPU": ("cpu_operations", _count),
    "Operation log": ("operation_log", _text),
}


def _with_field(model: CompiledModelLog, name: str, value: int | str | None) -> CompiledModelLog:
    fields: dict[str, Any] = {name: value}
    return replace(model, **fields)


def _models(lines: list[str]) -> Iterator[CompiledModelLog]:
    """Yield one record for each block: a block begins where a model's input is named."""
    current, rows = CompiledModelLog(), list[TableRow]()
    in_table = False
    for line in lines:
        name, colon, value = line.partition(":")
        known = _FIELDS.get(name.strip()) if colon else None
        if known and known[0] == "input" and current != CompiledModelLog():
            yield replace(current, table=tuple(rows))
            current, rows = CompiledModelLog(), []
        if known:
            current = _with_field(current, known[0], known[1](value.strip()))
            in_table = False
        elif _HEADER.match(line):
            in_table = True
        elif in_table and (row := _ROW.match(line)):
            rows.append(TableRow(operator=row[1], count=int(row[2]), status=row[3]))
        elif line.strip():
            in_table = False
    if current != CompiledModelLog() or rows:
        yield replace(current, table=tuple(rows))


def _errors(lines: list[str]) -> Iterator[CompilerError]:
    seen = set()
    for line in lines:
        for known in _ERRORS:
            if found := known.pattern.search(line):
                error = CompilerError(
                    rule=known.rule,
                    line=line.strip()[:500],
                    reason=_filled(known.reason, found),
                    fix=known.fix,
                )
                if error not in seen:
                    seen.add(error)
                    yield error
                break


def _filled(reason: str, found: re.Match[str]) -> str:
    for key, value in found.groupdict().items():
        reason = reason.replace(f"{{{key}}}", str(value).strip())
    return reason


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found[1] if found else None


def parse(text: str) -> CompilerLog:
    """Return what a standard output or a `.log` file says; never raises for any text."""
    lines = text.splitlines()
    elapsed = _first(_COMPILED, text)
    errors = tuple(_errors(lines))
    return CompilerLog(
        version=_first(_VERSION, text),
        succeeded=elapsed is not None,
        elapsed_ms=int(elapsed) if elapsed else None,
        timed_out=any(e.rule == "EDGETPU_TIMEOUT" for e in errors),
        models=tuple(_models(lines)),
        errors=errors,
        segments=tuple(int(n) for n in _SEGMENT.findall(text)),
        intermediate_tensors=tuple(
            tuple(name.strip() for name in found[1].split(",")) for line in lines if (found := _TENSORS.search(line))
        ),
    )
