"""What a model is trained for: the loss that is learned and what counts as right."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gratis.boxes import Answers, Climbed, retinanet_losses
from gratis.losses import cross_entropy, hard

NO_LABEL = -1
"""The class index of an image that has none."""


class Task(Protocol):
    """What an engine asks of a task; answers are what the network returns for a batch."""

    def loss(self, answers: Any, y: Tensor) -> Tensor:
        """The mean loss that is learned, a scalar."""
        ...

    def losses(self, answers: Any, y: Tensor) -> Tensor:
        """What attacks climb, [B]."""
        ...

    def correct(self, answers: Any, y: Tensor) -> Tensor:
        """Whether each image is answered as labelled, bool [B]."""
        ...

    def labelled(self, y: Tensor) -> Tensor:
        """How many of the images have a label that an answer can be right about."""
        ...


def check_labels(logits: Tensor, y: Tensor) -> None:
    """ValueError unless logits are [B, K] with a class for every label; reads from the device."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"the model's answers are shaped {tuple(logits.shape)}; [images, classes] is needed, "
            "with two classes or more (of one logit z make torch.cat([-z, z], 1))"
        )
    classes = logits.shape[1]
    if y.dim() == 2 and y.shape[1] == classes:
        return
    if y.dim() != 1 or int(y.max()) >= classes:
        given = f"label {int(y.max())}" if y.dim() == 1 else f"labels {tuple(y.shape)}"
        raise ValueError(
            f"{given} for a model of {classes} classes: class indices below {classes} are needed, "
            f"or a probability for each class"
        )


@dataclass(frozen=True)
class Classification:
    """One label an image: logits [B, K], y class indices [B] or probabilities [B, K].

    NO_LABEL among class indices is never right, and `labelled` leaves it out of the count.
    label_smoothing: the share of each label that `loss` spreads over all classes.
    """

    label_smoothing: float = 0.0

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross entropy, a scalar, in fp32."""
        return F.cross_entropy(logits.float(), y, label_smoothing=self.label_smoothing)

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross entropy [B] in fp32: what attacks climb."""
        return cross_entropy(logits, y)

    def correct(self, logits: Tensor, y: Tensor) -> Tensor:
        """Whether each image is classified as labelled, bool [B].

        Logits that are not finite are no answer: they count as wrong.
        """
        return (logits.argmax(1) == hard(y)) & logits.isfinite().all(1)

    def labelled(self, y: Tensor) -> Tensor:
        """How many of the images have a label, a whole number on the device of y."""
        return (y != NO_LABEL).sum() if y.dim() == 1 else _count(y)


def _count(y: Tensor) -> Tensor:
    # made where y lies: a number sent there would be waited for
    return torch.full((), len(y), dtype=torch.int64, device=y.device)


@dataclass(frozen=True)
class Detection:
    """Boxes in each image: answers of gratis.nn.detector, y [B, M, 5] as gratis.boxes has it.

    attack: the part of the loss that attacks climb, where they make a backward of their own.
    """

    attack: Climbed = "sum"

    def loss(self, answers: Answers, y: Tensor) -> Tensor:
        """RetinaNet's summed loss, the mean over images, in fp32."""
        return retinanet_losses(answers, y).mean()

    def losses(self, answers: Answers, y: Tensor) -> Tensor:
        """The part of RetinaNet's loss that attacks climb, [B] in fp32."""
        return retinanet_losses(answers, y, self.attack)

    def correct(self, answers: Answers, y: Tensor) -> Tensor:
        """False for every image [B]: boxes are judged by mean average precision, not one by one."""
        return torch.zeros(len(y), dtype=torch.bool, device=y.device)

    def labelled(self, y: Tensor) -> Tensor:
        """0: no image has a label that a single answer could meet."""
        return torch.zeros((), dtype=torch.int64, device=y.device)
