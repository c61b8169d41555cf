"""Which layers of an ExecuTorch program lose most, to keep them float."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.calibration.recipe import Recipe
from edge.calibration.sensitivity import LayerRecord
from edge.isolate import Progress, no_progress
from edge.signature import Signature
from edge.targets.executorch import carrier, delegates, probe, quantize

if TYPE_CHECKING:
    from edge.calibration.data import Dataset

SAMPLES = 32


def rank(
    path: Path,
    signature: Signature,
    recipe: Recipe,
    options: Mapping[str, Any],
    samples: Dataset,
    progress: Progress = no_progress,
) -> tuple[tuple[LayerRecord, ...], int]:
    """Return the linear layers of a saved float program, those that lose most first, and the runs that it took.

    `options` is the target's table for ExecuTorch. Each layer's loss is its own, on float inputs: its weights and its
    input quantized. Raises QuantizationError, DataError.
    """
    chain = delegates.chosen(options)
    program, _ = carrier.load(path)
    own = options.get(chain[0].name, {})
    made = quantize.converted(program, signature, recipe, chain[0], own, samples, progress)
    used = list(itertools.islice(samples, SAMPLES))
    progress("measuring layers", None)
    found = probe.losses(made.reference, made.graph, signature, used)
    numbers = {n.name: (i, n) for i, n in enumerate(probe.linear_nodes(made.graph))}
    layers = [_record(*numbers[name], db) for name, db in found.items()]
    calibration = made.ranges.samples if made.ranges else 0
    return tuple(sorted(layers, key=lambda r: r.snr_db)), calibration + 2 * len(used)


def _record(index: int, node: Any, db: float) -> LayerRecord:
    return LayerRecord(
        index=index,
        operator=str(node.target).removeprefix("aten.").split(".")[0],
        output=node.name,
        weights_db=db,
        output_db=None,
        low=None,
        high=None,
        saturated=None,
        channel_spread=None,
        peak_to_rms=None,
    )
