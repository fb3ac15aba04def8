"""One run in the making: the loop over batches, and how a run goes on from a checkpoint."""

from gratis.training.loop import Training

__all__ = ["Training"]
