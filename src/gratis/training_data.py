"""From a recipe to its images: trained on, held out, without labels, and to be judged on."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from gratis.data import Images, Streamed, Unlabelled, hold_out, load
from gratis.data.annotations import annotated
from gratis.data.images import divided
from gratis.data.listing import listed
from gratis.data.scenes import Scenes
from gratis.data.sources import root_of
from gratis.data.store import Source
from gratis.data.streamed import Keeping, Stored
from gratis.data.streamed_scenes import StreamedScenes, training_scenes
from gratis.data.unlabelled import drawn, keep_labels, together
from gratis.recipe import Recipe
from gratis.sections import Data
from gratis.sections import Unlabelled as UnlabelledSpec

AnyImages = Images | Streamed


@dataclass(frozen=True)
class TrainingData:
    """sources: where streamed images come from, for each data.stored of the run's phases."""

    training: AnyImages
    held_out: Images
    skipped: tuple[str, ...]
    unlabelled: Unlabelled | None = None
    sources: Mapping[Stored, Source] = field(default_factory=dict)

    @property
    def remarks(self) -> list[str]:
        """What was left out of the training images, or changed, for the run's log."""
        said = [f"not readable as an image, skipped: {name}" for name in self.skipped]
        if isinstance(self.training, Scenes | StreamedScenes):
            for count, what in (
                (self.training.clipped, "reach beyond their image and were cut to it"),
                (self.training.degenerate, "have no area inside of their image and were left out"),
            ):
                said += [f"boxes of training images that {what}: {count}"] if count else []
        return said


def load_split(data: Data, split: str) -> Images:
    """The images of a split, in memory; those of streamed folders' test split, on the disk."""
    split = data.test_split if split == "test" else split
    size = _side(data, split)
    resize = None if split == "train" else data.test_resize
    if data.stored is not None and data.name == "folder" and split == "test":
        assert size is not None
        return keeping(data).test(size, resize)
    return load(data.name, split, root=data.root, image_size=size, resize=resize)


def _side(data: Data, split: str) -> int | None:
    return data.image_size if split == "train" else data.test_size or data.image_size


def count(data: Data, split: str) -> int:
    """How many images a split has, damaged files among them where they are streamed."""
    if data.stored is None:
        return len(load_split(data, split))
    split = data.test_split if split == "test" else split
    of = annotated if data.name == "coco" else listed
    return len(of(root_of(data.name, data.root), split))


def keeping(
    data: Data,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> Keeping:
    """Where and how streamed images are kept."""
    cache = None if data.cache is None else Path(data.cache).expanduser()
    workers = data.workers or os.cpu_count() or 1
    return Keeping(root_of(data.name, data.root), cache, workers, share, progress)


def training_data(
    recipe: Recipe,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> TrainingData:
    """The recipe's training images, less the ones held out for checks; and those without labels.

    Held-out images are among those whose labels are kept. Of all others the labels are not even
    here. An epoch, and what a budget counts as one training image, is of the labelled ones.
    share: (rank, world) of a process among several that decode streamed images together.
    progress: (images decoded, all), now and then.
    """
    if recipe.data.stored is not None:
        return _streamed(recipe, keeping(recipe.data, share, progress))
    images = load_split(recipe.data, "train")
    _check_task(recipe, isinstance(images, Scenes))
    if recipe.data.limit is not None:
        images = images.select(torch.arange(min(recipe.data.limit, len(images))))
    others = images.x[:0]
    if recipe.data.labels is not None:
        images, others = keep_labels(images, recipe.data.labels, seed=recipe.seed)
    training, held_out = hold_out(images, _to_hold_out(recipe), seed=recipe.seed)
    _check_batches(recipe, len(training))
    return TrainingData(training, held_out, images.skipped, _unlabelled(recipe, training, others))


def _check_task(recipe: Recipe, boxes: bool) -> None:
    if boxes != recipe.detects:
        raise ValueError(
            f"task.name: {recipe.task.name} does not fit {recipe.data.name}, whose images have "
            f"{'one class each' if recipe.detects else 'boxes'}; detection needs boxes, as "
            "data.name=coco has, classification one class an image"
        )


def _streamed(recipe: Recipe, kept: Keeping) -> TrainingData:
    """As `training_data`, for streamed images; held-out ones are cut as test images are."""
    data = recipe.data
    _check_task(recipe, data.name == "coco")
    assert data.image_size is not None
    stored = tuple(stage.stored for stage in recipe.stages if stage.stored is not None)
    size = data.test_size or data.image_size
    images: Streamed
    if recipe.detects:
        judged_on = data.test_split, _side(data, data.test_split) or size
        images, sources = training_scenes(kept, stored, data.image_size, data.limit, judged_on)
    else:
        images, sources = kept.training(stored, data.image_size, data.limit)
    held, others = divided(len(images), _to_hold_out(recipe), seed=recipe.seed)
    held_out = images.select(held).in_memory(size, data.test_resize, kept.workers)
    training = images.select(others)
    _check_batches(recipe, len(training))
    return TrainingData(
        training, replace(held_out, split="held-out"), images.skipped, sources=sources
    )


def _to_hold_out(recipe: Recipe) -> float:
    share = recipe.data.holdout
    return int(share) if share >= 1 else share


def _check_batches(recipe: Recipe, images: int) -> None:
    largest = max(stage.batch_size for stage in recipe.stages)
    if largest > images:
        key = "phases, batch_size" if recipe.phases else "data.batch_size"
        held = f" beside the {_to_hold_out(recipe):g} that data.holdout keeps for checks"
        raise ValueError(
            f"{key}: {largest} images a batch, but there are only {images} to train on"
            f"{held if recipe.data.holdout >= 1 else ''}; give a smaller batch"
        )


def _unlabelled(recipe: Recipe, training: Images, others: Tensor) -> Unlabelled | None:
    """`others` and the images of another source; ValueError where the method cannot use them."""
    if recipe.data.labels is None and recipe.data.unlabelled is None:
        return None
    spec = recipe.data.unlabelled or UnlabelledSpec()
    if not spec.share:
        return None
    if spec.pseudo is None and not recipe.build_method().unlabelled:
        raise ValueError(
            f"data.unlabelled: {recipe.method['name']} cannot learn from images without labels; "
            "give data.unlabelled.pseudo, a run whose model labels them; or method=trades; or "
            "data.unlabelled.share=0, to leave them out"
        )
    if spec.pseudo is None and recipe.guard.mode == "early-stop":
        raise ValueError(
            "guard.mode: early-stop looks at training batches, where images have no labels; "
            "recover looks at held-out ones"
        )
    if recipe.data.batch_size * (1 - spec.share) < 1:
        raise ValueError(
            f"data.unlabelled.share: {spec.share} of a batch of {recipe.data.batch_size} leaves "
            "no place for a labelled image; give less"
        )
    parts = [others]
    if spec.name is not None:
        height, width = training.x.shape[2:]
        size = height if height == width else recipe.data.image_size
        source = load(spec.name, "train", root=spec.root, image_size=size).x
        parts.append(source if spec.limit is None else drawn(source, spec.limit, seed=recipe.seed))
    return together(parts, training, spec.share)
