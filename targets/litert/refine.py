"""Corrections of a quantized program that change values only: weight steps, then biases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edge.calibration.ranges import Ranges
from edge.calibration.recipe import Recipe
from edge.isolate import Progress
from edge.targets.litert import bias, rounding


def apply(
    source: bytes, made: bytes, ranges: Ranges | None, recipe: Recipe, samples: Iterable[Any] | None, progress: Progress
) -> tuple[bytes, dict[str, Any]]:
    """Return the program after what the recipe asks for, and what each step did, for the report.

    `source` is the prepared float program that `made` was quantized from. Biases come last: they take out what the
    rounding leaves.
    """
    details: dict[str, Any] = {}
    if samples is None:
        return made, details
    if recipe.adaptive_rounding and ranges is not None:
        rounded = rounding.adapt(source, made, ranges, recipe, samples, progress)
        made = rounded.program if rounded else made
        details["adaptive_rounding"] = rounded.to_json() if rounded else None
    if recipe.bias_correction:
        corrected = bias.correct(source, made, samples, progress)
        made = corrected.program if corrected else made
        details["bias_correction"] = corrected.to_json() if corrected else None
    return made, details
