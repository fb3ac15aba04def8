"""Looking at image files: in one process or several, the same is found."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gratis.data import decoding
from gratis.data.decoding import Look, look, look_at


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Colours, grey, 16 bits, too large to be decoded at once, cut short, no image at all."""
    draw = np.random.default_rng(0)

    def pixels(*shape: int) -> np.ndarray:
        return draw.integers(0, 256, shape, dtype=np.uint8)

    found = [tmp_path / f"{number}.png" for number in range(9)]
    for path in found[:4]:
        Image.fromarray(pixels(5, 7, 3)).save(path)
    Image.fromarray(pixels(6, 6)).save(found[4])
    Image.fromarray(pixels(6, 6).astype(np.uint16) * 257).save(found[5])
    Image.fromarray(pixels(200, 200, 3)).save(found[6])
    found[7].write_bytes(found[0].read_bytes()[:60])
    found[8].write_text("no image")
    return found


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes are worth it, and there are cores for them."""
    monkeypatch.setattr(decoding, "FILES_A_PROCESS", 3)
    monkeypatch.setattr(decoding.os, "cpu_count", lambda: 3)


def assert_same(found: list[Look | str], paths: list[Path]) -> None:
    assert len(found) == len(paths)
    for one, path in zip(found, paths, strict=True):
        other = look(path)
        if isinstance(one, str) or isinstance(other, str):
            assert one == other
        else:
            assert one[:3] == other[:3]
            np.testing.assert_array_equal(one.pixels, other.pixels)  # type: ignore[arg-type]


def test_what_is_looked_at(paths: list[Path]) -> None:
    found = [look(path) for path in paths]
    assert [one[:3] for one in found[4:7]] == [(6, 6, True), (6, 6, True), (200, 200, False)]
    assert [isinstance(one, str) for one in found] == [False] * 7 + [True] * 2
    assert isinstance(found[0], Look)
    assert found[0].pixels is not None
    assert found[0].pixels.shape == (3, 5, 7)
    assert isinstance(found[6], Look)
    assert found[6].pixels is None, "large ones are decoded later"


def test_several_processes_find_what_one_finds(
    paths: list[Path], several: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "look", None)  # none of it is done here
    found = look_at(paths)
    monkeypatch.undo()
    assert_same(found, paths)


@pytest.mark.parametrize("program", ["/no/python", sys.executable])
def test_a_process_that_cannot_be_or_fails_is_not_missed(
    program: str, paths: list[Path], several: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding.sys, "executable", program)
    monkeypatch.setattr(decoding, "__file__", "no file that Python could run")
    assert_same(look_at(paths), paths)
