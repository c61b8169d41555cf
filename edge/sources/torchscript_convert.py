"""From TorchScript to an exported module by PyTorch's TS2EPConverter, and what its failures mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edge.errors import ConversionError


def exported(script: Any, tensors: Sequence[Any]) -> Any:
    """Return the module of a ScriptModule for inputs of these shapes: unfrozen, and where that fails frozen.

    Raises ConversionError: control flow by data (prim::If, prim::Loop) has no exported form.
    """
    import torch
    from torch._export.converter import TS2EPConverter

    failures = []
    for freeze in (False, True):
        try:
            chosen = torch.jit.freeze(script.eval()) if freeze else script
            program = TS2EPConverter(chosen, tuple(tensors)).convert()
            module = program.module(check_guards=False)
            # The converter makes buffers of weights that still want gradients, which no later step may copy.
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.requires_grad_(False)
            return module
        except Exception as error:  # the converter raises what torch does
            failures.append(error)
    raise _explain(failures) from failures[-1]


def _explain(failures: Sequence[Exception]) -> ConversionError:
    text = "\n".join(str(f) for f in failures)
    if found := sorted(set(re.findall(r"prim::(If|Loop)", text))):
        what = " and ".join({"If": "branches (prim::If)", "Loop": "loops (prim::Loop)"}[f] for f in found)
        return ConversionError(
            f"The TorchScript model has {what} that depend on its data or that a trace would have removed.",
            hint="Save it with torch.jit.trace in place of torch.jit.script, or give file.py:factory for the module.",
        )
    if operators := sorted(set(re.findall(r"[Uu]nsupported (?:node|op|aten)\w*:? ?([\w:.]+)", text))):
        return ConversionError(
            f"TS2EPConverter does not take the TorchScript operators {', '.join(operators)}.",
            hint="Save the module with torch.export.save, or give file.py:factory.",
        )
    first = next((line.strip() for line in str(failures[0]).splitlines() if line.strip()), "no message")
    return ConversionError(
        f"PyTorch's TS2EPConverter cannot export the TorchScript model: {type(failures[0]).__name__}: {first[:300]}",
        hint="Save the module with torch.export.save, or give file.py:factory.",
    )
