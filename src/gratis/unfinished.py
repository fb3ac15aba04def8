"""Evaluations that were interrupted: what each pool answered, kept until the last one has."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any, Self

from torch import nn

from gratis.checkpoint import DamagedCheckpointError, load_state, save_state
from gratis.evaluate.answered import Answered

PAUSE_SECONDS = 0.2


def fingerprint(model: nn.Module) -> str:
    """The model's weights and buffers as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class Unfinished:
    """A directory with one file a pool (gratis.evaluate.answered.Outcomes).

    Its name is a function of the question, which holds everything that an answer depends on: so a
    file is never taken for the answer to another one. A file that is cut short is asked again.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def of(cls, parent: Path, question: dict[str, Any]) -> Self:
        text = json.dumps(question, sort_keys=True)
        return cls(parent / hashlib.sha256(text.encode()).hexdigest()[:16])

    def get(self, place: int) -> Answered | None:
        path = self._file(place)
        if not path.exists():
            return None
        try:
            return Answered.of_plain(load_state(path))
        except DamagedCheckpointError:
            return None

    def put(self, place: int, answered: Answered) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        fresh = self._file(place).with_suffix(".tmp")
        save_state(fresh, answered.plain())
        fresh.replace(self._file(place))

    def wait_for(self, places: int, patience_seconds: float) -> None:
        """Until so many pools are answered, by other processes too, or nothing happens any more."""
        missing, since = set(range(places)), time.monotonic()
        while missing and time.monotonic() - since < patience_seconds:
            left = {place for place in missing if not self._file(place).exists()}
            if left == missing:
                time.sleep(PAUSE_SECONDS)
            else:
                missing, since = left, time.monotonic()

    def done(self) -> None:
        """Every answer is kept elsewhere now."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.parent.is_dir() and not any(self.directory.parent.iterdir()):
            self.directory.parent.rmdir()

    def _file(self, place: int) -> Path:
        return self.directory / f"{place:05d}.pt"
