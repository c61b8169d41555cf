"""Whether an int8 program is faster than the same model in float32 on this host, and if not, why."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.findings import Finding
from edge.targets.executorch.session import ExecuTorchSession

if TYPE_CHECKING:
    from edge.signature import Signature
    from edge.targets.executorch.lower import Delegation

_ROUNDS = 9
_ROUND_S = 0.03
# Below this the calls around the arithmetic take most of the time.
SMALL_MS = 0.05
# CPU flags with a product of 8-bit integers that sums to 32 bits: x86 and Arm.
_PRODUCTS = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Medians of one run in milliseconds, both programs in turns on one thread; `ratio` above 1: int8 is faster."""

    float32_ms: float
    int8_ms: float
    ratio: float

    def record(self) -> dict[str, Any]:
        """Return the numbers as JSON-compatible data, with how they came about."""
        return {**asdict(self), "threads": 1, "mode": "measured", "where": "this host"}


def measure(quantized: tuple[bytes, Signature], plain: tuple[bytes, Signature], inputs: Sequence[Any]) -> Speed:
    """Time two programs in turns, so that a slow moment of the machine hits both; `inputs` has those of each."""
    sessions = [ExecuTorchSession(data, signature) for data, signature in (quantized, plain)]
    counts = [_count(s, given) for s, given in zip(sessions, inputs, strict=True)]
    rounds = [[_median(s, g, n) for s, g, n in zip(sessions, inputs, counts, strict=True)] for _ in range(_ROUNDS)]
    int8, float32 = (1e3 * statistics.median(r[k] for r in rounds) for k in (0, 1))
    return Speed(float32_ms=float32, int8_ms=int8, ratio=statistics.median(r[1] / r[0] for r in rounds))


def _count(session: ExecuTorchSession, inputs: Mapping[str, Any]) -> int:
    session.run(inputs)
    return max(3, min(200, int(_ROUND_S / max(_median(session, inputs, 1), 1e-6))))


def _median(session: ExecuTorchSession, inputs: Mapping[str, Any], count: int) -> float:
    session.run(inputs)
    times = []
    for _ in range(count):
        started = time.perf_counter()
        session.run(inputs)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def finding(speed: Speed, int8: Delegation, float32: Delegation) -> tuple[Finding, ...]:
    """Return a finding where int8 is not faster, with all the reasons that the two programs and this CPU give."""
    if speed.ratio > 1:
        return ()
    return (
        Finding(
            rule="INT8_NOT_FASTER",
            severity="warning",
            message=f"On this host int8 takes {speed.int8_ms:.3f} ms and float32 {speed.float32_ms:.3f} ms (measured "
            f"in turns, 1 thread): {'; '.join(reasons(speed, int8, float32, _flags()))}.",
            fix="Measure on the device before choosing: its kernels differ. Keep float32 if size does not matter.",
        ),
    )


def reasons(speed: Speed, int8: Delegation, float32: Delegation, flags: frozenset[str]) -> list[str]:
    """Return why an int8 program may be the slower one; never empty."""
    found = []
    lost = sum(int8.portable.values()) - sum(float32.portable.values())
    if lost > 0:
        more = [n for n, c in int8.portable.items() if c > float32.portable.get(n, 0)]
        found.append(f"{lost} more operators stay on portable kernels ({', '.join(more[:4])})")
    if int8.subgraphs > float32.subgraphs:
        found.append(f"it is cut into {int8.subgraphs} subgraphs instead of {float32.subgraphs}")
    if speed.float32_ms < SMALL_MS:
        found.append("the model is so small that calls take longer than arithmetic")
    if not flags & set(_PRODUCTS):
        found.append("this CPU has no 8-bit products (VNNI, dot product), for which int8 kernels are made")
    converting = sum(c for n, c in ({**int8.delegated, **int8.portable}).items() if "quantize_per_tensor" in n)
    if not found and converting:
        found.append(f"{converting} conversions between float and int8 and slower kernels outweigh the smaller type")
    return found or ["XNNPACK's int8 kernels of these operators are not faster here"]


def _flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return frozenset()
    lines = [line.partition(":")[2] for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return frozenset(lines[0].split()) if lines else frozenset()
