"""Weight steps with the least squared error, as observers of PT2E."""

from __future__ import annotations

import functools
from typing import Any

from edge.calibration import weights as arithmetic


@functools.cache
def observer_classes() -> tuple[Any, Any]:
    """Return the observers of weights with one step per channel and with one for all.

    They see a weight once and take the step whose int8 values err least from it (`calibration.weights`).
    """
    import torch
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver

    class PerChannel(PerChannelMinMaxObserver):  # type: ignore[misc]
        def forward(self, values: Any) -> Any:
            rows = values.detach().transpose(0, self.ch_axis).flatten(1).double().numpy()
            limits = torch.as_tensor(arithmetic.mse_thresholds(rows), dtype=torch.float32)
            self.min_val, self.max_val = -limits, limits
            return values

    class PerTensor(MinMaxObserver):  # type: ignore[misc]
        def forward(self, values: Any) -> Any:
            rows = values.detach().reshape(1, -1).double().numpy()
            limit = torch.as_tensor(arithmetic.mse_thresholds(rows)[0], dtype=torch.float32)
            self.min_val, self.max_val = -limit, limit
            return values

    return PerChannel, PerTensor
