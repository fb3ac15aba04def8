"""A run directory to write into, and what may happen to it."""

import os
from pathlib import Path
from typing import Any

import pytest

from gratis.run import Run

RECIPE: dict[str, Any] = {
    "name": "small",
    "seed": 0,
    "method": {"name": "free", "replays": 8, "ball": {"eps": "8/255"}},
    "optimizer": {"learning_rate": 0.1, "weight_decay": 1e-05},
    "budget": {"passes": 15.0, "data_passes": None},
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with Run.writing(tmp_path / "run", RECIPE, resume=False) as made:
        return made


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))
