"""How a network is looked at: checks while it trains, the guard, the evaluation at the end."""

import math
from dataclasses import dataclass
from typing import Literal

from gratis.names import parse_attack


@dataclass(frozen=True)
class Check:
    """A cheap look at held-out training images: every so many data passes, PGD on some images."""

    every: float = 1.0
    images: int = 256
    attack: str = "pgd-10"

    def __post_init__(self) -> None:
        parse_attack(self.attack)
        if not self.every > 0 or self.images < 1:
            raise ValueError("every and images must be positive")


@dataclass(frozen=True)
class Guard:
    """mode: "recover" undoes catastrophic overfitting and goes on; "early-stop" is Wong 2020's
    own (PGD-5 on the first minibatch of each epoch, a drop over 20 points); "off".
    """

    mode: Literal["recover", "early-stop", "off"] = "recover"


@dataclass(frozen=True)
class Evaluation:
    """attacks: names, each run at every eps.  eps: None takes the method's own.
    norm: None takes the method's.  limit: how many test images, all unless given.
    batch_size: images attacked at a time, in checks during training too, which changes no outcome
    but rounding; None takes the training batch, or one of its `engine.parts`.
    """

    attacks: tuple[str, ...] = ("pgd-50-10",)
    eps: tuple[float, ...] | None = None
    norm: Literal["linf", "l2", "l1"] | None = None
    limit: int | None = None
    checkpoint: Literal["last", "best"] = "last"
    batch_size: int | None = None

    def together(self, batch: int, parts: int | None) -> int:
        """Images that the network is asked about at a time, where it learns from `batch` in so many
        `parts`.
        """
        return self.batch_size or math.ceil(batch / (parts or 1))

    def __post_init__(self) -> None:
        for attack in self.attacks:
            parse_attack(attack)
        if not self.attacks:
            raise ValueError("attacks is empty; name at least one attack, such as pgd-50-10")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1 image")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
