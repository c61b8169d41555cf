"""Ways to break a file: any bytes, and with the structure of JSON, TOML and other text, archives, and flatbuffers."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutator = Callable[[bytes, Random], bytes]

_EDGES = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1)
_ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63),
    10**400,
    0.5,
    -0.0,
    1e308,
    math.nan,
    math.inf,
    "",
    "\0",
    "x",
    "../../escape",
    "/etc/passwd",
    "é\ud7ff",
    "a" * 5000,
    "NaN",
    [],
    {},
    [[]],
    [None],
    {"": None},
    [1, "2", None],
    {"__class__": "x"},
    "<script>alert(1)</script>",
    "%s%n{0}",
    "\x1b[31m",
)
_TOKENS = (
    b"",
    b"=",
    b"[",
    b"]",
    b'"',
    b"\n",
    b"{",
    b"}",
    b",",
    b":",
    b"\0",
    b"\xff",
    b"-1",
    b"1e999",
    b"nan",
    b"inf",
    b"9" * 400,
    b"[" * 3000,
    b"0x",
    b"true",
    b"'''",
    b"\\u0000",
    b"../../escape",
    b"#",
    b".",
    b"\xe2\x80\xa8",
)


def raw(data: bytes, rng: Random) -> bytes:
    """Flip, set, cut, repeat, insert; several at once."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        _raw_step(made, rng)
    return bytes(made)


def _raw_step(made: bytearray, rng: Random) -> None:
    at = rng.randrange(len(made) + 1)
    match rng.randrange(7):
        case 0 if at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        case 1 if at < len(made):
            made[at] = rng.choice(_EDGES) & 0xFF
        case 2:
            del made[at:]
        case 3:
            del made[at : at + rng.choice((1, 2, 4, 64))]
        case 4:
            made[at:at] = bytes(made[at : at + rng.randrange(1, 64)]) * rng.choice((1, 2, 50))
        case 5:
            made[at:at] = rng.randbytes(rng.randrange(1, 16))
        case _:
            place = at // 4 * 4
            if place + 4 <= len(made):
                made[place : place + 4] = struct.pack("<I", rng.choice(_EDGES))


def text(data: bytes, rng: Random) -> bytes:
    """Swap, double and drop lines; put tokens that parsers trip over between, or in place of, words."""
    if rng.random() < 0.3:
        return raw(data, rng)
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                lines[at] = rng.choice(lines)
            case 1:
                lines.insert(at, rng.choice(lines))
            case 2 if len(lines) > 1:
                del lines[at]
            case 3:
                words = lines[at].split(b" ")
                words[rng.randrange(len(words))] = rng.choice(_TOKENS)
                lines[at] = b" ".join(words)
            case _:
                cut = rng.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:cut] + rng.choice(_TOKENS) + lines[at][cut:]
    return b"\n".join(lines)


def json_text(data: bytes, rng: Random) -> bytes:
    """Replace, drop, double and rename values anywhere in the tree; now and then break the text itself."""
    if rng.random() < 0.15:
        return text(data, rng)
    tree = [json.loads(data)]
    with contextlib.suppress(ValueError, RecursionError, OverflowError):
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            _tree_step(tree, rng)
        return json.dumps(tree[0]).encode("utf-8", "surrogatepass")
    return b"[" * 10**5


def _tree_step(tree: list[Any], rng: Random) -> None:
    holder, key = rng.choice(_places(tree))
    value = holder[key]
    match rng.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[str(rng.choice(_ODD))[:50]] = value
        case 2 if isinstance(value, list) and 0 < len(value) < 10_000:
            value.extend(value * rng.choice((1, 100)))
        case 3 if isinstance(value, (int, float)) and not isinstance(value, bool):
            other = value + 1 if isinstance(value, int) else value / 3
            holder[key] = rng.choice((-value, value * 10**9, other, value * 1000, str(value)))
        case 4:
            holder[key] = _deep(value, rng.choice((1, 3, 200)))
        case _:
            holder[key] = copy.deepcopy(rng.choice(_ODD))  # later steps change what they find in the tree


