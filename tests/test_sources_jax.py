"""Modules of Flax and Equinox, and pools in the forms that JAX code has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import SourceError
from edge.sources import jax_pools, registry
from edge.sources.verify import verify_carrier
from edge.targets.litert import flatbuffer as fb

jax: Any = pytest.importorskip("jax")
pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]


def built(folder: Path, text: str, name: str) -> list[str]:
    """Convert what a factory of this text returns, verify it on random inputs, and return the operators."""
    (folder / "net.py").write_text(text)
    loaded = registry.load(f"{folder / 'net.py'}:{name}")
    carrier = folder / f"{name}.tflite"
    loaded.to_litert(carrier)
    random = np.random.default_rng(0)
    samples = [{t.name: random.random(t.shape).astype(t.dtype) for t in loaded.signature.inputs} for _ in "ab"]
    assert verify_carrier(loaded, carrier, samples) == ()
    return [op.name for op in fb.graph(fb.load(carrier)).ops]


def pool(kind: str, sizes: tuple[int, ...], padding: str, x: Any) -> Any:
    """Pool with strides of two where a window is larger than one."""
    start, operator = (-np.inf, jax.lax.max) if kind == "max" else (0.0, jax.lax.add)
    strides = tuple(2 if n > 1 else 1 for n in sizes)
    return jax.lax.reduce_window(x, start, operator, sizes, strides, padding)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("kind", ["max", "sum"])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((2, 3, 8, 7), (1, 1, 2, 3)),
        ((3, 8, 7), (1, 3, 2)),
        ((2, 3, 9), (1, 1, 3)),
        ((2, 9, 3), (1, 3, 1)),
        ((9,), (3,)),
        ((2, 3, 2, 8, 8), (1, 1, 1, 2, 2)),
        ((2, 8, 7, 3), (1, 2, 3, 1)),
    ],
)
def test_pools_over_images_give_the_same(shape: Any, sizes: Any, kind: str, padding: str) -> None:
    """A pool of any rank and order has the same values as one of images, under jit and behind relu too."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    network = jax.jit(lambda x: [jax.nn.relu(pool(kind, sizes, padding, x * 2)), x[:1]])
    turned = jax_pools.over_images(network)
    for wanted, found in zip(network(x), turned(x), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    pools = [e for e in jax_pools.equations(jax.make_jaxpr(turned)(x).jaxpr) if e.primitive.name in jax_pools.POOLS]
    assert all(len(e.params["window_dimensions"]) == 4 for e in pools)
    assert kind == "max" or not any(np.any(e.params["padding"]) for e in pools)


_POOLED = """
import jax, numpy as np

def make():
    w = np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(np.float32)
    def apply(image):
        y = jax.lax.conv_general_dilated(image, w, (1, 1), "SAME")
        y = jax.lax.reduce_window(y, -np.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        return jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 1, 3, 3), (1, 1, 1, 1), "SAME").mean((2, 3)) / 9
    return apply, np.zeros((1, 2, 8, 8), np.float32)
"""


def test_channel_first_pools_are_builtin_operators(tmp_path: Path) -> None:
    """Pools of channel-first images leave no window operator, which no quantizer takes, and no TRANSPOSE between."""
    operators = built(tmp_path, _POOLED, "make")
    assert {"CONV_2D", "MAX_POOL_2D", "DEPTHWISE_CONV_2D"} <= set(operators)
    assert "STABLEHLO_REDUCE_WINDOW" not in operators
    assert operators.count("TRANSPOSE") <= 1  # of the input


_FLAX = """
import flax.linen as nn
import jax, numpy as np
from flax import nnx

EXAMPLE = np.zeros((1, 8, 8, 1), np.float32)

class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
        x = nn.avg_pool(nn.max_pool(x, (2, 2), (2, 2)), (3, 3), (1, 1), "SAME")
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2))))

class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, image):
        return self.dense(self.drop(nnx.relu(self.norm(self.conv(image))).mean((1, 2))))

def linen():
    module = Linen()
    return (module, module.init(jax.random.PRNGKey(0), EXAMPLE)), EXAMPLE

def unbound():
    return Linen(), EXAMPLE

def in_training():
    return Network(nnx.Rngs(0)), EXAMPLE
"""


def test_flax_modules(tmp_path: Path) -> None:
    """Linen modules with their variables and NNX modules are sources; NNX ones are set to inference."""
    pytest.importorskip("flax")
    assert "MAX_POOL_2D" in built(tmp_path, _FLAX, "linen")
    assert "FULLY_CONNECTED" in built(tmp_path, _FLAX, "in_training")
    with pytest.raises(SourceError, match=r"calling it with .*raised") as caught:
        built(tmp_path, _FLAX, "unbound")
    assert "(module, variables)" in (caught.value.hint or "")


_EQUINOX = """
import equinox as eqx
import jax, numpy as np

class Network(eqx.Module):
    conv: eqx.nn.Conv2d
    pool: eqx.nn.MaxPool2d
    drop: eqx.nn.Dropout
    dense: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.PRNGKey(0))
        self.conv = eqx.nn.Conv2d(2, 4, 3, key=keys[0])
        self.pool, self.drop = eqx.nn.MaxPool2d(2, 2), eqx.nn.Dropout(0.5)
        self.dense = eqx.nn.Linear(4, 3, key=keys[1])

    def __call__(self, image, *, key=None):
        return self.dense(self.drop(self.pool(jax.nn.relu(self.conv(image))).mean((1, 2)), key=key))

def alone():
    return Network(), np.zeros((2, 8, 8), np.float32)

def batched():
    return jax.vmap(eqx.nn.inference_mode(Network())), np.zeros((1, 2, 8, 8), np.float32)
"""


def test_equinox_modules(tmp_path: Path) -> None:
    """Equinox modules are sources, of one sample and under vmap; dropout is off."""
    pytest.importorskip("equinox")
    for name in ("alone", "batched"):
        operators = built(tmp_path, _EQUINOX, name)
        assert "MAX_POOL_2D" in operators and "STABLEHLO_REDUCE_WINDOW" not in operators
