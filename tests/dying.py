"""Runs that die on purpose, and whether what goes on from them is what would have been."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gratis.learner import Learner


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of ours runs after it."""


@contextmanager
def dies(at: int = 50, where: tuple[Any, str] = (Learner, "update")) -> Iterator[None]:
    """Within it the process ends in place of call number `at` of `where`, and must come so far."""
    owner, name = where
    original, calls = getattr(owner, name), itertools.count(1)

    def counted(*given: Any, **how: Any) -> Any:
        if next(calls) == at:
            raise KilledError
        return original(*given, **how)

    setattr(owner, name, counted)
    try:
        with pytest.raises(KilledError):
            yield
    finally:
        setattr(owner, name, original)


def final_state(directory: Path) -> dict[str, Any]:
    """What the last checkpoint of a run holds."""
    state: dict[str, Any] = torch.load(directory / "checkpoints" / "last.pt", weights_only=True)
    return state


def assert_same(one: Any, other: Any, path: str = "") -> None:
    """Bitwise the same, but for the seconds it took."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            if key != "seconds":
                assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{path}[{place}]")
    else:
        assert one == other, path
