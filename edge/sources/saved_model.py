"""Source: TensorFlow SavedModel folders, of TensorFlow 2 and 1, with a chosen signature."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import ConfigError, SourceError
from edge.findings import Finding
from edge.sources import declared
from edge.sources.base import Declaration, LoadedSource
from edge.sources.sniff import sniff
from edge.sources.tf_model import Function, LoadedTensorFlow, first_line, import_tensorflow

_DEFAULT = "serving_default"


@dataclass(frozen=True)
class SavedModelSource:
    """SavedModel folders."""

    kind: str = "saved-model"
    packages: tuple[str, ...] = ("tensorflow",)

    def matches(self, location: str) -> bool:
        """Tell whether the location is a folder with `saved_model.pb`, or that file itself."""
        return sniff(location) == "saved-model"

    def load(self, location: str, declaration: Declaration) -> LoadedSource:
        """Open the model. Raises SourceError for damaged ones, ConfigError for a signature that must be chosen."""
        path = Path(location)
        folder = path if path.is_dir() else path.parent
        import_tensorflow()
        model, findings = _open(folder)
        key = _choose(tuple(model.signatures), declaration.signature, folder)
        # The signature's function holds the variables by weak reference: the model must stay.
        function = _function(model, model.signatures[key])
        digest = declared.file_digest(folder)
        return LoadedTensorFlow(function, declaration, digest=digest, findings=findings, kind="saved-model")


def _open(folder: Path) -> tuple[Any, tuple[Finding, ...]]:
    tf = import_tensorflow()
    with tempfile.TemporaryDirectory(prefix="edgekit-", ignore_cleanup_errors=True) as temporary:
        source, slots = _without_slots(folder, Path(temporary) / "model")
        try:
            model = tf.saved_model.load(str(source))
        except Exception as error:  # a foreign file leads to whatever it does
            raise SourceError(
                f"TensorFlow cannot load {folder}: {type(error).__name__}: {first_line(error)}",
                hint="The folder must hold saved_model.pb and variables/ of one export.",
            ) from error
    if not slots:
        return model, ()
    return model, (
        Finding(
            rule="OPTIMIZER_DROPPED",
            severity="info",
            message=f"{slots} slot variables of the optimizer were left out: TensorFlow cannot load them and no "
            "inference needs them.",
        ),
    )


def _without_slots(folder: Path, target: Path) -> tuple[Path, int]:
    """Return the folder, or a copy without the optimizer's slot variables where it has some, and their number.

    Keras 2 saved them as children of an object whose class Keras 3 does not have; loading then fails.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString((folder / "saved_model.pb").read_bytes())
    except Exception as error:  # protobuf's DecodeError has no public home
        raise SourceError(f"{folder / 'saved_model.pb'} is damaged: {error}.", hint="Copy the model again.") from error
    slots = 0
    for meta in proto.meta_graphs:
        for node in meta.object_graph_def.nodes:
            slots += len(node.slot_variables)
            del node.slot_variables[:]
    if not slots:
        return folder, 0
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("saved_model.pb"))
    (target / "saved_model.pb").write_bytes(proto.SerializeToString())
    return target, slots


def _choose(keys: tuple[str, ...], wanted: str, folder: Path) -> str:
    if not keys:
        raise SourceError(
            f"{folder} has no signature.",
            hint="Save it with signatures=..., such as tf.saved_model.save(model, path, signatures=model.call...).",
        )
    if wanted and wanted not in keys:
        raise ConfigError(f"{folder} has no signature {wanted!r}; it has {', '.join(keys)}.")
    if wanted or len(keys) == 1:
        return wanted or keys[0]
    if _DEFAULT in keys:
        return _DEFAULT
    raise ConfigError(f"{folder} has the signatures {', '.join(keys)}.", hint="Choose one: --signature NAME.")


def _function(model: Any, concrete: Any) -> Function:
    _, arguments = concrete.structured_input_signature
    order = [t.name.partition(":")[0] for t in concrete.inputs]
    names = sorted(arguments, key=lambda n: _position(order, n, arguments[n]))

    def call(inputs: Mapping[str, Any], _keep: Any = model) -> Mapping[str, Any]:
        results: Mapping[str, Any] = concrete(**inputs)
        return {key: results[key] for key in sorted(results)}

    return Function(
        call=call,
        inputs=tuple((n, _shape(arguments[n], n), arguments[n].dtype.name) for n in names),
        keep=(model, *getattr(concrete, "variables", ())),
    )


def _position(order: list[str], name: str, spec: Any) -> int:
    found = [i for i, o in enumerate(order) if o in (name, spec.name)]
    return found[0] if found else len(order)


def _shape(spec: Any, name: str) -> tuple[int | None, ...]:
    if spec.shape.rank is None:
        raise ConfigError(
            f"The input {name!r} has no rank in the SavedModel.", hint="Export it with a TensorSpec that has a shape."
        )
    return tuple(spec.shape)
