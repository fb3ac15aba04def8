"""Labels that a model gives to images without any."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from gratis.assess import trained
from gratis.data import Images
from gratis.data.images import as_pixels
from gratis.distributed import Processes
from gratis.evaluate.mode import as_evaluated
from gratis.recipe import Recipe, from_plain
from gratis.run import Run
from gratis.setting import AnyLoader

BATCH = 500


def pseudo_labels(recipe: Recipe, loader: AnyLoader, processes: Processes) -> dict[str, Any] | None:
    """What the model of `data.unlabelled.pseudo` takes the unlabelled images for.

    {"labels": [M], int64, on the CPU; "record": what to log of them, with their SHA-256}. A label
    is the class of the largest logit, images as they are (not augmented), in eval mode and fp32;
    the checkpoint is the one that the run's own evaluation names, averaged weights where there
    are any. All processes get those of the leading one. None where the recipe wants no labels.

    Raises ValueError for a run whose network does not fit these images and classes.
    Source: Carmon 2019, algorithm 1 (robust self-training), its first two steps.
    """
    others = recipe.data.unlabelled
    if others is None or others.pseudo is None or loader.unlabelled is None:
        return None
    run = Run.open(others.pseudo)
    theirs = from_plain(run.recipe)
    checkpoint = theirs.evaluation.checkpoint
    state = run.whole_checkpoint(checkpoint)
    try:
        model = trained(theirs, loader.images, state).to(processes.device).eval()
    except ValueError as error:
        raise ValueError(f"data.unlabelled.pseudo: {others.pseudo}: {error}") from error
    x = loader.unlabelled.x
    with as_evaluated(model), torch.no_grad():
        answers = [
            model(as_pixels(x[first : first + BATCH].to(processes.device))).argmax(1)
            for first in range(0, len(x), BATCH)
        ]
    labels = processes.gather(torch.cat(answers))[: len(loader.unlabelled)].cpu()
    record = {
        "run": others.pseudo,
        "checkpoint": checkpoint,
        "images": len(labels),
        "of_each_class": _counts(labels, loader.images),
        "labels_sha256": hashlib.sha256(labels.numpy().data).hexdigest(),
    }
    return {"labels": labels, "record": record}


def _counts(labels: Tensor, images: Images) -> list[int]:
    counts: list[int] = torch.bincount(labels, minlength=len(images.classes)).tolist()
    return counts
