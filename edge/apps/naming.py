"""Names and texts from outside, made safe: identifiers, packages, and string literals of each language."""

from __future__ import annotations

import json
import keyword
import re
import sys
import unicodedata
from collections.abc import Iterable

from edge.errors import ConfigError


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keywords of Kotlin, Java, Swift, C++ and TypeScript, and names that no namespace may have.
_OTHER_KEYWORDS = _set("""
    abstract actual alignas any arguments as asm auto await bitand bitor bool boolean byte case catch char
    companion compl concept const consteval constexpr crossinline data debugger decltype default defer delete do
    double else enum eval expect explicit export extends extension extern false fileprivate final float for
    friend fun func function goto guard if implements import in init inline inout int interface internal is let
    long main mutable namespace native new nil noexcept noinline null nullptr number object open operator
    override package private protected protocol public register reified repeat require requires return self set
    short signed sizeof static string struct super suspend switch symbol tailrec template this throw throws true
    try type typealias typedef typename typeof undefined union unsigned using val var vararg virtual void
    volatile when where while xor yield
""")
_KEYWORDS = frozenset(keyword.kwlist) | _OTHER_KEYWORDS
# Names that the generated classes use themselves.
_LOCAL = _set("""
    application bitmap close confined contract decode encode engine executor finish flat handles init inputs
    labels model outputs pixels place postprocess predict process raws reals resize result run stored tensor
    threads values
""")
# Names that the generated code uses beside the class of the model.
_TAKEN = _set("""
    Accelerator Activation Any Array ArtifactError Bitmap Bool Boolean Box Bundle Byte ByteArray ByteBuffer
    Bytes CONTRACT Char Class Classification Colour Context Contract DATA DType Data DataError Detail Detection
    Double Engine Error File Fit Float Floats Foundation Function Golden GoldenCheck GoldenTest GoldenTests
    Images Int Interpreter Iterable Layout Library List LiteRT Long MainActivity Map Mapping Mask Math
    MissingPackageError ModelEngine Module NDArray Number Numbers Object Optional Options Owned Path Pixels
    Placement Post Postprocess Preprocess Promise Quantization Resize Result Session Set Short String Taps
    Tensor TensorSpec Tensors Thread Type Unit Void XCTest
""")
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]{0,63}")
_PACKAGE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


def words(text: str) -> list[str]:
    """Return the ASCII words of a text; accents are dropped."""
    plain = unicodedata.normalize("NFKD", text[:200]).encode("ascii", "ignore").decode()
    return re.findall(r"[A-Za-z]+|[0-9]+", plain)


def class_name(given: str | None, fallback: str) -> str:
    """Return the name of the model's class: `given` as it stands, else made of `fallback`; raise ConfigError."""
    if given is not None:
        if not _CLASS.fullmatch(given) or _is_taken(given):
            raise ConfigError(
                f"--name is {given[:80]!r}; accepted: a capital letter, then letters and digits, at most 64, "
                "and no name that the generated code uses itself.",
                hint="Example: --name FaceDetector",
            )
        return given
    made = "".join(w[:1].upper() + w[1:] for w in words(fallback))[:48] or "Model"
    made = made if made[0].isalpha() else f"Model{made}"
    return f"{made}Model" if _is_taken(made) else made


def _is_taken(name: str) -> bool:
    """Whether the class or the module made of it would hide something else."""
    module = snake(name)
    return (
        name in _TAKEN
        or module in _KEYWORDS
        or module in sys.stdlib_module_names
        or module in ("numpy", "sample", "std", "detail")
    )


def package_name(given: str | None, name: str) -> str:
    """Return the Java package: `given`, else com.example.<name>; raise ConfigError."""
    package = given if given is not None else f"com.example.{name.lower()}"
    if not _PACKAGE.fullmatch(package) or len(package) > 200 or _KEYWORDS & set(package.split(".")):
        raise ConfigError(
            f"--package is {package[:80]!r}; accepted: lower-case words joined by dots, none of them a keyword.",
            hint="Example: --package com.example.detector",
        )
    return package


def snake(name: str) -> str:
    """Return `FaceDetector2` as `face_detector2`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def identifiers(names: Iterable[str], fallback: str) -> list[str]:
    """Return one lower-camel-case identifier per name, unique and no keyword of any language."""
    found: list[str] = []
    for position, name in enumerate(names):
        parts = words(name)
        made = "".join([parts[0].lower(), *(w.capitalize() for w in parts[1:])])[:40] if parts else ""
        if not made or not made[0].isalpha() or made in _KEYWORDS | _LOCAL or made in found:
            made = f"{fallback}{made[:1].upper()}{made[1:]}" if made and made not in found else f"{fallback}{position}"
        while made in found:
            made += "x"
        found.append(made)
    return found


# --- string literals ------------------------------------------------------------------------------


def _readable(character: str) -> bool:
    """Whether a character stands for itself in source text: no control, no right-to-left, no combining mark."""
    if character.isascii():
        return character.isprintable()
    letter = unicodedata.category(character) in ("Ll", "Lu", "Lo", "Lt")
    return letter and ord(character) < 0x10000 and unicodedata.bidirectional(character) == "L"


def _checked(text: str) -> str:
    """Refuse what is no Unicode text: a lone surrogate has no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"The text {text[:40]!a} holds half of a surrogate pair, which no file can hold.") from error
    return text


def _units(character: str) -> str:
    """Return a character as UTF-16 escapes."""
    data = character.encode("utf-16-be")
    return "".join(f"\\u{data[i]:02x}{data[i + 1]:02x}" for i in range(0, len(data), 2))


def kotlin(text: str) -> str:
    """Return a Kotlin expression of that string; long ones are joined, as a class file holds 65,535 bytes in one."""

    def literal(part: str) -> str:
        body = (f"\\{c}" if c in '"\\$' else c if _readable(c) else _units(c) for c in part)
        return '"' + "".join(body) + '"'

    text = _checked(text)
    if len(text) <= 8000:
        return literal(text)
    parts = (literal(text[i : i + 8000]) for i in range(0, len(text), 8000))
    return f'listOf({", ".join(parts)}).joinToString("")'


def swift(text: str) -> str:
    """Return a Swift literal of that string."""
    body = (f"\\{c}" if c in '"\\' else c if _readable(c) else f"\\u{{{ord(c):x}}}" for c in _checked(text))
    return '"' + "".join(body) + '"'


def cpp(text: str) -> str:
    """Return a C++ expression of type std::string with the UTF-8 of that string."""
    data = _checked(text).encode("utf-8")
    body = "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in data)
    return f'std::string("{body}", {len(data)})'


def python(text: str) -> str:
    """Return a Python literal of that string."""
    return ascii(_checked(text))


def typescript(text: str) -> str:
    """Return a TypeScript (and JSON) literal of that string."""
    return json.dumps(_checked(text))


def markdown(text: str, limit: int = 80) -> str:
    """Return a short text for a generated page: one line, no markup, nothing invisible."""
    shown = "".join(c if _readable(c) and c not in "`|<>[]*_\\$" else " " for c in text[:limit])
    return " ".join(shown.split()) + ("…" if len(text) > limit else "")
