"""Write the pools of a JAX function over images [n, height, width, channels], the one form that converters know.

Equinox pools [channels, height, width], other code 1-D series. A pool over one or two dimensions is the same over a
4-D tensor whose channels are the last of the other dimensions; the values stay what they are. A sum over windows that
reach into padding is a depthwise convolution with ones: converters know no such mean.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

POOLS = ("reduce_window_max", "reduce_window_sum")
# Calls of functions that stand in the program as they are: their parameter with the inner program.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def over_images(function: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Return the function, which returns a list of arrays, with its pools over 4-D tensors, channels last."""
    import jax

    def call(*given: Any) -> list[Any]:
        closed = jax.make_jaxpr(function)(*given)
        if not any(map(_is_other, equations(closed.jaxpr))):
            return function(*given)
        return _evaluate(closed.jaxpr, closed.consts, given)

    return call


def _inner(equation: Any) -> Any:
    """Return the closed program that an equation calls, None where it is an operator of its own."""
    found = equation.params.get(_CALLS.get(equation.primitive.name, ""))
    return found if hasattr(found, "consts") else None


def equations(program: Any) -> Iterator[Any]:
    """Yield the operators of a program, those of what it calls in their place."""
    for equation in program.eqns:
        inner = _inner(equation)
        if inner is None:
            yield equation
        else:
            yield from equations(inner.jaxpr)


def _evaluate(program: Any, constants: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    values = dict(zip((*program.constvars, *program.invars), (*constants, *given), strict=True))

    def read(place: Any) -> Any:
        return place.val if hasattr(place, "val") else values[place]

    for equation in program.eqns:
        values.update(zip(equation.outvars, _results(equation, [read(v) for v in equation.invars]), strict=True))
    return [read(v) for v in program.outvars]


def _results(equation: Any, given: list[Any]) -> list[Any]:
    with _named(equation):
        if (inner := _inner(equation)) is not None:
            return _evaluate(inner.jaxpr, inner.consts, given)
        if _is_other(equation):
            return [_pooled(equation, given[0])]
        found = equation.primitive.get_bind_params(equation.params)
        functions, options = found if isinstance(found, tuple) else ((), found)  # a pair before JAX 0.10
        results = equation.primitive.bind(*functions, *given, **options)
    return list(results) if equation.primitive.multiple_results else [results]


def _named(equation: Any) -> Any:
    """Return a context in which operators get the names that they had."""
    import jax

    name = str(equation.source_info.name_stack)
    return jax.named_scope(name) if name else contextlib.nullcontext()


def _windowed(options: dict[str, Any]) -> list[int]:
    """Return the dimensions that a pool is over."""
    sizes, strides, pads = (options[k] for k in ("window_dimensions", "window_strides", "padding"))
    return [i for i, n in enumerate(sizes) if n != 1 or strides[i] != 1 or tuple(pads[i]) != (0, 0)]


def _is_other(equation: Any) -> bool:
    """Tell whether an equation is a pool over one or two dimensions in a form that converters do not know."""
    if equation.primitive.name not in POOLS or set(equation.params["base_dilation"]) != {1}:
        return False
    over, rank = _windowed(equation.params), len(equation.params["window_dimensions"])
    return 1 <= len(over) <= 2 and (rank != 4 or not set(over) <= {1, 2} or _is_padded_sum(equation))


def _is_padded_sum(equation: Any) -> bool:
    padded = any(tuple(p) != (0, 0) for p in equation.params["padding"])
    return padded and equation.primitive.name == "reduce_window_sum" and equation.outvars[0].aval.dtype.kind == "f"


def _pooled(equation: Any, x: Any) -> Any:
    import jax.numpy as jnp

    over = _windowed(equation.params)
    others = [i for i in range(x.ndim) if i not in over]
    order = [*others[:-1], *over, *others[-1:]]
    turned = jnp.transpose(x, order)
    blank = [1] * (2 - len(over))
    sizes = [math.prod(x.shape[i] for i in others[:-1]), *(x.shape[i] for i in over), *blank]
    image = turned.reshape((*sizes, x.shape[others[-1]] if others else 1))
    options = {name: _four(equation.params[name], over, fill) for name, fill in _FILLS.items()}
    if _is_padded_sum(equation):
        y = _summed(image, options)
    else:
        y = equation.primitive.bind(image, **{**equation.params, **options})
    shape = equation.outvars[0].aval.shape
    back = sorted(range(x.ndim), key=order.__getitem__)
    return jnp.transpose(y.reshape([shape[i] for i in order]), back)


def _summed(image: Any, options: dict[str, tuple[Any, ...]]) -> Any:
    import jax
    import jax.numpy as jnp

    channels = image.shape[3]
    inner = {name: values[1:3] for name, values in options.items()}
    return jax.lax.conv_general_dilated(
        image,
        jnp.ones((*inner["window_dimensions"], 1, channels), image.dtype),
        inner["window_strides"],
        inner["padding"],
        rhs_dilation=inner["window_dilation"],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


_FILLS: dict[str, Any] = {
    "window_dimensions": 1,
    "window_strides": 1,
    "padding": (0, 0),
    "base_dilation": 1,
    "window_dilation": 1,
}


def _four(values: Sequence[Any], over: Sequence[int], fill: Any) -> tuple[Any, ...]:
    return (fill, *(values[i] for i in over), *[fill] * (2 - len(over)), fill)
