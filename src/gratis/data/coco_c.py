"""COCO-C: detection images under one corruption at one severity, made here or read from files."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gratis.data.corruptions import check_size, corrupted, makers
from gratis.data.decoding import plain
from gratis.data.images import as_pixels
from gratis.data.scenes import Pixels, Scenes, letterboxed

Place = tuple[str, int]
"""A corruption and its severity."""

Shown = Callable[[slice], Tensor]
"""x [n, 3, S, S] of a slice of the images."""


@contextmanager
def generated(scenes: Scenes, places: Sequence[Place]) -> Iterator[dict[Place, Shown]]:
    """What each corruption makes of the images, in their own size, before they are fitted.

    Raises ValueError for an image that the library does not take.
    """
    for height, width in {tuple(size) for size in scenes.sizes.tolist()}:
        check_size(3, height, width)
    pixels = int(scenes.sizes.prod(1).sum()) * len(places)
    with makers(pixels) as pool:
        yield {place: partial(_made, scenes, *place, pool) for place in places}


def stored(
    scenes: Scenes, places: Sequence[Place], root: Path
) -> tuple[dict[Place, Shown], list[str]]:
    """(what each cell ROOT/CORRUPTION/SEVERITY/NAME shows; the cells that are not there).

    Raises ValueError where a cell lacks any image, or images have no names to find them by.
    """
    if not scenes.paths:
        raise ValueError(
            f"--shift coco-c: the images of {scenes.name} are no files, so {root} holds none of "
            "them; write coco-c=generated"
        )
    there: dict[Place, Shown] = {}
    lacking = []
    for corruption, severity in places:
        directory = root / corruption / str(severity)
        if not directory.is_dir():
            lacking.append(f"{corruption}/{severity}")
            continue
        names = {path.name for path in directory.iterdir()}
        absent = [path.name for path in scenes.paths if path.name not in names]
        if absent:
            raise ValueError(
                f"--shift coco-c: {directory} lacks {len(absent)} of {len(scenes)} images, such "
                f"as {absent[0]}; precision over some of them would not compare"
            )
        there[corruption, severity] = partial(_read, scenes, directory)
    return there, lacking


def _made(
    scenes: Scenes, corruption: str, severity: int, pool: Executor | None, chosen: slice
) -> Tensor:
    places = range(len(scenes))[chosen]
    sources = [scenes.paths[i] if scenes.paths else scenes.original(i) for i in places]
    work = partial(_fitted, corruption=corruption, severity=severity, size=scenes.side)
    squares = [*map(work, sources)] if pool is None else [*pool.map(work, sources)]
    return _pixels(squares, scenes)


def _fitted(source: Path | Pixels, corruption: str, severity: int, size: int) -> Pixels:
    """Corrupted in its own size, then fitted: what a camera would have done."""
    if isinstance(source, Path):
        with Image.open(source) as image:
            source = np.asarray(plain(image, grey=False))
    return letterboxed(Image.fromarray(corrupted(source, corruption, severity)), size)


def _read(scenes: Scenes, directory: Path, chosen: slice) -> Tensor:
    squares = []
    for place in range(len(scenes))[chosen]:
        path = directory / scenes.paths[place].name
        height, width = scenes.sizes[place].tolist()
        with Image.open(path) as image:
            if image.size != (width, height):
                raise ValueError(
                    f"--shift coco-c: {path} is {image.width}x{image.height}, the image that its "
                    f"boxes are annotated in {width}x{height}"
                )
            squares.append(letterboxed(image, scenes.side))
    return _pixels(squares, scenes)


def _pixels(squares: list[Pixels], scenes: Scenes) -> Tensor:
    return as_pixels(torch.from_numpy(np.stack(squares)).to(scenes.x.device))
