"""Files that are whole or not there at all; never imports torch."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt


def write_atomically(path: Path, content: bytes) -> None:
    """Replace what `path` holds; a crash at any moment leaves the old content or the new."""
    fresh = path.with_name(path.name + ".tmp")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays by name; none where there is no such file."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Replace the file, compressed."""
    fresh = path.with_name(path.name + ".tmp")
    with fresh.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **dict(arrays))
    os.replace(fresh, path)


class LogWriter:
    """Appends records to log.jsonl, one whole line a write."""

    def __init__(self, path: Path) -> None:
        torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        self._file: IO[bytes] = path.open("ab")
        if torn:
            self._file.write(b"\n")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write((json.dumps(record) + "\n").encode())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
