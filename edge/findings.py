"""A finding is one diagnosis: rule, place, reason in the user's terms, fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
# Converters make names of hundreds of characters by joining those of what they fused.
_LONGEST_NAME = 60


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One diagnosis.

    `rule` is a stable id in capitals (`DEAD_OUTPUT`); `op` names the operator, tensor or layer it is about, where
    there is one; `message` says what was found; `fix` says what the user can do.
    """

    rule: str
    severity: Severity
    message: str
    op: str | None = None
    fix: str | None = None

    def __post_init__(self) -> None:
        if not self.rule.replace("_", "").isalnum() or self.rule != self.rule.upper():
            raise ValueError(f"rule id {self.rule!r} must be capitals, digits and underscores")

    @property
    def text(self) -> str:
        """Message, place and fix for people: the name of the place is shortened, which JSON has whole."""
        name = self.op or ""
        short = shortened(name)
        message = self.message.replace(name, short).replace(repr(name)[1:-1], short) if short != name else self.message
        return message + (f" [{short}]" if name else "") + (f" Fix: {self.fix}" if self.fix else "")


def shortened(name: str) -> str:
    """Return a name of at most 60 characters: of a longer one its beginning and its end."""
    half = (_LONGEST_NAME - 1) // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


# Findings of a comparison with an earlier artifact; a warning there is one that could not be made.
BASELINE = "BASELINE_"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One question to an artifact and its answer: `open` where the numbers at hand decide nothing."""

    check: str
    state: Literal["pass", "fail", "open"]
    message: str = ""
