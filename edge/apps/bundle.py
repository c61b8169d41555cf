"""An artifact made ready for a platform: its contract, program, golden vectors, and the names of the code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edge.apps import contract as contracts
from edge.apps import coreml_metadata, golden, naming, tasks, tflite_metadata
from edge.apps.contract import Contract, Golden, ModelFile, RuntimeNeed, TensorContract, Tolerance
from edge.apps.pins import RUNTIMES, Pin, Platform, runtimes
from edge.artifact import Artifact, Manifest, interprets
from edge.errors import ArtifactError, ConfigError, DataError
from edge.measure.parity import float_tolerance
from edge.postprocess import Postprocess
from edge.preprocess import describe
from edge.signature import Preprocess
from edge.stages.checking import read_golden

# How each edgekit runtime's version is called in a manifest's tools.
_TOOLS = {"litert": "ai-edge-litert", "tflite": "ai-edge-litert", "executorch": "executorch", "pytorch-mobile": "torch"}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the user chose; None where edgekit chooses."""

    platform: Platform
    runtime: str | None = None
    package: str | None = None
    name: str | None = None
    labels: Path | None = None
    postprocess: str = ""
    author: str | None = None
    licence: str | None = None
    metadata: bool = True


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """All that a platform's generator takes. `model` maps paths below the resource folder to bytes."""

    contract: Contract
    name: str
    package: str
    model: Mapping[str, bytes]
    golden: bytes

    @property
    def resources(self) -> dict[str, bytes]:
        """The files that every platform packs: program, contract and golden vectors."""
        return {
            **self.model,
            contracts.FILE: contracts.dumps(self.contract).encode(),
            self.contract.golden.file: self.golden,
        }


@interprets
def make(artifact: Artifact, options: ExportOptions) -> Bundle:
    """Return the bundle of an artifact; raise ArtifactError, ConfigError or DataError for what cannot be exported."""
    manifest = artifact.manifest
    name = naming.class_name(options.name, manifest.name)
    runtime, pin = choose_runtime(options.platform, options.runtime, manifest.runtime)
    inputs, outputs = contracts.tensors(manifest, "inputs"), contracts.tensors(manifest, "outputs")
    path = artifact.golden
    if path is None:
        raise ArtifactError(
            f"{artifact.path} has no golden vectors, without which an app cannot be checked.",
            hint="Build it again with --evaluation DATA.",
        )
    vectors = read_golden(path)
    reals = {t.name: golden.real(vectors["out"][t.name], t) for t in outputs if t.name in vectors["out"]}
    given = tasks.given_by(manifest.signature.postprocess, options.postprocess, outputs)
    post = tasks.resolve(tasks.task_of(manifest), given, inputs, outputs, reals)
    data = golden.pack(golden.entries(vectors, inputs, outputs, post))
    built = _model_files(artifact.program)
    labels = _labels(options.labels, manifest.signature.labels)
    if labels != manifest.signature.labels and any(t.carried == "dictionary" for t in outputs):
        raise ConfigError("A Core ML classifier has its labels in the package.", hint="Build it with the other labels.")
    model = (
        _with_metadata(built, options, manifest, _Ends(inputs, outputs, post), labels) if options.metadata else built
    )
    made = Contract(
        edgekit=manifest.edgekit,
        name=name,
        artifact=manifest.name,
        target=manifest.target,
        recipe=manifest.recipe_name,
        model=_model_record(model, built),
        runtime=_need(runtime, pin, manifest),
        inputs=inputs,
        outputs=outputs,
        postprocess=post,
        labels=labels,
        golden=Golden(
            file="golden.bin",
            sha256=hashlib.sha256(data).hexdigest(),
            vectors=len(next(iter(vectors["in"].values()))),
            images=len(golden.test_images(inputs)),
            tolerance=Tolerance(relative=float_tolerance(str(manifest.recipe.get("scheme", "float32")))),
        ),
        accuracy=manifest.metrics.accuracy,
        latency=contracts.latency_rows(manifest),
        tools=dict(manifest.tools),
        author=options.author,
        licence=options.licence,
    )
    package = naming.package_name(options.package, name)
    return Bundle(contract=made, name=name, package=package, model=model, golden=data)


def choose_runtime(platform: Platform, given: str | None, program: str) -> tuple[str, Pin]:
    """Return the runtime and its pin: the given one, else the first that runs the program; raise ConfigError."""
    names = runtimes(platform)
    if given is not None and given not in names:
        raise ConfigError(f"--runtime is {given!r}; accepted for {platform}: {', '.join(names)}.")
    for name in names if given is None else (given,):
        pin = RUNTIMES[platform, name]
        if program in pin.programs:
            return name, pin
    able = ", ".join(f"{p} ({r})" for (p, r), pin in RUNTIMES.items() if program in pin.programs)
    wanted = platform if given is None else f"{platform} with {given}"
    raise ConfigError(
        f"A program of runtime {program!r} cannot be exported for {wanted}; it can be for: {able or 'none'}.",
        hint="Build the model for a target with a runtime of that platform.",
    )


