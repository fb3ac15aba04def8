"""How a model fares on images from another distribution: each cell's errors, and their means."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gratis.data.cells import Batch
from gratis.data.corruptions import COMMON, EXTRA, SEVERITIES
from gratis.evaluate.interval import clopper_pearson
from gratis.evaluate.mode import as_evaluated
from gratis.tasks import Classification

Record = dict[str, Any]
Place = tuple[str, int]
"""Of a cell: corruption and severity."""

ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's error on ImageNet-C by corruption, the mean over the five severities of 50,000 images
each: the denominators of Hendrycks 2019, section 4.2. That these belong to these names was checked
in two public evaluations, AugMix's ImageNet script and one that keeps them by name; lists of the
same numbers beside names in another order circulate as well.
"""

ALEXNET_CLEAN = 0.435
"""Its error on ImageNet's validation images (Hendrycks 2019, table 1); torchvision states 56.522 %
right for the same weights.
"""

NORMALISER = "AlexNet, 50,000 images a cell (Hendrycks 2019)"


@dataclass(frozen=True)
class Answer:
    """Of one cell: `images` that were seen, how many were `wrong`, and files that were `skipped`.

    unmasked: wrong among all of the run's classes, where `wrong` is among some of them.
    """

    images: int
    wrong: int
    skipped: int = 0
    unmasked: int | None = None

    def error(self) -> Record:
        """What results.json says of a cell; ValueError where no image was seen."""
        count, interval = share(self.wrong, self.images)
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return {
            "errors": self.wrong,
            "images": self.images,
            "error": count,
            "ci95": interval,
            **skipped,
        }

    def accuracy(self, *, unmasked: bool = False) -> Record:
        """As answers.share writes an accuracy, and of how many images."""
        wrong = self.unmasked if unmasked else self.wrong
        assert wrong is not None
        right, interval = share(self.images - wrong, self.images)
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return {
            "correct": self.images - wrong,
            "images": self.images,
            "accuracy": right,
            "ci95": interval,
            **skipped,
        }


def share(count: int, total: int) -> tuple[float, list[float]]:
    """A count of `total` images as a share and its 95 % interval; ValueError for no image."""
    if not total:
        raise ValueError("there was no image to evaluate")
    return count / total, list(clopper_pearson(count, total))


def answer(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    expected: int,
    columns: Tensor | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Answer:
    """Ask `model` (pixels in [0, 1] -> logits [B, K]) about every batch, in eval mode and fp32.

    expected: images that there are, unreadable ones among them.
    columns: [M], ascending, the classes that an answer is sought among, which hold all labels; all
    of the classes if None.
    progress: called with the images done so far.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    task = Classification()
    among = None if columns is None else columns.to(device)
    images = wrong = unmasked = 0
    with as_evaluated(model), torch.no_grad():
        for x, y in batches:
            logits, y = model(x.to(device)), y.to(device)
            missed = int((~task.correct(logits, y)).sum())
            unmasked += missed
            if among is not None:
                place = torch.searchsorted(among, y)
                missed = int((~task.correct(logits[:, among], place)).sum())
            wrong += missed
            images += len(y)
            progress(images)
    return Answer(images, wrong, expected - images, None if among is None else unmasked)


def corruption_figures(answers: Mapping[Place, Answer]) -> Record:
    """Errors by corruption and severity, and their means, each corruption weighing the same.

    cells: of every corruption in the order of `answers`, by severity.
    corruptions: the mean over its severities.
    mean_error: over the common corruptions that there are (not normalised; 15 if complete).
    mean_error_19: over all 19, where they are all there, as Mei 2022 averages.
    """
    cells: dict[str, Record] = {}
    for (corruption, severity), found in answers.items():
        cells.setdefault(corruption, {})[str(severity)] = found.error()
    errors = {name: _mean([cell["error"] for cell in row.values()]) for name, row in cells.items()}
    common = [error for name, error in errors.items() if name in COMMON]
    figures: Record = {"cells": cells, "corruptions": errors}
    if common:
        figures["mean_error"] = _mean(common)
        figures["mean_of"] = len(common)
    if set(errors) == {*COMMON, *EXTRA}:
        figures["mean_error_19"] = _mean(list(errors.values()))
    return figures


def normalised(figures: Record, clean_error: float | None) -> Record:
    """mCE and, where the clean error is known, relative mCE (Hendrycks 2019, section 4.2), as
    shares: AlexNet's own errors give 1. Nothing unless all of the 15 corruptions are there at all
    five severities.

    figures: of `corruption_figures`, on ImageNet-C. What is beyond the 15 never enters.
    Differs from the paper: denominators are sums over severities there, means here, which give
    the same quotient.
    """
    severities = {str(severity) for severity in SEVERITIES}
    if any(figures["cells"].get(name, {}).keys() != severities for name in COMMON):
        return {}
    errors = figures["corruptions"]
    ce = {name: errors[name] / ALEXNET[name] for name in COMMON}
    found: Record = {"ce": ce, "mce": _mean(list(ce.values())), "normaliser": NORMALISER}
    if clean_error is not None:
        found["relative_mce"] = _mean(
            [(errors[name] - clean_error) / (ALEXNET[name] - ALEXNET_CLEAN) for name in COMMON]
        )
    return found


def _mean(shares: list[float]) -> float:
    return sum(shares) / len(shares)
