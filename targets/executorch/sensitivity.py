"""Which layers of an ExecuTorch program lose most, to keep them float."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.calibration.recipe import Recipe
from edge.calibration.sensitivity import LayerRecord, ranked, unbalanced
from edge.isolate import Progress, no_progress
from edge.signature import Signature
from edge.targets.executorch import carrier, delegates, equalize, ladder, probe, quantize

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

    `options` is the target's table for ExecuTorch. Each layer's loss is its own, on float inputs: with its weights
    quantized, and with its input. Of two layers whose channels are uneven against each other the first is to blame for
    both. Raises QuantizationError, DataError.
    """
    chain = delegates.chosen(options)
    program, _ = carrier.load(path)
    own = options.get(chain[0].name, {})
    made = quantize.converted(program, signature, recipe, chain[0], own, samples, progress)
    used = list(itertools.islice(samples, SAMPLES))
    progress("measuring layers", None)
    by_weights = probe.losses(made.reference, ladder.without_activations(made.graph), signature, used)
    by_input = probe.losses(made.reference, ladder.without_weights(made.graph, made.reference), signature, used)
    nodes = probe.linear_nodes(made.reference)
    records = {
        n.name: _record(i, n, by_weights[n.name], by_input[n.name]) for i, n in enumerate(nodes) if n.name in by_weights
    }
    pairs = [p for p in equalize.find_pairs(made.reference) if p.first.name in records and p.second.name in records]
    _blame(made.reference, pairs, records, equalize.channel_peaks(made.reference, signature, used, pairs))
    calibration = made.ranges.samples if made.ranges else 0
    return ranked(list(records.values())), calibration + (5 if pairs else 4) * len(used)


def _blame(
    graph: Any, pairs: Sequence[equalize.Pair], records: dict[str, LayerRecord], peaks: Mapping[str, Any]
) -> None:
    """Blame the first of two layers whose channels are uneven against each other for the second one's noise too."""
    for pair in pairs:
        first, second = records[pair.first.name], records[pair.second.name]
        reading = equalize.reading(graph, pair.second)
        if reading is None or not unbalanced(peaks[pair.between.name], reading):
            continue
        # What the second one is itself to blame for, beside its reader, stays with it.
        noise = replace(second, next_weights_db=None, blamed_before=False).snr_db
        records[pair.first.name] = replace(first, unbalanced_with=second.output, next_weights_db=noise)
        records[pair.second.name] = replace(second, blamed_before=True)


def _before(node: Any) -> str | None:
    """Return the layer that writes a layer's input, through what has one input itself."""
    value = node.args[0]
    while value.op in ("call_function", "call_module") and value.args and hasattr(value.args[0], "op"):
        if str(value.target) in probe.LINEAR:
            return str(value.name)
        value = value.args[0]
    return None


def _record(index: int, node: Any, weights_db: float, input_db: float) -> LayerRecord:
    return LayerRecord(
        index=index,
        operator=str(node.target).removeprefix("aten.").split(".")[0],
        output=node.name,
        weights_db=weights_db,
        output_db=None,
        low=None,
        high=None,
        saturated=None,
        channel_spread=None,
        peak_to_rms=None,
        input_db=input_db,
        reads=_before(node),
    )
