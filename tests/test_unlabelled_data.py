"""Few labels, as data: which are kept, and what a batch holds."""

import pytest
import torch

from gratis.data import Images, Loader, Unlabelled, load
from gratis.data.unlabelled import keep_labels, mixed_order, together
from gratis.tasks import NO_LABEL
from gratis.training_data import training_data
from tests.dying import assert_same
from tests.recipes import tiny
from tests.test_unlabelled import FEW


def numbered(count, first=0):
    """Images whose every pixel is their number, of three classes."""
    x = torch.arange(first, first + count, dtype=torch.uint8).view(-1, 1, 1, 1)
    x = x.expand(-1, 1, 4, 4).contiguous()
    return Images(x, torch.arange(count) % 3, ("a", "b", "c"), "numbered", "train")


def mixed_loader(labelled=40, others=70, share=0.5, batch=12, **options):
    images = numbered(labelled)
    unlabelled = together([numbered(others, first=100).x], images, share)
    return Loader(images, batch, seed=3, unlabelled=unlabelled, **options)


# --- which labels are kept


@pytest.mark.parametrize("count", [10, 37, 400])
def test_labels_kept_are_balanced_and_the_others_are_all_the_rest(count):
    images = load("digits", "train")
    labelled, others = keep_labels(images, count, seed=4)
    counts = torch.bincount(labelled.y, minlength=10)
    assert counts.sum() == count
    assert counts.max() - counts.min() <= 1
    both = torch.cat([labelled.x, others]).flatten(1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, images.x.flatten(1).tolist()))
    again, _ = keep_labels(images, count, seed=4)
    assert torch.equal(again.x, labelled.x)
    elsewhere, _ = keep_labels(images, count, seed=5)
    assert not torch.equal(elsewhere.x, labelled.x)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (2, "2 labels are to be kept of numbered.* give 3 to 30"),
        (31, "give 3 to 30"),
        (29, "29 labels are 10 of class a, which has 8 images; keep fewer"),
    ],
)
def test_a_number_of_labels_that_cannot_be_is_explained(count, message):
    images = numbered(30)
    images.y[[0, 3]] = 1
    with pytest.raises(ValueError, match=message):
        keep_labels(images, count, seed=0)


def test_held_out_images_are_labelled_ones_and_nothing_is_in_two_places():
    recipe = tiny("trades-2", *FEW)
    data = training_data(recipe)
    assert (len(data.training), len(data.held_out), len(data.unlabelled)) == (240, 60, 997)
    assert (data.unlabelled.y == NO_LABEL).all()
    kept, _ = keep_labels(load("digits", "train"), 300, seed=0)
    of_labelled = torch.cat([data.training.x, data.held_out.x]).flatten(1).tolist()
    assert sorted(of_labelled) == sorted(kept.x.flatten(1).tolist())
    everything = of_labelled + data.unlabelled.x.flatten(1).tolist()
    assert sorted(everything) == sorted(load("digits", "train").x.flatten(1).tolist())


# --- what a batch holds


@pytest.mark.parametrize("share", [0.5, 0.25, 0.7, 1 / 3])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_any_places_in_a_row_hold_their_share(share, epoch):
    without = mixed_order(60, 90, share, places=60, seed=1, epoch=epoch) >= 60
    for length in (1, 4, 10, 12, 60):
        for begin in range(61 - length):
            found = int(without[begin : begin + length].sum())
            assert abs(found - length * share) < 1 + 1e-6


def test_every_image_comes_up_as_often_as_any_other_of_its_kind():
    seen = torch.cat(
        [mixed_order(20, 33, 0.4, places=20, seed=2, epoch=epoch) for epoch in range(9)]
    )
    counts = torch.bincount(seen, minlength=53)
    assert counts.sum() == 180
    labelled, unlabelled = counts[:20], counts[20:]
    assert labelled.max() - labelled.min() <= 1
    assert unlabelled.max() - unlabelled.min() <= 1
    assert labelled.sum() == 9 * 12


def test_so_it_does_where_a_short_last_batch_is_left_out():
    """Cards of places that no batch has are not dealt."""
    seen = torch.cat([mixed_order(20, 33, 0.5, places=16, seed=2, epoch=e) for e in range(10)])
    counts = torch.bincount(seen, minlength=53)
    assert counts.sum() == 160
    for of_kind in (counts[:20], counts[20:]):
        assert of_kind.sum() == 80
        assert of_kind.max() - of_kind.min() <= 1


def test_an_epoch_depends_on_seed_and_number_alone():
    torch.manual_seed(1)
    first = [
        mixed_order(50, 9, 0.5, places=50, seed=s, epoch=e) for s in range(3) for e in range(4)
    ]
    torch.manual_seed(2)
    assert torch.equal(mixed_order(50, 9, 0.5, places=50, seed=1, epoch=2), first[6])
    assert len({tuple(order.tolist()) for order in first}) == len(first)


def test_batches_carry_labels_only_where_there_are_some():
    loader = mixed_loader()
    assert loader.batch_sizes == [12, 12, 12, 4]  # as without the others
    seen = 0
    for x, y in loader.epoch(2):
        number = (x[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(y == NO_LABEL, number >= 100)
        assert torch.equal(y[y != NO_LABEL], number[number < 100] % 3)
        assert (y == NO_LABEL).sum() == len(y) / 2
        seen += len(y)
    assert seen == len(loader.images) == 40


def test_given_labels_come_with_their_images():
    loader = mixed_loader()
    loader.label(torch.arange(70) % 2)
    for x, y in loader.epoch(0):
        number = (x[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(y, torch.where(number < 100, number % 3, (number - 100) % 2))


def test_an_epoch_taken_up_in_the_middle_is_the_same():
    whole = list(mixed_loader(augment=["crop-1"]).epoch(3))
    rest = list(mixed_loader(augment=["crop-1"]).epoch(3, 2))
    assert_same([list(batch) for batch in whole[2:]], [list(batch) for batch in rest])


def test_parts_of_a_batch_have_their_share_each():
    whole = list(mixed_loader(batch=16).epoch(1))
    parts = [
        list(
            mixed_loader(
                batch=16,
                world=4,
                take=lambda size, rank=rank: torch.arange(size).tensor_split(4)[rank],
            ).epoch(1)
        )
        for rank in range(4)
    ]
    for place, (_, y) in enumerate(whole):
        of_parts = [part[place][1] for part in parts]
        assert torch.equal(torch.cat(of_parts), y)
        for part in of_parts:
            assert abs(int((part == NO_LABEL).sum()) - len(part) / 2) < 1


def test_float_images_go_with_bytes_as_the_same_pixels():
    images = numbered(10)
    floats = numbered(10, first=100).x.float() / 255
    for x, y in Loader(
        images, 10, seed=0, unlabelled=Unlabelled(floats, torch.full((10,), NO_LABEL), 0.5)
    ).epoch(0):
        number = (x[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(y == NO_LABEL, number >= 100)
        assert x.dtype == torch.float32
