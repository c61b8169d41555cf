"""The ExecuTorch runtime: quantize, lower, inspect and run `.pte` programs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.calibration import recipe as recipes
from edge.calibration.recipe import Recipe
from edge.errors import ConfigError, MissingPackageError, QuantizationError
from edge.findings import Finding
from edge.isolate import Progress
from edge.signature import Signature
from edge.targets.base import Carrier, Inspection, Model, Program, Session, Target
from edge.targets.executorch import carrier, delegates, faster, inspect, lower, program, session, vectors, work
from edge.targets.executorch import quantize as quantizing
from edge.targets.executorch.quantize import Quantized

if TYPE_CHECKING:
    from edge.calibration.data import Dataset
    from edge.targets.executorch.delegates import Delegate

_FILE = "model.pte"
_OPTIONS = "executorch"


class ExecuTorch:
    """`edge.targets.base.Runtime` for ExecuTorch: float ExportedProgram in, lowered program out.

    `target.options["executorch"]` has `delegates` (names in order), `min_delegated` (0 to 1), and a table per delegate.
    """

    name = "executorch"
    carrier: Carrier = "exported"
    suffix = ".pte"
    recipes: tuple[str, ...] = ("float32", "float16", "dynamic", "dynamic-4", "weight-only", "int8")
    kernel_sets: tuple[str, ...] = session.KERNEL_SETS

    def recipes_for(self, target: Target) -> tuple[str, ...]:
        """Return the kinds of recipes that a target's first delegate takes. Raises ConfigError for its options."""
        return delegates.leading(_options(target)).recipes

    def build(
        self, model: Model, recipe: Recipe, target: Target, samples: Dataset | None, workdir: Path, progress: Progress
    ) -> Program:
        """Write the program below `workdir`, and the last form that this host runs where it cannot run the program.

        Raises QuantizationError where the recipe cannot be applied, ConversionError where lowering fails, DataError for
        calibration data that cannot be used, ConfigError and MissingPackageError for delegates.
        """
        if model.carrier != self.carrier:
            raise QuantizationError(f"ExecuTorch builds from the exported carrier, not from {model.carrier}.")
        _need_executorch()
        options = _options(target)
        chain = delegates.chosen(options)
        exported, _ = carrier.load(model.path)
        carrier.renamed(carrier.unnamed(exported), model.signature)
        exported = quantizing.folded(exported, model.signature)
        own = options.get(chain[0].name, {})
        made = quantizing.quantize(exported, model.signature, recipe, chain[0], own, samples, progress)
        progress(f"lowering for {', '.join(d.name for d in chain)}", None)
        beside = methods_beside(model.path)
        programs = {"forward": made.program, **beside}
        lowered = lower.lower(programs, chain, options, recipe, carrier.contract_text(made.signature))
        path = workdir / _FILE
        path.write_bytes(lowered.program)
        done = _program(path, made, lowered, chain, recipe, options)
        if done.details["not_run"]:
            return done
        if recipe.scheme == "int8" and options.get("compare_float", True):
            progress("timing int8 against float32", None)
            done = _compared(done, exported, made, lowered, lower_float=lambda p: _lowered_float(p, chain, options))
        progress("running each method and size", None)
        graphs = {"forward": (made.program, made.signature)}
        return _observed(done, graphs | {n: (p, carrier.unnamed(p)) for n, p in beside.items()})

    def inspect(self, path: Path, target: Target | None, options: Mapping[str, Any]) -> Inspection:
        """Read the program's instructions, memory and needs.

        For a target with a roofline the details hold `latency_ms` (predicted), or `latency_note` where there is none.
        """
        found = inspect.inspect_program(path, options)
        return replace(found, details={**found.details, **work.predicted_latency(path, target)})

    def open(self, path: Path, *, kernels: str, threads: int) -> Session:
        """Load the program. Raises SourceError for a damaged file, UsageError for an unknown kernel set."""
        return session.open_program(path, kernels=kernels, threads=threads)

    def open_carrier(self, path: Path) -> Session:
        """Run the float carrier in torch. Raises SourceError."""
        return carrier.ExportedSession(*carrier.load(path))


def _need_executorch() -> None:
    try:
        import executorch.exir  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"Building a .pte needs the package executorch, which cannot be imported: {error}.",
            hint="pip install 'edgekit[executorch]'",
        ) from error


def _options(target: Target) -> Mapping[str, Any]:
    options = target.options.get(_OPTIONS, {})
    least = options.get("min_delegated")
    if least is not None and not (isinstance(least, (int, float)) and 0 <= least <= 1):
        raise ConfigError(f"options.executorch.min_delegated is {least!r}; accepted: a share from 0 to 1.")
    return dict(options)


