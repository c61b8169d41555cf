"""A finding is one diagnosis: rule, place, reason in the user's terms, fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One question to an artifact and its answer: `open` where the numbers at hand decide nothing."""

    check: str
    state: Literal["pass", "fail", "open"]
    message: str = ""
