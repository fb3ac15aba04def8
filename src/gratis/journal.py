"""What happened, update by update, into log.jsonl; and the alarm when the loss is no number."""

import math
from typing import Any

import torch

from gratis.distributed import Processes
from gratis.files import LogWriter
from gratis.metrics import Metrics

FLUSH_UPDATES = 20
"""Losses are read from the device this often: each reading waits for it."""


class DivergedError(ArithmeticError):
    """The loss stopped being a number."""


class Journal:
    """Gathers updates on the device and writes them in bunches, those of all processes as one.

    totals: loss sum, images, right answers and images with a label of the epoch so far; stretch:
    right answers and images with a label since the last check. Both are part of a checkpoint.
    """

    def __init__(self, writer: LogWriter, processes: Processes) -> None:
        self.writer, self.processes = writer, processes
        self.totals = [0.0, 0.0, 0.0, 0.0]
        self.stretch = [0.0, 0.0]
        self._pending: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []
        self._correct: list[torch.Tensor] = []
        self._labelled: list[torch.Tensor] = []

    def add(self, records: list[dict[str, Any]], metrics: Metrics) -> None:
        """One record an update: update, epoch, learning_rate, spent_passes, images (ours)."""
        self._pending += records
        self._losses += metrics.losses
        self._correct += metrics.correct
        self._labelled += metrics.labelled

    @property
    def empty(self) -> bool:
        return not self._pending

    @property
    def full(self) -> bool:
        return len(self._pending) >= FLUSH_UPDATES

    def flush(self, seconds: float) -> float | None:
        """Write what is pending; returns the last loss. DivergedError for one not finite.

        A loss is the mean over processes, so that one which is not finite stops all of them.
        """
        if self.empty:
            return None
        world = self.processes.world
        kept = (self._losses, self._correct, self._labelled)
        ours = torch.stack([torch.stack(numbers).double() for numbers in kept])
        sums, correct, labelled = self.processes.total(ours).tolist()
        losses = [loss / world for loss in sums]
        for record, loss, right, known in zip(
            self._pending, losses, correct, labelled, strict=True
        ):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss became {loss} at update {record['update']} (learning rate "
                    f"{record['learning_rate']:.3g}); lower optimizer.learning_rate, or try "
                    "engine.precision=fp32; the checkpoints before it are whole"
                )
            images = world * record.pop("images")
            self.totals[0] += loss * images
            self.totals[1] += images
            self.totals[2] += right
            self.totals[3] += known
            self.stretch[0] += right
            self.stretch[1] += known
            self.writer.write({"kind": "step", **record, "loss": loss, "seconds": seconds})
        self._pending, self._losses, self._correct, self._labelled = [], [], [], []
        self.writer.flush()
        return float(losses[-1])

    def end_epoch(self, **position: Any) -> None:
        """The means over the epoch now ending (of the very inputs learned from)."""
        loss, images, right, known = self.totals
        if images:
            # boxes, say, are no labels that an answer can meet
            accuracy = {"train_accuracy": right / known} if known else {}
            self.event("epoch", train_loss=loss / images, **accuracy, **position)
        self.totals = [0.0, 0.0, 0.0, 0.0]

    def end_stretch(self) -> float:
        """The share of labelled inputs learned from that were answered rightly since the last
        check.
        """
        right, known = self.stretch
        self.stretch = [0.0, 0.0]
        return right / known if known else 0.0

    def event(self, kind: str, **values: Any) -> None:
        self.writer.write({"kind": kind, **values})
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
