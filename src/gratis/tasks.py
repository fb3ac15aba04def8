"""What a model is trained for: the loss that is learned and what counts as right."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gratis.losses import cross_entropy

NO_LABEL = -1
"""The class index of an image that has none."""


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
        labels = y if y.dim() == 1 else y.argmax(1)
        return (logits.argmax(1) == labels) & logits.isfinite().all(1)

    def labelled(self, y: Tensor) -> Tensor:
        """How many of the images have a label, a whole number on the device of y."""
        return (y != NO_LABEL).sum() if y.dim() == 1 else y.new_tensor(len(y), dtype=torch.int64)
