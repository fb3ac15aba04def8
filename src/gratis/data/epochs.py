"""How an epoch is cut into batches, wherever the images are."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor


class Epochs(ABC):
    """Batches of `batch_size` of `_count` images, in one epoch after the other.

    world: loaders that share each batch; a short last one is cut to a multiple of it, or left out
    with `drop_last`.
    """

    batch_size: int
    drop_last: bool
    world: int
    _count: int
    _next_epoch = 0

    def __len__(self) -> int:
        return len(self.batch_sizes)

    @property
    def batch_sizes(self) -> list[int]:
        """How many images each batch of an epoch holds, those of all `world` loaders."""
        full, rest = divmod(self._count, self.batch_size)
        rest -= rest % self.world
        return [self.batch_size] * full + [rest] * bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Epoch 0 when first iterated over, then 1, 2, ..."""
        number = self._next_epoch
        self._next_epoch += 1
        return self.epoch(number)

    @abstractmethod
    def epoch(self, number: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `number` from `start_batch` on."""
