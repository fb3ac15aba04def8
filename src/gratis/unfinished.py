"""Evaluations that were interrupted: what each pool answered, kept until the last one has."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from gratis.checkpoint import DamagedCheckpointError, load_state, save_state
from gratis.evaluate.answered import Answered
from gratis.evaluate.mode import as_evaluated

PAUSE_SECONDS = 0.2
SAMPLE = 4
"""Images whose answers tell one network's code from another's."""
NEAR = 1e-3
"""How far answers may lie apart, as a share of the largest."""


def fingerprint(model: nn.Module) -> str:
    """The model's weights and buffers as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def sample_of(model: nn.Module, x: Tensor) -> Tensor | None:
    """What the model says [n, K] of images x [n, C, H, W], on the CPU; None where it says
    something else when asked again.
    """
    device = next((p.device for p in model.parameters()), x.device)
    with as_evaluated(model), torch.no_grad():
        said, again = (model(x.to(device)).cpu() for _ in range(2))
    return said if _alike(said, again) else None


def _alike(before: Tensor, now: Tensor) -> bool:
    if before.shape != now.shape:
        return False
    near = NEAR * float(now.nan_to_num().abs().amax())
    return torch.allclose(before, now, rtol=0.0, atol=near, equal_nan=True)


class Unfinished:
    """A directory with one file a pool (gratis.evaluate.answered.Outcomes).

    Its name is a function of the question, which holds all that an answer depends on but the code
    of the network: so a file is never taken for the answer to another one. A file that is cut
    short is asked again, and so is one whose network answered a few images in another way.
    sample: those answers [n, K], now; None where they are not looked at.
    """

    def __init__(self, directory: Path, sample: Tensor | None = None) -> None:
        self.directory, self.sample = directory, sample

    @classmethod
    def of(cls, parent: Path, question: dict[str, Any], sample: Tensor | None = None) -> Self:
        text = json.dumps(question, sort_keys=True)
        return cls(parent / hashlib.sha256(text.encode()).hexdigest()[:16], sample)

    def get(self, place: int) -> Answered | None:
        path = self._file(place)
        if not path.exists():
            return None
        try:
            kept = load_state(path)
        except DamagedCheckpointError:
            return None
        return Answered.of_plain(kept) if self._answers(kept.get("sample")) else None

    def put(self, place: int, answered: Answered) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        fresh = self._file(place).with_suffix(".tmp")
        sample = {} if self.sample is None else {"sample": self.sample}
        save_state(fresh, answered.plain() | sample)
        fresh.replace(self._file(place))

    def wait_for(self, places: int, patience_seconds: float) -> None:
        """Until so many pools are answered, by other processes too, or nothing happens any more."""
        missing, since = set(range(places)), time.monotonic()
        while missing and time.monotonic() - since < patience_seconds:
            # what stood there of other code or another version is no answer
            left = {place for place in missing if self.get(place) is None}
            if left == missing:
                time.sleep(PAUSE_SECONDS)
            else:
                missing, since = left, time.monotonic()

    def done(self) -> None:
        """Every answer is kept elsewhere now."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.parent.is_dir() and not any(self.directory.parent.iterdir()):
            self.directory.parent.rmdir()

    def _answers(self, before: Tensor | None) -> bool:
        """Whether the network says now what it said `before`, as another machine may round it."""
        now = self.sample
        if before is None or now is None:
            return before is now
        return _alike(before, now)

    def _file(self, place: int) -> Path:
        return self.directory / f"{place:05d}.pt"
