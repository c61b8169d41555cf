"""Source: JAX functions (Flax and Equinox modules among them) that `file.py:factory` returns with example inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ConfigError, MissingPackageError, SourceError
from edge.sources import declared, jax_pools
from edge.sources.base import Declaration, InputDeclaration
from edge.sources.factory import place
from edge.sources.tf_model import Function, LoadedTensorFlow, first_line, import_tensorflow
from edge.sources.transposes import remove_transposes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

ACCEPTED = (
    "(function, example) where the function may be a module of Flax NNX or Equinox, or a pair (module, variables) of "
    "Flax Linen, and the example is an array, a tuple of arrays, or a dict of them by argument name"
)

_NARROW = {"float64": "float32", "int64": "int32", "uint64": "uint32"}


class LoadedJax(LoadedTensorFlow):
    """A JAX function: reference outputs by JAX itself, a program through jax2tf."""

    def __init__(
        self, function: Function, reference: Callable[..., list[Any]], declaration: Declaration, *, digest: str
    ) -> None:
        self._jax = reference
        super().__init__(function, declaration, digest=digest, findings=(), kind="jax")

    def _tidy(self, model: Any) -> None:
        remove_transposes(model)  # code of other habits than TensorFlow's has channels first

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by signature name, computed by JAX. Raises SourceError where the function fails."""
        given = [np.asarray(inputs[t.name]).astype(t.dtype, copy=False) for t in self._inputs]
        try:
            results = self._jax(*given)
        except Exception as error:  # the user's code runs here
            raise SourceError(f"{place(error) or 'The function'}: JAX cannot run it: {first_line(error)}") from error
        return {t.name: np.asarray(v) for t, v in zip(self.signature.outputs, results, strict=True)}


def as_function(made: Any) -> Any:
    """Return a callable of what a factory gives for a function: modules are set to inference, variables bound.

    None for what cannot be called.
    """
    if isinstance(made, (tuple, list)) and len(made) == 2 and _is_module(made[0], "flax.linen"):
        return made[0].bind(made[1])
    if _is_module(made, "flax.nnx"):
        made.eval()
    elif _is_module(made, "equinox"):
        import equinox

        return equinox.nn.inference_mode(made)
    return made if callable(made) else None


def _is_module(made: Any, package: str) -> bool:
    return any(f"{c.__module__}.".startswith(f"{package}.") and c.__name__ == "Module" for c in type(made).__mro__)


def load(path: Path, function: Any, example: Any, declaration: Declaration) -> LoadedJax:
    """Return a JAX function with fixed inputs. Raises SourceError with the user's line where it fails."""
    jax, jax2tf = _import()
    named = isinstance(example, Mapping)
    values = dict(example) if named else _positional(function, example)
    arrays = {n: _array(n, v) for n, v in values.items()}
    arrays = _declared(arrays, declaration)

    def flat(*given: Any) -> list[Any]:
        results = function(**dict(zip(arrays, given, strict=True))) if named else function(*given)
        leaves = jax.tree_util.tree_flatten_with_path(results)[0]
        flat.keys = tuple(_key(path) for path, _ in leaves)  # type: ignore[attr-defined]
        return [leaf for _, leaf in leaves]

    try:
        jax.eval_shape(flat, *arrays.values())
    except Exception as error:  # the user's code runs here
        shapes = ", ".join(f"{n}{list(a.shape)}" for n, a in arrays.items())
        raise SourceError(
            f"{place(error) or 'The function'}: calling it with {shapes} raised {type(error).__name__}: "
            f"{first_line(error)}",
            hint=f"Return from the factory {ACCEPTED}.",
        ) from error
    converted = jax2tf.convert(jax_pools.over_images(flat))

    def call(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        results = converted(*[inputs[n] for n in arrays])
        return dict(zip(flat.keys, results, strict=True))  # type: ignore[attr-defined]

    return LoadedJax(
        Function(
            call=call,
            inputs=tuple((n, tuple(a.shape), a.dtype.name) for n, a in arrays.items()),
            packages=("jax", "jaxlib"),
        ),
        jax.jit(flat),
        declaration,
        digest=_digest(path, flat, arrays),
    )


def _import() -> tuple[Any, Any]:
    try:
        import jax
        from jax.experimental import jax2tf

        import_tensorflow()  # jax2tf needs it
    except ImportError as error:
        raise MissingPackageError(
            "Converting a JAX function needs the packages jax and tensorflow, and one cannot be imported.",
            hint="pip install 'edgekit[jax]'",
        ) from error
    return jax, jax2tf


def _positional(function: Any, example: Any) -> dict[str, Any]:
    import inspect

    values = list(example) if isinstance(example, (tuple, list)) else [example]
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return {(names[i] if i < len(names) else f"args_{i}"): v for i, v in enumerate(values)}


def _array(name: str, value: Any) -> Array:
    import jax

    try:
        array = np.asarray(jax.numpy.asarray(value))
    except (TypeError, ValueError) as error:
        raise SourceError(
            f"The example of {name!r} is no array but {type(value).__name__}.", hint=f"Return {ACCEPTED}."
        ) from error
    # JAX's own dtypes have 32 bits, but packages such as litert-torch switch 64 on for the whole process.
    return array.astype(_NARROW.get(str(array.dtype), array.dtype))


def _declared(arrays: dict[str, Array], declaration: Declaration) -> dict[str, Array]:
    wishes = declared.inputs_of(declaration, list(arrays))
    return {n: _shaped(n, a, w) for (n, a), w in zip(arrays.items(), wishes, strict=True)}


def _shaped(name: str, array: Array, wish: InputDeclaration) -> Array:
    if wish.shape is None or tuple(wish.shape) == array.shape:
        return array
    if len(wish.shape) != array.ndim:
        raise ConfigError(f"The input {name!r} is declared as {list(wish.shape)}; the example has {list(array.shape)}.")
    return np.zeros(wish.shape, array.dtype)


def _key(path: Any) -> str:
    keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    if not keys:
        return "output_0"
    return "_".join(keys) if not keys[0].isdigit() else "_".join([f"output_{keys[0]}", *keys[1:]])


def _digest(path: Path, flat: Callable[..., Any], arrays: Mapping[str, Array]) -> str:
    """Return the sha256 over the file and the traced function with its weights."""
    import hashlib

    import jax

    closed = jax.make_jaxpr(flat)(*arrays.values())
    total = hashlib.sha256(path.read_bytes())
    total.update(str(closed.jaxpr).encode())
    for constant in closed.consts:
        total.update(np.ascontiguousarray(np.asarray(constant)).tobytes())
    return total.hexdigest()
