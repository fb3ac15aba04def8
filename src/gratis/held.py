"""A run's directory held against other writers, and what a start that came to nothing leaves."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RECIPE = "recipe.yaml"
LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"
LOCK, LAUNCH = ".lock", ".launch"


class RunInUseError(ValueError):
    """Another process is writing to this run directory."""


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold the directory against other writers; a killed process lets go of it by itself.

    RunInUseError while another process does; ValueError on a file system without locks.
    """
    with (directory / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunInUseError(
                f"{directory} is in use by another process; wait for it or stop it"
            ) from error
        except OSError as error:
            raise ValueError(
                f"{directory} cannot be held against other writers, for its file system has no "
                f"locks ({error}); give a directory on another, or mount it with flock"
            ) from error
        yield


def occupied(directory: Path) -> bool:
    """Whether it holds more than what a run that never learned leaves."""
    left = (RECIPE, LOG) if never_learned(directory) else ()
    known = (LOCK, LAUNCH, CHECKPOINTS, *left)
    return _any(directory / CHECKPOINTS) or any(p.name not in known for p in directory.iterdir())


def never_learned(directory: Path) -> bool:
    """Whether a start ended before its first record and checkpoint, as by a mistyped setting: what
    it left is no run, and another recipe may begin there.
    """
    log, checkpoints = directory / LOG, directory / CHECKPOINTS
    begun = (directory / LOCK).is_file() and checkpoints.is_dir() and log.is_file()
    return begun and not _any(checkpoints) and not log.stat().st_size


def _any(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())
