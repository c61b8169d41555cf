"""Reference outputs on disk: appended sample by sample, read back as memory maps, never all in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge.errors import ConversionError

Array = NDArray[np.generic]


class OutputWriter:
    """Appends one sample's outputs at a time; all samples must have the shapes and dtypes of the first."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._header: dict[str, tuple[str, list[int]]] = {}
        self.count = 0

    def append(self, outputs: Mapping[str, Array]) -> None:
        """Append outputs of shape [1, ...] each."""
        for number, (name, value) in enumerate(outputs.items()):
            array = np.ascontiguousarray(value)
            header = (array.dtype.str, list(array.shape))
            if name not in self._files:
                self._files[name] = (self._folder / f"{number}.bin").open("wb")
                self._header[name] = header
            if self._header[name] != header:
                raise ConversionError(
                    f"Output {name!r} changed from {self._header[name]} to {header} between samples.",
                    hint="edgekit builds programs with static shapes; let the model's outputs have one shape.",
                )
            self._files[name].write(array.tobytes())
        self.count += 1

    def __enter__(self) -> OutputWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._files.values():
            stream.close()
        if error is None:
            header = {"count": self.count, "outputs": self._header}
            (self._folder / "header.json").write_text(json.dumps(header), encoding="utf-8")


class OutputReader:
    """Reads what an OutputWriter wrote; `sample(i)` has the shapes [1, ...] that were appended."""

    def __init__(self, folder: Path) -> None:
        header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        self.count = int(header["count"])
        self._maps = {
            name: np.memmap(folder / f"{number}.bin", dtype=np.dtype(dtype), mode="r", shape=(self.count, *shape))
            for number, (name, (dtype, shape)) in enumerate(header["outputs"].items())
        }

    def sample(self, index: int) -> dict[str, Array]:
        """Return the outputs of one sample."""
        return {name: np.asarray(values[index]) for name, values in self._maps.items()}
