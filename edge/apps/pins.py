"""The exact versions that generated projects take; one place to raise them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Platform = Literal["android", "ios", "cpp", "python", "web"]
PLATFORMS: tuple[Platform, ...] = ("android", "ios", "cpp", "python", "web")


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A runtime on one platform: the package, its pinned version, and the oldest version with the API that is used.

    `programs` are the edgekit runtimes whose programs it runs; `newest_operators` the TensorFlow Lite version up to
    which it knows operators, empty where that does not apply.
    """

    package: str
    version: str
    minimum: str
    programs: tuple[str, ...]
    newest_operators: str = ""
    minimum_system: int = 0


_LITERT = ("litert",)
# `edgetpu` programs run on the CPU as plain int8 programs too; the compiled one needs the delegate and is not exported.
_TFLITE = ("litert", "edgetpu")
RUNTIMES: dict[tuple[str, str], Pin] = {
    ("android", "litert"): Pin(
        package="com.google.ai.edge.litert:litert",
        version="2.1.6",
        minimum="2.1.0",
        programs=_TFLITE,
        minimum_system=24,
    ),
    ("android", "tflite"): Pin(
        package="org.tensorflow:tensorflow-lite",
        version="2.17.0",
        minimum="2.5.0",
        programs=_TFLITE,
        newest_operators="2.17.0",
        minimum_system=21,
    ),
    ("android", "executorch"): Pin(
        package="org.pytorch:executorch-android",
        version="1.1.0",
        minimum="1.0.0",
        programs=("executorch",),
        minimum_system=23,
    ),
    ("android", "pytorch-mobile"): Pin(
        package="org.pytorch:pytorch_android_lite",
        version="2.1.0",
        minimum="1.13.0",
        programs=("torch_mobile",),
        minimum_system=21,
    ),
    ("ios", "litert"): Pin(package="LiteRT", version="2.2.0", minimum="2.2.0", programs=_TFLITE, minimum_system=15),
    ("ios", "tflite"): Pin(
        package="TensorFlowLiteSwift",
        version="2.17.0",
        minimum="2.5.0",
        programs=_TFLITE,
        newest_operators="2.17.0",
        minimum_system=15,
    ),
    ("ios", "executorch"): Pin(
        package="https://github.com/pytorch/executorch.git",
        version="1.4.1",
        minimum="1.1.0",
        programs=("executorch",),
        minimum_system=17,
    ),
    ("ios", "coreml"): Pin(
        package="CoreML", version="system", minimum="system", programs=("coreml",), minimum_system=15
    ),
    ("cpp", "litert"): Pin(package="libLiteRt.so", version="2.3.0", minimum="2.1.0", programs=_TFLITE),
    ("python", "litert"): Pin(package="ai-edge-litert", version="2.3.0", minimum="2.1.0", programs=_TFLITE),
    ("web", "litert"): Pin(package="@litertjs/core", version="2.5.3", minimum="2.5.3", programs=_LITERT),
}
GRADLE = "8.11.1"
ANDROID_GRADLE_PLUGIN = "8.9.1"
KOTLIN = "2.2.21"
COMPILE_SDK = 36


def runtimes(platform: str) -> tuple[str, ...]:
    """Return the runtimes of a platform, the preferred first."""
    return tuple(name for where, name in RUNTIMES if where == platform)
