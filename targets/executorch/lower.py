"""Lower exported programs to a `.pte`, and keep what each delegate said of the operators that it refused."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.calibration.recipe import Recipe
from edge.errors import ConfigError, ConversionError, EdgekitError
from edge.targets.executorch.delegates import Delegate, Options

# A method of every program that edgekit writes: it returns the names, shapes and quantization of the ends as JSON.
CONTRACT_METHOD = "edgekit_signature"
_OWN_KERNELS = "cortex_m_"
# They pick one of several results, and reserve memory.
_NO_KERNEL = ("getitem", "alloc")


@dataclass(frozen=True, kw_only=True)
class Delegation:
    """What became of the operators of one method: counts by operator, as `get_delegation_info` has them.

    `getitem` and `alloc` are left out of both, because they need no kernel; `inside` and `outside` count them.
    `reasons` maps an operator that stayed on portable kernels to the words of the delegate, where it gave any.
    """

    subgraphs: int
    inside: int
    outside: int
    delegated: Mapping[str, int] = field(default_factory=dict)
    portable: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Delegated operators of all operators, 0 to 1."""
        taken, left = sum(self.delegated.values()), sum(self.portable.values())
        return taken / (taken + left) if taken + left else 0.0


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """The bytes of a `.pte`, what was delegated per method, and the record that a profile is read with."""

    program: bytes
    delegations: Mapping[str, Delegation]
    record: Any = None


def lower(
    programs: Mapping[str, Any], delegates: Sequence[Delegate], options: Options, recipe: Recipe, contract: str
) -> Lowered:
    """Lower each method by the delegates in order. Raises ConversionError with the operator that has no way."""
    from executorch.exir import ExecutorchBackendConfig

    register_quantized_kernels()
    try:
        with _listening() as heard, _kept_constants(programs):
            edge = _edge(programs, delegates, options, recipe, contract)
        delegations = {name: _delegation(edge.exported_program(name), heard) for name in programs}
        made = edge.to_executorch(ExecutorchBackendConfig())
    except EdgekitError:
        raise
    except Exception as error:  # each backend raises its own
        raise _cannot_lower(error, delegates) from error
    return Lowered(program=bytes(made.buffer), delegations=delegations, record=_record(made))


@contextlib.contextmanager
def _kept_constants(programs: Mapping[str, Any]) -> Iterator[None]:
    """Give programs back the constants that lowering takes out of them: they are run and saved afterwards."""
    held = {name: dict(program.constants) for name, program in programs.items()}
    try:
        yield
    finally:
        for name, program in programs.items():
            program.constants.update(held[name])


def register_quantized_kernels() -> None:
    """Make the kernels of quantize and dequantize known; without them ExecuTorch finds no out variants of them."""
    import executorch.kernels.quantized  # noqa: F401


def _record(made: Any) -> Any:
    try:
        return made.get_etrecord()
    except RuntimeError:  # one that was not asked for
        return None


def _edge(
    programs: Mapping[str, Any], delegates: Sequence[Delegate], options: Options, recipe: Recipe, contract: str
) -> Any:
    from executorch.exir import to_edge_transform_and_lower

    constant = {CONTRACT_METHOD: contract}
    if any(d.name == "cortex-m" for d in delegates):
        return _cortex(programs, options, constant)
    partitioners = [p for d in delegates for p in d.partitioners(options.get(d.name, {}), recipe)]
    return to_edge_transform_and_lower(
        dict(programs), partitioner=partitioners or None, constant_methods=constant, generate_etrecord=True
    )


def _cortex(programs: Mapping[str, Any], options: Options, constant: Mapping[str, str]) -> Any:
    """Replace quantized operators by CMSIS-NN's; this is a pass over the graph and no delegate."""
    from executorch.backends.cortex_m.edge_compile_config import cortex_m_edge_compile_config
    from executorch.backends.cortex_m.passes.cortex_m_pass_manager import CortexMPassManager
    from executorch.backends.cortex_m.target_config import CortexM, CortexMTargetConfig
    from executorch.exir import to_edge

    core = str(options.get("cortex-m", {}).get("core", "M55"))
    if core not in (accepted := [c.name for c in CortexM]):
        raise ConfigError(f"options.executorch.cortex-m.core is {core!r}; accepted: {', '.join(accepted)}.")
    edge = to_edge(dict(programs), constant_methods=dict(constant), compile_config=cortex_m_edge_compile_config())
    config = CortexMTargetConfig(cpu=CortexM[core])
    for name in programs:
        edge._edge_programs[name] = CortexMPassManager(
            edge.exported_program(name), target_config=config, use_explicit_layout=True
        ).transform()
    return edge


