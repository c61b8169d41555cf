"""`--platform android`: a Gradle library module in Kotlin with its device test, and a sample app."""

from __future__ import annotations

from edge.apps import naming, pins
from edge.apps.bundle import Bundle
from edge.apps.contract import TensorContract
from edge.apps.literals import Syntax, double, post_values, rows_of, tensor
from edge.apps.readme import values_of
from edge.apps.render import render, template
from edge.errors import ConfigError

SYNTAX = Syntax(
    text=naming.kotlin,
    enum=lambda kind, name: f"{kind}.{name.upper()}",
    ints=lambda values: f"intArrayOf({', '.join(map(str, values))})",
    floats=lambda values: f"floatArrayOf({', '.join(f'{v}f' for v in values)})",
    single=lambda text: f"{text}f",
    double=lambda text: text,
    boolean=lambda value: str(value).lower(),
    row=lambda cells: "        TensorSpec(" + ", ".join(f"{k} = {v}" for k, v in cells) + "),",
)
# One class file holds 65,535 constants; objects of this many labels stay far below.
_LABELS_PER_OBJECT = 1000
_NUMBERS_PER_OBJECT = 2000
_REFUSED = {
    "litert": ("int16",),
    "executorch": ("int16", "bool"),
    "pytorch-mobile": ("int16", "bool"),
    "tflite": (),
}
RESULTS = {
    "classification": "List<Classification>",
    "detection": "List<Detection>",
    "segmentation": "Mask",
    "embedding": "FloatArray",
    "raw": "List<FloatArray>",
}
_SHOWN = {
    "classification": 'result.joinToString("\\n") { "${it.index} ${it.label} ${it.score}" }',
    "detection": 'result.joinToString("\\n") { "${it.index} ${it.label} ${it.score}" }',
    "segmentation": '"classes: " + result.classes.toSet().sorted()',
    "embedding": "result.take(8)",
    "raw": 'result.joinToString("\\n") { it.take(8).toString() }',
}


def files(bundle: Bundle) -> dict[str, bytes]:
    """Return the project's files by path; raise ConfigError for dtypes that the runtime's API lacks."""
    _check_dtypes(bundle)
    values = _values(bundle)
    module = naming.snake(bundle.name)
    folder = bundle.package.replace(".", "/")
    main, test = f"{module}/src/main", f"{module}/src/androidTest"
    plan = {
        "settings.gradle.kts": "settings.gradle.kts",
        "build.gradle.kts": "build.gradle.kts",
        "gradle.properties": "gradle.properties",
        "gradle/libs.versions.toml": "libs.versions.toml",
        "gradle/wrapper/gradle-wrapper.properties": "gradle-wrapper.properties",
        "README.md": "README.md",
        f"{module}/build.gradle.kts": "module.gradle.kts",
        f"{module}/consumer-rules.pro": "consumer-rules.pro",
        f"{main}/AndroidManifest.xml": "AndroidManifest.xml",
        **{f"{main}/kotlin/{folder}/{name}": name for name in ("PrePost.kt", "Contract.kt", "Engine.kt")},
        f"{main}/kotlin/{folder}/{bundle.name}.kt": "Model.kt",
        **{f"{test}/kotlin/{folder}/{name}": name for name in ("GoldenCheck.kt", "GoldenTest.kt")},
        "sample/build.gradle.kts": "sample.gradle.kts",
        "sample/src/main/AndroidManifest.xml": "SampleManifest.xml",
        f"sample/src/main/kotlin/{folder}/sample/MainActivity.kt": "MainActivity.kt",
    }
    made = {path: render(template(f"android/{source}"), values).encode() for path, source in plan.items()}
    for name, data in bundle.resources.items():
        golden = name == bundle.contract.golden.file
        made[f"{test if golden else main}/assets/{name}"] = data
    return made


def _check_dtypes(bundle: Bundle) -> None:
    contract = bundle.contract
    runtime = contract.runtime.name
    refused = _REFUSED[runtime]
    for spec in (*contract.inputs, *contract.outputs):
        if spec.dtype in refused:
            raise ConfigError(
                f"The tensor {spec.name[:60]!r} is {spec.dtype}, which the Android API of {runtime} cannot pass.",
                hint="Build it with --io float32, or take --runtime tflite.",
            )


