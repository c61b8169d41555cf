"""What XNNPACK's partitioner takes: all that it takes by default, and paddings in integers.

Its own padding is of float32, so that an int8 network with paddings of its own (every stride of 2 that comes from
TensorFlow has one) converts whole tensors to float32 and back, though XNNPACK's operator pads integers as well.
"""

from __future__ import annotations

from typing import Any


def configs() -> list[Any]:
    """Return the partitioner's configurations, that of paddings replaced."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.generic_node_configs import ConstantPadConfig
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType

    class Pad(ConstantPadConfig):  # type: ignore[misc]
        def supported_precision_types(self) -> list[Any]:
            return [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]

        def get_node_and_deps(self, node: Any, ep: Any) -> list[Any]:
            found: list[Any] = super().get_node_and_deps(node, ep) if _keeps_steps(node) else [node]
            return found

    return [Pad if config is ConstantPadConfig else config for config in ALL_PARTITIONER_CONFIGS]


def _keeps_steps(node: Any) -> bool:
    """Tell whether a node stands between a dequantization and a quantization by the same numbers."""
    source, readers = node.args[0], list(node.users)
    return (
        len(readers) == 1
        and "dequantize_per_tensor" in str(source.target)
        and "quantized_decomposed.quantize_per_tensor" in str(readers[0].target)
        and source.args[1:] == readers[0].args[1:]
    )