class _Listener(logging.Handler):
    """Collects what XNNPACK's partitioner says of a node that it does not take."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.reasons: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        node, reason = getattr(record.msg, "node", None), getattr(record.msg, "reason", "")
        if node is not None and reason:
            # The last partitioner's word counts: the first of two may only say that the node is the other's.
            self.reasons[_operator(str(node))] = str(reason).strip()


@contextlib.contextmanager
def _listening() -> Iterator[Mapping[str, str]]:
    logger, listener = logging.getLogger("executorch.backends.xnnpack"), _Listener()
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    # Without this every refusal would also be printed by the root logger.
    propagate, logger.propagate = logger.propagate, False
    try:
        yield listener.reasons
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
        logger.propagate = propagate


def _operator(node: str) -> str:
    """Return `aten_mul_tensor` of the node `aten_mul_tensor_12`."""
    return re.sub(r"_\d+$", "", node)


def _delegation(program: Any, heard: Mapping[str, str]) -> Delegation:
    from executorch.devtools.backend_debug import get_delegation_info

    info = get_delegation_info(program.graph_module)
    rows = sorted((name, row) for name, row in info.delegation_by_operator.items() if name not in _NO_KERNEL)
    # CMSIS-NN's operators are called one by one: they are kernels of the target's own, though no delegate.
    own = {name: row.non_delegated for name, row in rows if name.startswith(_OWN_KERNELS)}
    portable = {name: row.non_delegated for name, row in rows if row.non_delegated and name not in own}
    return Delegation(
        subgraphs=info.num_delegated_subgraphs,
        inside=info.num_delegated_nodes,
        outside=info.num_non_delegated_nodes,
        delegated={name: row.delegated for name, row in rows if row.delegated} | own,
        portable=portable,
        reasons={name: heard[name] for name in portable if name in heard},
    )


def _cannot_lower(error: Exception, delegates: Sequence[Delegate]) -> ConversionError:
    text = str(error)
    names = ", ".join(d.name for d in delegates)
    if found := re.search(r"Missing out variants: \{(.*?)\}", text):
        return ConversionError(
            f"ExecuTorch has no kernel for {found[1]}.",
            hint="Write that part of the model with other operators, or move it out of the program.",
        )
    if found := re.search(r"(aten_\w+) was not decomposed or delegated", text):
        return ConversionError(
            f"ExecuTorch cannot lower {found[1]} for {names}: it stands inside of control flow (torch.cond).",
            hint='Build with delegates = ["portable"], or choose with torch.where instead of torch.cond.',
        )
    if "only supports 1 dynamic dimension" in text:
        return ConversionError(
            f"Lowering for {names} failed: a reshape has more than one open dimension, and XNNPACK takes one.",
            hint="Declare one open dimension only, the batch as 1 for example, or build with delegates = "
            '["portable"] in [options.executorch].',
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no message")
    hint = "Give F.max_pool2d an explicit stride." if "max_pool2d" in text and "expected minimum 3" in text else None
    return ConversionError(f"Lowering for {names} failed: {type(error).__name__}: {first[:400]}", hint=hint)


def total(delegations: Mapping[str, Delegation]) -> Delegation:
    """Return the sum over all methods."""
    inside: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for one in delegations.values():
        inside.update(one.delegated)
        outside.update(one.portable)
        reasons.update(one.reasons)
    return Delegation(
        subgraphs=sum(d.subgraphs for d in delegations.values()),
        inside=sum(d.inside for d in delegations.values()),
        outside=sum(d.outside for d in delegations.values()),
        delegated=dict(inside),
        portable=dict(outside),
        reasons=reasons,
    )
