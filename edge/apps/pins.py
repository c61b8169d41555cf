"""The exact versions that generated projects take; one place to raise them.

`verified` says by what and when a version was seen to exist: a registry asked, its public page, a repository's tag, or
build files of others that take it. No Maven repository and no CocoaPods could be asked; see docs/apps.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Platform = Literal["android", "ios", "cpp", "python", "web"]
PLATFORMS: tuple[Platform, ...] = ("android", "ios", "cpp", "python", "web")


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A runtime on one platform: the package, its pinned version, and the oldest version with the API that is used.

    `programs` are the edgekit runtimes whose programs it runs; `newest_operators` the TensorFlow Lite version up to
    which it knows operators, empty where that does not apply. `backends` maps ExecuTorch's delegates to the package
    that has them. `published` maps versions that were not published there to the one that takes their programs.
    """

    package: str
    version: str
    minimum: str
    programs: tuple[str, ...]
    newest_operators: str = ""
    minimum_system: int = 0
    verified: str
    backends: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)


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
        verified="public Gradle files; tag v2.1.6 of google-ai-edge/LiteRT; 2026-11-21",
    ),
    ("android", "tflite"): Pin(
        package="org.tensorflow:tensorflow-lite",
        version="2.17.0",
        minimum="2.5.0",
        programs=_TFLITE,
        newest_operators="2.17.0",
        minimum_system=21,
        verified="public Gradle files; 2026-11-21",
    ),
    ("android", "executorch"): Pin(
        package="org.pytorch:executorch-android",
        version="1.5.1",
        minimum="1.0.0",
        programs=("executorch",),
        minimum_system=23,
        verified="public Gradle files, one with the archive's digest d67d39eb (Maven has no 1.5.0); 2026-11-21",
        backends={
            "xnnpack": "org.pytorch:executorch-android",
            "vulkan": "org.pytorch:executorch-android-vulkan",
            "qualcomm": "org.pytorch:executorch-android-qnn",
        },
        published={"1.5.0": "1.5.1"},
    ),
    ("android", "pytorch-mobile"): Pin(
        package="org.pytorch:pytorch_android_lite",
        version="2.1.0",
        minimum="1.13.0",
        programs=("torch_mobile",),
        minimum_system=21,
        verified="page of central.sonatype.com; 2026-11-21",
    ),
    ("ios", "litert"): Pin(
        package="LiteRT",
        version="2.2.0",
        minimum="2.2.0",
        programs=_TFLITE,
        minimum_system=15,
        verified="tag v2.2.0 of google-ai-edge/LiteRT; 2026-11-21",
    ),
    ("ios", "tflite"): Pin(
        package="TensorFlowLiteSwift",
        version="2.17.0",
        minimum="2.5.0",
        programs=_TFLITE,
        newest_operators="2.17.0",
        minimum_system=15,
        verified="a public Podfile.lock; 2026-08",
    ),
    ("ios", "executorch"): Pin(
        package="https://github.com/pytorch/executorch.git",
        version="1.5.0",
        minimum="1.1.0",
        programs=("executorch",),
        minimum_system=17,
        verified="others' pin of branch swiftpm-1.5.0 at 56cc93a96d5f, 2026-10-08; of one for 1.5.1 reports disagree",
        backends={"xnnpack": "backend_xnnpack", "coreml": "backend_coreml", "mps": "backend_mps"},
        # Nothing of the runtime and the format of programs changed between the tags v1.5.0 and v1.5.1 (same source).
        published={"1.5.1": "1.5.0"},
    ),
    ("ios", "coreml"): Pin(
        package="CoreML",
        version="system",
        minimum="system",
        programs=("coreml",),
        minimum_system=17,
        verified="part of the system",
    ),
    ("cpp", "litert"): Pin(
        package="libLiteRt.so",
        version="2.3.0",
        minimum="2.1.0",
        programs=_TFLITE,
        verified="PyPI, installed; 2026-11-21",
    ),
    ("python", "litert"): Pin(
        package="ai-edge-litert",
        version="2.3.0",
        minimum="2.1.0",
        programs=_TFLITE,
        verified="PyPI, installed; 2026-11-21",
    ),
    ("web", "litert"): Pin(
        package="@litertjs/core",
        version="2.5.3",
        minimum="2.5.3",
        programs=_LITERT,
        verified="npm registry asked; 2026-11-21",
    ),
}
# The Android Gradle plugin's release notes (8.13.2 takes Kotlin 2.3 and older, API 36, Gradle 8.13, JDK 17; Kotlin 2.2
# needs 8.10) and developer.android.com/build/kotlin-support; 2026-11-21.
GRADLE = "8.13"
ANDROID_GRADLE_PLUGIN = "8.13.2"
KOTLIN = "2.2.21"
COMPILE_SDK = 36
# developer.android.com's page of androidx.test (of 2026-10-15), its list of Compose BOMs, and public Gradle files.
ANDROIDX = {
    "JUNIT_VERSION": "4.13.2",
    "TEST_RUNNER_VERSION": "1.7.0",
    "TEST_JUNIT_VERSION": "1.3.0",
    "ACTIVITY_COMPOSE_VERSION": "1.9.3",
    "COMPOSE_BOM_VERSION": "2024.12.01",
}


def runtimes(platform: str) -> tuple[str, ...]:
    """Return the runtimes of a platform, the preferred first."""
    return tuple(name for where, name in RUNTIMES if where == platform)