def _need(name: str, pin: Pin, manifest: Manifest) -> RuntimeNeed:
    tested = manifest.tools.get(_TOOLS.get(name, ""), "")
    package, minimum, version = pin.package, pin.minimum, pin.version
    backends: tuple[str, ...] = ()
    if pin.newest_operators:
        operators = manifest.details.get("operator_versions", {})
        minimum = max(minimum, contracts.needed_tflite(operators), key=contracts.version_key)
        if contracts.version_key(minimum) > contracts.version_key(pin.newest_operators):
            raise ConfigError(
                f"The model's operators need TensorFlow Lite {minimum}; {pin.package} ends at {pin.newest_operators}.",
                hint="Take --runtime litert.",
            )
    if name == "executorch":
        backends = _backends(pin, manifest)
        package = next((pin.backends[b] for b in backends if ":" in pin.backends[b] and b != "xnnpack"), pin.package)
        if tested:
            # A .pte file is promised to load in the ExecuTorch that wrote it and in later ones, not in earlier ones.
            written = tested.partition("+")[0]
            minimum = version = pin.published.get(written, written)
    return RuntimeNeed(name=name, package=package, version=version, minimum=minimum, tested=tested, backends=backends)


def _backends(pin: Pin, manifest: Manifest) -> tuple[str, ...]:
    """Return the delegates of a program of ExecuTorch; raise ConfigError for one that the platform does not have."""
    chain = map(str, manifest.details.get("delegates", ("xnnpack",)))
    found = tuple(name for name in chain if name != "portable")
    if lacking := [b for b in found if b not in pin.backends]:
        raise ConfigError(
            f"The program calls ExecuTorch's {', '.join(lacking)}; {pin.package} has {', '.join(pin.backends)}.",
            hint="Build it for a target of that platform.",
        )
    if sum(":" in pin.backends[b] and b != "xnnpack" for b in found) > 1:
        raise ConfigError(f"No package of ExecuTorch has {' and '.join(found)}.", hint="Build with one of them.")
    return found


def _labels(path: Path | None, found: tuple[str, ...]) -> tuple[str, ...]:
    if path is None:
        return found
    try:
        # Not splitlines: a label may hold one of the other characters that it takes for ends of lines.
        return tuple(path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a text of one label per line: {error}.") from error


def _model_files(program: Path) -> dict[str, bytes]:
    """Return the program's files; a Core ML package is a folder."""
    package = next((p for p in (program, *program.parents) if p.suffix == ".mlpackage"), None)
    if package is None:
        return {f"model{program.suffix}": program.read_bytes()}
    files = (p for p in sorted(package.rglob("*")) if p.is_file())
    return {f"model.mlpackage/{p.relative_to(package).as_posix()}": p.read_bytes() for p in files}


class _Ends(NamedTuple):
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    post: Postprocess


def _with_metadata(
    model: Mapping[str, bytes], options: ExportOptions, manifest: Manifest, ends: _Ends, labels: tuple[str, ...]
) -> Mapping[str, bytes]:
    """Return the files with metadata in them, where the platform's libraries or tools read any."""
    if options.platform not in ("android", "ios"):
        return model
    texts = {"author": options.author or "", "licence": options.licence or "", "version": ""}
    words = f"{manifest.name} for {manifest.target}, {manifest.recipe_name}; written by edgekit {manifest.edgekit}."
    if next(iter(model)).endswith(".tflite"):
        about = tflite_metadata.Described(name=manifest.name, description=words, labels=labels, **texts)
        return {file: tflite_metadata.embed(data, about, *ends) for file, data in model.items()}
    place = f"model.mlpackage/{coreml_metadata.MODEL}"
    if place not in model:
        return model
    described = coreml_metadata.Described(
        description=words,
        features={t.feature: describe(t.preprocess) for t in ends.inputs if t.feature and t.preprocess != Preprocess()},
        user=coreml_metadata.preview(
            ends.post,
            labels,
            classifier=any(t.carried == "dictionary" for t in ends.outputs),
            image=any(t.carried == "image" for t in ends.inputs),
        ),
        **texts,
    )
    return {**model, place: coreml_metadata.describe(model[place], described)}


def _model_record(model: Mapping[str, bytes], built: Mapping[str, bytes]) -> ModelFile:
    return ModelFile(
        file=next(iter(model)).split("/", 1)[0],
        sha256=_digest(model),
        bytes=sum(map(len, model.values())),
        built_sha256=_digest(built),
    )


def _digest(model: Mapping[str, bytes]) -> str:
    """Return a file's digest; a folder's is that of its listing: one line "digest path" per file, sorted by path."""
    first = next(iter(model))
    if "/" not in first:
        return hashlib.sha256(model[first]).hexdigest()
    listing = "".join(f"{hashlib.sha256(data).hexdigest()} {path}\n" for path, data in sorted(model.items()))
    return hashlib.sha256(listing.encode()).hexdigest()