def methods_beside(path: Path) -> dict[str, Any]:
    """Return further methods of a carrier: `carrier.encode.pt2` beside `carrier.pt2` is the method `encode`."""
    others = sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))
    return {
        other.name.removeprefix(f"{path.stem}.").removesuffix(path.suffix): carrier.load(other)[0] for other in others
    }


def _program(
    path: Path,
    made: Quantized,
    lowered: lower.Lowered,
    chain: tuple[Delegate, ...],
    recipe: Recipe,
    options: Mapping[str, Any],
) -> Program:
    view = program.read(path)
    found = lower.total(lowered.delegations)
    names = ", ".join(d.name for d in chain)
    findings = [*made.findings, *inspect.delegation_findings(found, names, options.get("min_delegated"))]
    lacking = session.absent(view.backends, view.operators)
    extra: tuple[Path, ...] = ()
    if lacking:
        extra = (path.with_name(session.EMULATED_FILE),)
        carrier.save(made.program, made.signature, extra[0])
        findings.append(session.not_run_finding(lacking))
    findings += _notes(recipe, chain, len(lowered.delegations))
    return Program(
        path=path,
        signature=made.signature,
        recipe=recipe,
        quantizer="none" if recipe.scheme in ("float32", "float16") else "torchao pt2e",
        tools=_tools(chain),
        extra_files=extra,
        findings=tuple(findings),
        details={
            "delegates": [d.name for d in chain],
            "delegation": inspect.delegation_details(found),
            "requires": inspect.requires(view),
            "not_run": list(lacking),
            "calibration_samples": made.ranges.samples if made.ranges else 0,
            "dynamic": _dynamic(made),
            **made.details,
        },
    )


def _lowered_float(exported: Any, chain: tuple[Delegate, ...], options: Mapping[str, Any]) -> lower.Lowered:
    plain = quantizing.floated(exported)
    return lower.lower({"forward": plain}, chain, options, recipes.named("float32"), "")


def _compared(
    done: Program,
    exported: Any,
    made: Quantized,
    lowered: lower.Lowered,
    *,
    lower_float: Callable[[Any], lower.Lowered],
) -> Program:
    """Add how fast the int8 program is next to the float32 one, which is lowered for that only."""
    plain = lower_float(exported)
    signature = carrier.renamed(carrier.unnamed(exported), done.signature)
    shapes = vectors.example_sizes(exported, signature)
    ends = (made.signature, signature)
    speed = faster.measure(
        (lowered.program, made.signature),
        (plain.program, signature),
        [vectors.drawn(s, shapes, 0) for s in ends],
    )
    found = faster.finding(speed, lowered.delegations["forward"], plain.delegations["forward"])
    return replace(done, findings=(*done.findings, *found), details={**done.details, "against_float32": speed.record()})


def _observed(done: Program, graphs: Mapping[str, tuple[Any, Signature]]) -> Program:
    """Add what came of running a program at several sizes and by each method, and the runs themselves as a file."""
    runs, refused = vectors.observe(done.path, graphs)
    differing = vectors.differing(runs, done.recipe.scheme)
    if not runs:
        return replace(done, findings=(*done.findings, *refused))
    beside = done.path.with_name(vectors.FILE)
    vectors.write(runs, beside)
    return replace(
        done,
        findings=(*done.findings, *refused, *differing),
        extra_files=(*done.extra_files, beside),
        details={**done.details, "runs": [run.record() for run in runs]},
    )


def _dynamic(made: Quantized) -> list[dict[str, Any]]:
    """Return the open dimensions of the inputs with the bounds that memory is planned for."""
    found, limits = [], carrier.limits(made.program)
    for spec, value in zip(made.signature.inputs, carrier.user_inputs(made.program), strict=True):
        for axis in (k for k, d in enumerate(spec.shape) if d == -1):
            least, most = carrier.span_of(value.shape[axis], limits)
            found.append({"input": spec.name, "axis": axis, "least": least, "most": most})
    return found


def _notes(recipe: Recipe, chain: tuple[Delegate, ...], methods: int) -> list[Finding]:
    made = []
    if recipe.scheme == "float16" and chain[0].half:
        made.append(
            Finding(
                rule="HALF_WEIGHTS_KEPT_FLOAT",
                severity="info",
                message="XNNPACK computes in float16, but keeps convolution weights as float32 in the file.",
                fix="Use int8 or dynamic for a smaller file.",
            )
        )
    if methods > 1 and recipe.scheme not in ("float32",):
        made.append(
            Finding(
                rule="METHODS_KEPT_FLOAT",
                severity="info",
                message=f"The recipe {recipe.name} quantizes the method forward; {methods - 1} other(s) stay float.",
            )
        )
    return made


def _tools(chain: tuple[Delegate, ...]) -> dict[str, str]:
    packages = ["executorch", "torch", "torchao"]
    packages += ["coremltools"] if any(d.name == "coreml" for d in chain) else []
    packages += ["ethos-u-vela"] if any(d.name == "ethos-u" for d in chain) else []
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
