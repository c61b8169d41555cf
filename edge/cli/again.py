"""The arguments of a running command, to start it again with some of them changed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def arguments(context: Any, *, without: Collection[str]) -> tuple[str, ...]:
    """Return what was given to a command, but for the parameters named in `without`.

    Options that have their default are left out, options that may be repeated are repeated.
    """
    options: list[str] = []
    positional: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name)
        if parameter.name in without or value is None or value == parameter.default:
            continue
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if parameter.param_type_name == "argument":
            positional += [str(v) for v in values]
            continue
        for one in values:
            if isinstance(one, bool):
                options += [parameter.opts[0]] if one else [*parameter.secondary_opts[:1]]
            else:
                options.append(f"{parameter.opts[0]}={one}")
    # `--` keeps a path that starts with a dash from being read as an option.
    return (*options, "--", *positional) if positional else tuple(options)
