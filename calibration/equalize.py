"""Cross-layer equalization: balance channels between a layer and the next, without changing what the two compute.

For positively homogeneous f (linear, ReLU): W2 f(W1 x + b1) = (W2 S) f(S^-1 (W1 x + b1)) with a diagonal S > 0
(Nagel et al. 2019, arXiv 1906.04721, section 4.1). The factors here are powers of two, so that float outputs stay equal
to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Factors beyond 2^±8 would turn channels that hardly matter into ones that need int32 biases beyond their range.
_MOST = 8


def factors(first: Floats, second: Floats | None) -> Floats:
    """Return s per channel [C]: divide the first layer's channels by s, multiply the second's input channels by it.

    `first` are magnitudes of what is divided: of the activation per channel where weights are quantized per channel
    (then the first layer's weights do not care), else of the first layer's weights. `second` are magnitudes of the
    second layer's weights per input channel; None for a depthwise layer, whose channels have scales of their own:
    then s makes all of `first` equal. Otherwise s = sqrt(first / second), which makes both equally uneven, each
    relative to its largest. Channels with a magnitude of 0 keep s = 1.
    Worked number: first [4, 1], second [1, 1] -> sqrt [1, 1/2] -> s = [1, 0.5].
    """
    used = first > 0 if second is None else (first > 0) & (second > 0)
    made = np.ones(first.size)
    if not used.any():
        return made
    ratio = first[used] / first[used].max()
    if second is not None:
        ratio = np.sqrt(ratio / (second[used] / second[used].max()))
    made[used] = 2.0 ** np.clip(np.round(np.log2(ratio)), -_MOST, _MOST)
    return made


def within_cap(scales: Floats, largest: Floats, cap: float, margin: float = 1.25) -> Floats:
    """Return the factors with which an activation limited at `cap` (ReLU6) acts the same on all that was seen.

    After division by s the limit stands at cap * s in the channel's own unit: `largest` (the channel's maximum) must
    stay below it, and below the old limit, by `margin`; channels that do not are raised to the next power of two that
    fits, or keep 1 where they reach the limit themselves.
    """
    needed = largest * margin / cap
    raised = 2.0 ** np.ceil(np.log2(np.maximum(needed, 2.0**-_MOST)))
    return np.where(needed > 1, 1.0, np.maximum(scales, raised))
