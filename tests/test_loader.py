"""Batches: augmentation against a plain loop, epochs as pure functions, resuming."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gratis.data import Images, Loader, load, parse_augment
from gratis.nn import small_conv


def numbered(count: int, size: int = 8) -> Images:
    """Random images whose label is their number, so that a batch tells which they are."""
    pixels = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 3, size, size), generator=pixels, dtype=torch.uint8)
    classes = tuple(str(i) for i in range(count))
    return Images(x, torch.arange(count), classes, "numbered", "train")


def order(loader: Loader, epoch: int) -> list[int]:
    return torch.cat([y for _, y in loader.epoch(epoch)]).tolist()


# --- augmentation -----------------------------------------------------------------------------


def slowly(x: Tensor, pad: int, corners: Tensor, flips: Tensor) -> Tensor:
    """What a textbook does, image by image."""
    out = torch.empty_like(x)
    h, w = x.shape[2:]
    for i, image in enumerate(x):
        row, column = corners[i].tolist()
        crop = F.pad(image, (pad,) * 4)[:, row : row + h, column : column + w]
        out[i] = crop.flip(-1) if flips[i] else crop
    return out


@pytest.mark.parametrize("names", [["crop-4", "flip"], ["crop-1"], ["flip"], []])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation_is_what_a_loop_over_images_does(names: list[str], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (64, 3, 9, 7), generator=generator).to(dtype)
    augmentation = parse_augment(names)
    corners, flips = augmentation.draw(64, generator)
    out = augmentation.apply(x, corners, flips)
    assert out.dtype == dtype
    assert torch.equal(out, slowly(x, augmentation.pad, corners, flips))
    assert torch.equal(out, x) == (not names)


def test_crops_reach_every_corner_alike_and_half_the_images_flip() -> None:
    corners, flips = parse_augment(["crop-2", "flip"]).draw(
        25_000, torch.Generator().manual_seed(0)
    )
    counts = torch.bincount(corners[:, 0] * 5 + corners[:, 1])
    assert counts.shape == (25,)
    assert counts.min() > 850  # 1000 expected, standard deviation 31
    assert counts.max() < 1150
    assert 0.48 < flips.float().mean().item() < 0.52


def test_flips_do_not_depend_on_whether_there_are_crops() -> None:
    both = parse_augment(["crop-2", "flip"]).draw(50, torch.Generator().manual_seed(0))
    crops = parse_augment(["crop-2"]).draw(50, torch.Generator().manual_seed(0))
    assert torch.equal(both[0], crops[0])
    assert both[1].any()
    assert not crops[1].any()
    flips = parse_augment(["flip"]).draw(50, torch.Generator().manual_seed(0))
    assert torch.equal(both[1], flips[1])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["rotate"], "no augmentation 'rotate'; there are crop-N .* and flip"),
        (["crop-0"], "no augmentation 'crop-0'"),
        (["crop4"], "no augmentation 'crop4'"),
        (["flip", "flip"], "at most"),
        (["crop-2", "crop-4"], "at most"),
        ("crop-4", "a list is needed"),
    ],
)
def test_a_wrong_augmentation_is_explained(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_augment(names)


# --- epochs -----------------------------------------------------------------------------------


def test_batches_are_float_pixels_of_every_image_once() -> None:
    images = numbered(50)
    loader = Loader(images, 16, seed=0)
    batches = list(loader.epoch(0))
    assert [len(y) for _, y in batches] == loader.batch_sizes == [16, 16, 16, 2]
    assert len(loader) == 4
    y = torch.cat([y for _, y in batches])
    assert y.tolist() != list(range(50))
    assert sorted(y.tolist()) == list(range(50))
    x = torch.cat([x for x, _ in batches])
    assert x.dtype == torch.float32
    assert torch.equal(x, images.x[y].float() / 255)


def test_drop_last_leaves_out_the_short_batch() -> None:
    loader = Loader(numbered(50), 16, seed=0, drop_last=True)
    assert loader.batch_sizes == [16, 16, 16]
    assert [len(y) for _, y in loader.epoch(0)] == [16, 16, 16]
    assert Loader(numbered(48), 16, seed=0).batch_sizes == [16, 16, 16]


def test_without_shuffling_the_order_is_that_of_the_images() -> None:
    loader = Loader(numbered(50), 16, seed=0, shuffle=False)
    assert order(loader, 0) == order(loader, 1) == list(range(50))


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    images = numbered(50)
    torch.manual_seed(1)
    first = order(Loader(images, 16, seed=0), 3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = Loader(images, 16, seed=0)
    order(other, 0)
    assert order(other, 3) == first
    assert torch.equal(torch.get_rng_state(), state)  # and takes nothing from the global stream


def test_no_two_seeds_or_epochs_share_their_order() -> None:
    images = numbered(50)
    orders = [order(Loader(images, 50, seed=s), n) for s in range(6) for n in range(6)]
    assert len({tuple(o) for o in orders}) == 36


@pytest.mark.parametrize("start", [0, 2, 4])
def test_resuming_in_the_middle_gives_bitwise_the_same_batches(start: int) -> None:
    images = numbered(50)
    whole = list(Loader(images, 12, seed=5, augment=["crop-2", "flip"]).epoch(7))
    resumed = list(Loader(images, 12, seed=5, augment=["crop-2", "flip"]).epoch(7, start))
    assert len(resumed) == 5 - start
    for (x, y), (again, labels) in zip(whole[start:], resumed, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)


def test_augmentation_is_new_in_every_epoch() -> None:
    loader = Loader(numbered(50), 50, seed=0, augment=["crop-2", "flip"], shuffle=False)
    (first, _), (second, _) = next(loader.epoch(0)), next(loader.epoch(1))
    changed = (first != second).flatten(1).any(dim=1).float().mean().item()
    assert changed > 0.8  # 49 of 50 draws differ on average


def test_augmentation_is_new_in_every_batch() -> None:
    images = numbered(25)
    twice = images.select(torch.cat([torch.arange(25)] * 2))
    (first, _), (second, _) = Loader(twice, 25, seed=0, augment=["crop-2"], shuffle=False).epoch(0)
    changed = (first != second).flatten(1).any(dim=1).float().mean().item()
    assert changed > 0.8  # 24 of 25 draws differ on average


def test_iterating_again_gives_the_next_epoch() -> None:
    loader = Loader(numbered(20), 8, seed=0)
    for number in range(3):
        assert torch.cat([y for _, y in loader]).tolist() == order(loader, number)


def test_float_images_are_used_as_they_are() -> None:
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = Images(x, torch.arange(6) % 2, ("a", "b"), "floats", "train")
    batch, _ = next(Loader(images, 6, seed=0, shuffle=False).epoch(0))
    assert torch.equal(batch, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 51}, "batch size is 51 and numbered .train. has 50 images"),
        ({"batch_size": 0}, "from 1 to 50"),
        ({"seed": -1}, "seed is -1"),
        ({"augment": ["crop-8"]}, "crop-8 on images of 8x8"),
    ],
)
def test_a_wrong_loader_is_explained(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(numbered(50), **{"batch_size": 16, "seed": 0, **arguments})


def test_no_images_make_no_loader() -> None:
    with pytest.raises(ValueError, match="no images"):
        Loader(numbered(50).select(torch.arange(0)), 1, seed=0)


def test_a_small_network_learns_digits_from_it() -> None:
    torch.manual_seed(0)
    training, test = load("digits", "train"), load("digits", "test")
    model = small_conv(10, 1, 8, width=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader = Loader(training, 64, seed=0)
    for _ in range(5):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(test.pixels(torch.arange(len(test)))).argmax(dim=1) == test.y
    assert right.float().mean().item() > 0.93
