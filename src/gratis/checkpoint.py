"""Checkpoint files: tensors and plain values, whole or not at all. Imports torch only when used."""

import os
import zipfile
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class DamagedCheckpointError(ValueError):
    """A checkpoint file that cannot be read whole, or that holds more than plain tensors."""


def save_state(path: Path, state: Record) -> None:
    """`state` (tensors and plain Python values) to `path`, on disk before this returns."""
    import torch

    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def load_state(path: Path) -> Record:
    """The state in `path`, on the CPU.

    Only tensors and plain values are loaded; a file with anything else in it (a pickle
    that would run code) is refused, as is one that is cut short.
    """
    import pickle

    import torch

    if not is_whole(path):
        raise DamagedCheckpointError(f"{path} is damaged or cut short")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DamagedCheckpointError(
            f"{path} holds more than tensors and plain values and was not loaded; "
            "gratis loads weights only, since a pickle can run any code"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise DamagedCheckpointError(f"{path} is damaged or cut short") from error
    if not isinstance(state, dict):
        raise DamagedCheckpointError(f"{path} is no checkpoint: it holds a {type(state).__name__}")
    return state


def is_whole(path: Path) -> bool:
    """Whether each member of the zip file has its checksum; torch.load does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError):
        return False
