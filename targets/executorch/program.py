"""Read a `.pte` without running it: methods, instructions, backends and operators that it needs, memory, signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edge.errors import MissingPackageError, SourceError
from edge.signature import Signature, TensorSpec
from edge.targets.executorch import carrier
from edge.targets.executorch.lower import CONTRACT_METHOD

T = TypeVar("T")

_MAGIC = (b"ET12", b"ET13")
# Names of the flatbuffer's scalar types (PyTorch's numbering) as edgekit's dtypes.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "CHAR": "int8",
    "BYTE": "uint8",
    "SHORT": "int16",
    "INT": "int32",
    "LONG": "int64",
    "BOOL": "bool",
}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One instruction: a kernel (`aten::mean.out`) with place `portable`, or a subgraph with the backend's id."""

    method: str
    index: int
    name: str
    backend: str | None
    values: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """What a `.pte` says of itself. Sizes in bytes; `planned` per method: the activations' arenas."""

    methods: tuple[str, ...]
    calls: tuple[Call, ...]
    backends: tuple[str, ...]
    operators: tuple[str, ...]
    parameter_bytes: int
    planned: dict[str, int]
    signature: Signature | None
    own_contract: bool
    others: Mapping[str, Signature | None] = field(default_factory=dict)
    # Of inputs with open dimensions: the sizes that memory is planned for.
    largest: Mapping[str, list[int]] = field(default_factory=dict)

    def of(self, method: str) -> Signature | None:
        """Return the signature of a method, None where its ends are no tensors; only the main one has names."""
        return self.others.get(method, self.signature)


def read(path: Path) -> View:
    """Return the view of a file. Raises SourceError for what is no valid program."""
    return parse(_bytes(path), str(path))


def deserialized(path: Path) -> Any:
    """Return ExecuTorch's own record of a file (`PTEFile`). Raises SourceError, MissingPackageError."""
    return _opened(_bytes(path), str(path), lambda file: file)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error


def parse(data: bytes, name: str = "The program") -> View:
    """Return the view of a program's bytes. Raises SourceError, MissingPackageError."""
    return _opened(data, name, _view)


def _opened(data: bytes, name: str, make: Callable[[Any], T]) -> T:
    if data[4:8] not in _MAGIC:
        raise SourceError(f"{name} is no ExecuTorch program.", hint="A .pte file has ET12 at byte 4.")
    try:
        from executorch.exir._serialize._program import deserialize_pte_binary
    except ImportError as error:
        raise MissingPackageError(
            "Reading a .pte file needs the package executorch, which is not installed.",
            hint="pip install 'edgekit[executorch]'",
        ) from error
    try:
        return make(deserialize_pte_binary(data))
    except SourceError:
        raise
    except Exception as error:  # the deserialiser trusts its input: damage shows as any error
        raise SourceError(
            f"{name} is damaged: {type(error).__name__}: {str(error)[:200]}", hint="Build or download it again."
        ) from error


def _view(file: Any) -> View:
    plans = {plan.name: plan for plan in file.program.execution_plan}
    methods = tuple(name for name in plans if name != CONTRACT_METHOD)
    calls = tuple(call for name in methods for call in _calls(plans[name]))
    contract = _contract(plans.get(CONTRACT_METHOD))
    main = plans.get("forward") or (plans[methods[0]] if methods else None)
    found = _by_position(main) if main is not None else None
    if contract is not None and found is not None:
        _check(contract, found)
    return View(
        methods=methods,
        calls=calls,
        backends=tuple(sorted({c.backend for c in calls if c.backend})),
        operators=tuple(sorted({c.name for c in calls if not c.backend})),
        parameter_bytes=_parameter_bytes(file),
        planned={name: sum(plans[name].non_const_buffer_sizes[1:]) for name in methods},
        signature=contract or found,
        own_contract=contract is not None,
        largest=_largest(contract, found),
        others={n: _by_position(plans[n]) for n in methods if plans[n] is not main},
    )


def _calls(plan: Any) -> Iterator[Call]:
    index = 0
    for chain in plan.chains:
        for instruction in chain.instructions:
            call = instruction.instr_args
            kind = type(call).__name__
            if kind == "KernelCall":
                operator = plan.operators[call.op_index]
                name = f"{operator.name}.{operator.overload}" if operator.overload else operator.name
                yield Call(method=plan.name, index=index, name=name, backend=None, values=tuple(call.args))
            elif kind == "DelegateCall":
                backend = plan.delegates[call.delegate_index].id
                yield Call(method=plan.name, index=index, name=backend, backend=backend, values=tuple(call.args))
            else:
                continue  # moves, jumps and frees need nothing linked
            index += 1


def _contract(plan: Any) -> Signature | None:
    if plan is None or not plan.outputs:
        return None
    text = getattr(plan.values[plan.outputs[0]].val, "string_val", None)
    return carrier.contract_of(text) if isinstance(text, str) else None


def _by_position(plan: Any) -> Signature | None:
    sides = [
        tuple(_spec(f"{prefix}_{i}", plan.values[v].val) for i, v in enumerate(getattr(plan, f"{prefix}s")))
        for prefix in ("input", "output")
    ]
    if not all(sides) or any(t is None for side in sides for t in side):
        return None
    inputs, outputs = ([t for t in side if t is not None] for side in sides)
    return Signature(inputs=tuple(inputs), outputs=tuple(outputs))


def _spec(name: str, value: Any) -> TensorSpec | None:
    dtype = _DTYPES.get(getattr(getattr(value, "scalar_type", None), "name", ""))
    return TensorSpec(name=name, shape=tuple(value.sizes), dtype=dtype) if dtype else None


def _check(contract: Signature, found: Signature) -> None:
    for wanted, got in ((contract.inputs, found.inputs), (contract.outputs, found.outputs)):
        if [(t.dtype, len(t.shape)) for t in wanted] != [(t.dtype, len(t.shape)) for t in got]:
            raise SourceError(
                f"The program's own signature says {', '.join(map(str, wanted))}; its method takes or gives "
                f"{', '.join(map(str, got))}.",
                hint="Build the program again.",
            )


def _largest(contract: Signature | None, found: Signature | None) -> dict[str, list[int]]:
    if contract is None or found is None:
        return {}
    pairs = zip(contract.inputs, found.inputs, strict=True)
    return {own.name: list(planned.shape) for own, planned in pairs if -1 in own.shape}


def _parameter_bytes(file: Any) -> int:
    program = file.program
    constants = sum(len(b.storage) for b in program.constant_buffer)
    inline = sum(len(d.data) for d in program.backend_delegate_data)
    named = sum(len(b) for b in file.named_data.buffers) if file.named_data else 0
    return int(constants + inline + named)
