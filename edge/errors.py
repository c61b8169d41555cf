"""Every error that edgekit raises on purpose.

    EdgekitError
    ├── UsageError              2   wrong usage
    │   ├── ConfigError         2   edgekit.toml, target file or options, all problems collected
    │   ├── DataError           2   calibration or evaluation data
    │   └── OutputError         2   the output folder cannot be written
    ├── ToolError               3   a toolchain, device or the host failed
    │   ├── MissingPackageError 3   an optional package is not installed
    │   ├── StageCrashError     3   a child process died by a signal
    │   ├── StageTimeoutError   3   a child process ran out of time
    │   ├── StageMemoryError    3   a child process ran out of memory
    │   ├── StageFileError      3   a child process wrote a larger file than it may
    │   ├── DiskFullError       3   no space left while writing
    │   └── DeviceError         3   a device is absent, unreachable or failed
    ├── ModelError              4   the model cannot be read or built for the target
    │   ├── SourceError         4   the source cannot be read
    │   ├── ConversionError     4   no route brings the source to the carrier, or the result is wrong
    │   └── QuantizationError   4   the recipe cannot be applied
    └── ArtifactError           4   an artifact is damaged or is not one

The number is the process's exit code. Anything else that escapes is a bug of ours (70).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar

EXIT_OK = 0
EXIT_BUDGET = 1
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class EdgekitError(Exception):
    """Base of all errors shown to a user as one message.

    `message` gives the value received and what is accepted; `hint` what to do next; `log` the path of a child
    process's output, where there is one.
    """

    exit_code: ClassVar[int] = EXIT_BUG

    def __init__(self, message: str, *, hint: str | None = None, log: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log

    def to_json(self) -> dict[str, Any]:
        """Return the error as JSON-compatible data, the inverse of `from_json`."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "log": self.log,
            "exit_code": self.exit_code,
        }


class UsageError(EdgekitError):
    """The command was used wrongly."""

    exit_code = 2


class ConfigError(UsageError):
    """The configuration is wrong; the message lists every problem."""


class DataError(UsageError):
    """Calibration or evaluation data cannot be used."""


class OutputError(UsageError):
    """The output folder cannot be written."""


class ToolError(EdgekitError):
    """A toolchain or the host failed."""

    exit_code = 3


class MissingPackageError(ToolError):
    """An optional package is not installed."""


class StageCrashError(ToolError):
    """A child process died by a signal."""


class StageTimeoutError(ToolError):
    """A child process ran out of time."""


class StageMemoryError(ToolError):
    """A child process ran out of memory."""


class StageFileError(ToolError):
    """A child process wrote a larger file than it may."""


class DiskFullError(ToolError):
    """The disk is full."""


class DeviceError(ToolError):
    """A device is absent, unreachable or failed."""


class ModelError(EdgekitError):
    """The model cannot be read or built for the target."""

    exit_code = 4


class SourceError(ModelError):
    """The source cannot be read."""


class ConversionError(ModelError):
    """The source cannot be brought to the carrier, or the carrier computes something else."""


class QuantizationError(ModelError):
    """The recipe cannot be applied to the model."""


class ArtifactError(EdgekitError):
    """The folder is no artifact, or its files do not match their digests."""

    exit_code = 4


# What a full disk, a folder that refuses or a missing file say; a seek to where a damaged file points is none of it.
_OF_THE_SYSTEM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.EIO,
)


# No value of a file leads to these: a name, a module or a promise is missing in the code itself.
_OF_THE_CODE = (NameError, ImportError, SyntaxError, AssertionError)


def _no_fault_of_content(error: Exception) -> bool:
    """Tell what a full disk or a mistake in edgekit's own code raises from what strange values lead to.

    JSON, TOML and archives hold plain values: an attribute that a module or an object of edgekit's lacks is no fault of
    theirs, one that a number or None lacks may be.
    """
    if isinstance(error, OSError):
        return error.errno in _OF_THE_SYSTEM
    if isinstance(error, AttributeError):
        holder = error.obj if isinstance(error.obj, type) else type(error.obj)
        return isinstance(error.obj, ModuleType) or holder.__module__.partition(".")[0] == __name__.partition(".")[0]
    return isinstance(error, _OF_THE_CODE)


@contextlib.contextmanager
def blaming(kind: type[EdgekitError], what: str, *, hint: str | None = None) -> Iterator[None]:
    """Turn what a reader of untrusted content stumbles over into one error: "`what`: the reason".

    For the reading of values from outside, where each is checked by its use: parsers and decoders of damaged content
    raise whatever it leads to. What the system says (a full disk, a missing file) passes, and so does what can only be
    a mistake in the code. `--debug` shows the place.
    """
    try:
        yield
    except EdgekitError:
        raise
    except Exception as error:
        if _no_fault_of_content(error):
            raise
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise kind(f"{what}: {type(error).__name__}: {first.strip()[:300]}", hint=hint) from error


def _subclasses(cls: type[EdgekitError]) -> dict[str, type[EdgekitError]]:
    found = {cls.__name__: cls}
    for sub in cls.__subclasses__():
        found |= _subclasses(sub)
    return found


def from_json(data: dict[str, Any]) -> EdgekitError:
    """Rebuild an error that a child process wrote with `EdgekitError.to_json`."""
    cls = _subclasses(EdgekitError).get(str(data.get("error")), ToolError)
    hint, log = (text if isinstance(text := data.get(key), str) else None for key in ("hint", "log"))
    return cls(str(data.get("message")) or cls.__name__, hint=hint, log=log)