def _deep(value: Any, levels: int) -> Any:
    for level in range(levels):
        value = [value] if level % 2 else {"x": value}
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (holder, key) of every value."""
    keys: Sequence[Any] = list(value) if isinstance(value, dict) else range(len(value))
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], (dict, list)):
            found += _places(value[key])
    return found


def archive(data: bytes, rng: Random) -> bytes:
    """Break a member by its own kind, or rename, drop or double members; else break the archive's own bytes."""
    if rng.random() < 0.4:
        return raw(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as held:
        members = [(i.filename, held.read(i), i.compress_type) for i in held.infolist()]
    at = rng.randrange(len(members))
    name, content, how = members[at]
    match rng.randrange(8):
        case 0:
            members[at] = rng.choice(("../../escape", "/tmp/escape", "a/../../b", "", "x" * 300)), content, how
        case 1:
            del members[at]
        case 2:
            members.append((name, rng.choice(members)[1], how))
        case 3:
            members[at] = name, bytes(1 << 20) * rng.choice((1, 8)), zipfile.ZIP_DEFLATED
        case _:
            members[at] = name, of_content(content)(content, rng), how
    stream = io.BytesIO()
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as made:
        warnings.simplefilter("ignore")  # the same name twice is meant
        for name, content, how in members:
            made.writestr(zipfile.ZipInfo(name), content, how)
    return stream.getvalue()


def members(data: bytes, rng: Random) -> bytes:
    """Break, drop or exchange members of an archive that stands for a folder; the archive itself stays whole."""
    with zipfile.ZipFile(io.BytesIO(data)) as held:
        files = {i.filename: held.read(i) for i in held.infolist()}
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(sorted(files))
        match rng.randrange(10):
            case 0 if len(files) > 1:
                del files[name]
            case 1:
                files[name] = files[rng.choice(sorted(files))]
            case 2:
                files[name] = bytes(len(files[name]))
            case _:
                files[name] = of_content(files[name])(files[name], rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, content in files.items():
            made.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def tar(data: bytes, rng: Random) -> bytes:
    """Change a member's header (name, kind, link, size, mode) with a right checksum; else break the archive's bytes."""
    if rng.random() < 0.4:
        return raw(data, rng)
    made = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as held, tarfile.open(fileobj=made, mode="w") as archive:
        entries = [(i, stream.read() if (stream := held.extractfile(i)) else b"") for i in held.getmembers()]
        at = rng.randrange(len(entries))
        _tar_step(entries[at][0], rng)
        for entry, content in [*entries, rng.choice(entries)]:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def _tar_step(entry: tarfile.TarInfo, rng: Random) -> None:
    escapes = ("../../escape", "/tmp/escape", "a/../../b", "", "x" * 300, "..", ".", "a\0b", "a\nb")
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"?")
    match rng.randrange(4):
        case 0:
            entry.name = rng.choice(escapes)
        case 1:
            entry.type, entry.linkname = rng.choice(kinds), rng.choice(escapes)
        case 2:
            entry.mode = rng.choice((0, 0o7777, 0o400, 2**21 - 1))
        case _:
            entry.pax_headers = {rng.choice(("path", "size", "GNU.sparse.realsize", "linkpath")): rng.choice(escapes)}


def of_content(content: bytes) -> Mutator:
    """Return the mutator that knows a member's structure."""
    if content[:1] in b"{[" and content:
        with contextlib.suppress(ValueError):
            json.loads(content)
            return json_text
    return flatbuffer if content[4:8] == b"TFL3" else raw


def flatbuffer(data: bytes, rng: Random) -> bytes:
    """Change fields of a LiteRT model and write it again; else break its bytes."""
    if rng.random() < 0.5:
        return raw(data, rng)
    from edge.targets.litert import flatbuffer as fb

    model = fb.schema().ModelT.InitFromPackedBuf(data, 0)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _object_step(model, rng)
    try:
        return fb.dump(model)
    except Exception:  # a value that its field cannot hold
        return raw(data, rng)


def _object_step(model: Any, rng: Random) -> None:
    holder: Any = model
    while True:
        fields = {k: v for k, v in vars(holder).items() if v is not None}
        if not fields:
            return
        key = rng.choice(sorted(fields))
        value = fields[key]
        if isinstance(value, list) and value and hasattr(value[0], "__dict__") and rng.random() < 0.9:
            holder = rng.choice(value)
        elif hasattr(value, "__dict__") and rng.random() < 0.8:
            holder = value
        else:
            setattr(holder, key, _other(value, rng))
            return


def _other(value: Any, rng: Random) -> Any:  # noqa: PLR0911 - one line per kind of value
    import numpy as np

    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, np.integer)):
        return rng.choice((0, 1, -1, int(value) + 1, int(value) - 1, 127, 255, 2**31 - 1, -(2**31)))
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, math.nan, math.inf, 1e-40))
    if isinstance(value, (bytes, str)):
        return rng.choice((b"", b"../../escape", b"\xff\xfe", b"x" * 1000, b"\0"))
    if isinstance(value, np.ndarray):
        items = value.astype(value.dtype, copy=True)
        if items.size and items.dtype.kind in "iu":
            items[rng.randrange(items.size)] = rng.choice(
                (0, 1, items.dtype.type(-1 if items.dtype.kind == "i" else 255))
            )
            return rng.choice((items, items[:-1], np.concatenate([items, items])))
        return items[: rng.randrange(items.size + 1)]
    if isinstance(value, list):
        return rng.choice((None, value[:-1], value + value, [rng.choice(value)] * 3 if value else value))
    return None