def _values(bundle: Bundle) -> dict[str, str | bool]:
    contract = bundle.contract
    runtime, tolerance, post = contract.runtime.name, contract.golden.tolerance, contract.postprocess
    pin = pins.RUNTIMES["android", runtime]
    return {
        **values_of(bundle),
        **post_values(post),
        **_labels(contract.labels),
        **_anchors(post.anchors),
        **_parameters(contract.inputs),
        "POST_ACTIVATION_UPPER": post.activation.upper(),
        "POST_ATTRIBUTE_AXIS": "2" if post.transposed else "1",
        "TOGETHER": post.boxes == post.scores,
        "LITERT": runtime == "litert",
        "TFLITE": runtime == "tflite",
        "EXECUTORCH": runtime == "executorch",
        "PYTORCH_MOBILE": runtime == "pytorch-mobile",
        "TORCH": runtime in ("executorch", "pytorch-mobile"),
        "NEEDS_FILE": runtime in ("executorch", "pytorch-mobile"),
        "INPUTS": "\n".join(tensor(t, SYNTAX) for t in contract.inputs),
        "OUTPUTS": "\n".join(tensor(t, SYNTAX) for t in contract.outputs),
        "GOLDEN_VECTORS": str(contract.golden.vectors),
        "TOLERANCE_STEPS": str(tolerance.steps),
        "TOLERANCE_SHARE": double(tolerance.share),
        "TOLERANCE_RELATIVE": double(tolerance.relative),
        "TOLERANCE_RESULT": double(tolerance.result),
        "RESULT": RESULTS[post.kind],
        "SHOWN": _SHOWN[post.kind],
        "MIN_SDK": str(pin.minimum_system),
        "COMPILE_SDK": str(pins.COMPILE_SDK),
        "AGP_VERSION": pins.ANDROID_GRADLE_PLUGIN,
        "KOTLIN_VERSION": pins.KOTLIN,
        "GRADLE_VERSION": pins.GRADLE,
        **pins.ANDROIDX,
    }


def _parameters(inputs: tuple[TensorContract, ...]) -> dict[str, str]:
    def kind(t: TensorContract, image: str) -> str:
        return image if t.image else "FloatArray"

    return {
        "PARAMETERS": ", ".join(f"{t.identifier}: {kind(t, 'Pixels')}" for t in inputs),
        "ENCODED": ", ".join(f"Tensors.encode({t.identifier}, Contract.inputs[{i}])" for i, t in enumerate(inputs)),
        "BITMAP_PARAMETERS": ", ".join(f"{t.identifier}: {kind(t, 'Bitmap')}" for t in inputs),
        "BITMAP_ARGUMENTS": ", ".join(f"pixels({t.identifier})" if t.image else t.identifier for t in inputs),
        "EXAMPLE": ", ".join("bitmap" if t.image else t.identifier for t in inputs),
    }


def _labels(labels: tuple[str, ...]) -> dict[str, str]:
    """Return the labels in objects of their own, so that no class file grows too large."""
    starts = range(0, len(labels), _LABELS_PER_OBJECT)
    objects = []
    for number, start in enumerate(starts):
        texts = "\n".join(f"        {naming.kotlin(label)}," for label in labels[start : start + _LABELS_PER_OBJECT])
        objects.append(
            f"\nprivate object Labels{number} {{\n    val texts: List<String> = listOf(\n{texts}\n    )\n}}\n"
        )
    parts = [f"        Labels{number}.texts," for number in range(len(starts))] or ["        emptyList<String>(),"]
    return {"LABEL_PARTS": "\n".join(parts), "LABEL_OBJECTS": "".join(objects)}


def _anchors(values: tuple[float, ...]) -> dict[str, str]:
    """Return the anchors in objects of their own: a method's code holds 65,535 bytes, too few for one array."""
    starts = range(0, len(values), _NUMBERS_PER_OBJECT)
    objects = []
    for number, start in enumerate(starts):
        lines = rows_of(values[start : start + _NUMBERS_PER_OBJECT], "f")
        objects.append(
            f"\nprivate object Anchors{number} {{\n    val values: FloatArray = floatArrayOf(\n{lines}\n    )\n}}\n"
        )
    return {
        "ANCHOR_PARTS": "\n".join(f"        Anchors{number}.values," for number in range(len(starts))),
        "ANCHOR_OBJECTS": "".join(objects),
    }
