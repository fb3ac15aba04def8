"""Images that are read from disk as batches ask for them, and the parts of them that are shown."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gratis.data import StreamLoader
from gratis.data.augment import AREAS, RATIOS, random_box
from gratis.data.decoding import cropped
from gratis.data.streamed import Keeping

SIZES = [(40, 30), (30, 40), (33, 33), (64, 20)]  # width, height


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes of eight pictures of four sizes for training, two for the test."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for label in ("ant", "bee", "cat"):
            folder = tmp_path / "tree" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                width, height = SIZES[number % 4]
                pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "tree"


def loader_of(tree: Path, stored=24, image_size=16, batch_size=5, **options) -> StreamLoader:
    images, _ = Keeping(tree, tree.parent / "cache").training((stored,), image_size, None)
    options = {"augment": ["resized-crop", "flip"], **options}
    return StreamLoader(images, batch_size, seed=3, **options)


def equal(ones, others) -> bool:
    pairs = list(zip(ones, others, strict=True))
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


# --- batches


def test_batches_are_what_one_image_after_the_other_gives(tree: Path) -> None:
    loader = loader_of(tree)
    images = loader.images
    key = int(np.random.SeedSequence((3, 1)).generate_state(2, np.uint64)[1])
    seen = []
    for x, y in loader.epoch(1):
        for pixels, label in zip(x, y, strict=True):
            found = [
                row
                for row, known in zip(images.rows.tolist(), images.y, strict=True)
                if known == label and row not in seen
            ]
            made = {row: reference(images.source.image(row), key, row) for row in found}
            row = next(row for row, square in made.items() if torch.equal(square, pixels))
            seen.append(row)
    assert sorted(seen) == list(range(24))


def reference(pixels: np.ndarray, key: int, row: int) -> torch.Tensor:
    draw = np.random.Generator(np.random.Philox(key=[key, row]))
    flipped = draw.random() < 0.5
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels).crop(random_box(width, height, draw)).resize((16, 16), 2)
    made = np.asarray(image)
    made = made[:, ::-1] if flipped else made
    return torch.tensor(made.copy()).permute(2, 0, 1) / 255


def test_threads_and_a_later_start_change_nothing(tree: Path) -> None:
    whole = list(loader_of(tree).epoch(2))
    assert [len(y) for _, y in whole] == [5, 5, 5, 5, 4]
    assert equal(whole, loader_of(tree, workers=3).epoch(2))
    assert equal(whole[3:], loader_of(tree, workers=2).epoch(2, 3))
    assert not equal(whole, loader_of(tree).epoch(3))
    assert equal(whole[:4], loader_of(tree, drop_last=True).epoch(2))


def test_loaders_that_share_batches_hold_the_same_images(tree: Path) -> None:
    whole = list(loader_of(tree, batch_size=6).epoch(0))
    shares = [
        list(loader_of(tree, batch_size=6, world=2, take=take).epoch(0))
        for take in (
            lambda size: torch.arange(size // 2),
            lambda size: torch.arange(size // 2, size),
        )
    ]
    joined = [
        (torch.cat([x, u]), torch.cat([y, v])) for (x, y), (u, v) in zip(*shares, strict=True)
    ]
    assert equal(whole, joined)


def test_a_loader_refuses_what_it_cannot_do(tree: Path) -> None:
    with pytest.raises(ValueError, match="batch size from 1 to 24"):
        loader_of(tree, batch_size=25)
    with pytest.raises(ValueError, match="crop-4 is for images in memory"):
        loader_of(tree, augment=["crop-4"])
    plain = next(loader_of(tree, augment=[]).epoch(0))[0]
    squares = loader_of(tree, augment=[]).images.pixels(slice(None))
    assert all(any(torch.equal(x, square) for square in squares) for x in plain)


# --- parts of an image


def test_random_parts_are_drawn_as_torchvision_draws_them() -> None:
    from torchvision.transforms import RandomResizedCrop

    draw = np.random.default_rng(0)
    image = torch.zeros(3, 120, 160)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, AREAS, RATIOS) for _ in range(3000)])
    ours = np.array([random_box(160, 120, draw) for _ in range(3000)])
    left, top, right, bottom = ours.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 160).all()
    assert (bottom <= 120).all()
    top_, left_, height_, width_ = theirs.T
    for mine, other in (
        (left, left_),
        (top, top_),
        (right - left, width_),
        (bottom - top, height_),
        ((right - left) * (bottom - top), height_ * width_),
    ):
        error = math.hypot(mine.std(), other.std()) / math.sqrt(3000)
        assert abs(mine.mean() - other.mean()) < 4 * error


@pytest.mark.parametrize(
    ("size", "box"),
    [((100, 1), (49, 0, 50, 1)), ((1, 100), (0, 49, 1, 50)), ((1000, 30), (480, 0, 520, 30))],
)
def test_an_image_too_narrow_for_any_part_gives_its_centre(size, box) -> None:
    class Never:
        """Draws the largest and widest part each time."""

        def uniform(self, low: float, high: float) -> float:
            return high

    assert random_box(*size, Never()) == box  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (25, 29), (22, 22), (41, 103)])
@pytest.mark.parametrize("resize", [26, 0])
def test_crops_are_torchvisions(size: tuple[int, int], resize: int) -> None:
    from torchvision.transforms import v2

    draw = np.random.default_rng(1)
    image = Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8))
    steps = [v2.Resize(resize)] * bool(resize) + [v2.CenterCrop(22)]
    assert np.array_equal(cropped(image, 22, resize), v2.Compose(steps)(image))
