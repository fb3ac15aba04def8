"""Any method on a batch that is learned part by part, so that it need not fit all at once."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from gratis.balls import Ball
from gratis.passes import Batch, Method, Pass, Probe


def in_parts(make: Callable[[], Method], parts: int) -> Method:
    """The method that `make` builds, for batches that are learned in so many parts in turn."""
    return make() if parts == 1 else InParts(make, parts)


class InParts(Method):
    """A method whose batches are cut into equal parts, learned one after the other.

    The parts' generators run in step: each hands out its next pass in turn, and the update
    follows the last one's. Gradients and running statistics are then those of so many processes
    that learn a part each (Pass.parts). Perturbations that a method keeps are kept by each part
    for itself; together they are in the order of the batch.

    make: builds the method, once for each part.
    Differs from as many processes: what Fast AdvProp shuffles crosses processes, not the parts of
    one, since these are not there at the same time.
    """

    def __init__(self, make: Callable[[], Method], parts: int) -> None:
        self.each = [make() for _ in range(parts)]

    @property
    def ball(self) -> Ball | None:  # type: ignore[override]
        return self.each[0].ball

    @property
    def own_loop(self) -> bool:
        return False

    @property
    def auxiliary(self) -> bool:
        return self.each[0].auxiliary

    @property
    def equal_speed(self) -> bool:
        return self.each[0].equal_speed

    @property
    def loss_scaling(self) -> bool:
        return self.each[0].loss_scaling

    @property
    def unlabelled(self) -> bool:
        return self.each[0].unlabelled

    def bind(self, model: nn.Module, x: Tensor) -> None:
        for method in self.each:
            method.bind(model, x)

    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        count = len(self.each)
        steps = [
            method.passes(part, probe)
            for method, part in zip(self.each, batch.split(count), strict=True)
        ]
        ended = 0
        while ended < count:  # all end in the same round, which takes each to its end
            for place, wanted in enumerate(steps):
                p = next(wanted, None)
                if p is None:
                    ended += 1
                    continue
                last = place == count - 1
                # its x is the method's own, where the method looks for the input gradient
                yield replace(p, part=place, parts=count, update=p.update and last)

    def parts(self, images: int) -> tuple[int, ...]:
        """Of one of the parts: a batch holds the parts one after the other."""
        return self.each[0].parts(images // len(self.each))

    def update_thirds(self, images: int) -> tuple[int, ...]:
        count = len(self.each)
        return tuple(count * cost for cost in self.each[0].update_thirds(images // count))

    @property
    def cost(self) -> float:
        return self.each[0].cost

    def state(self) -> dict[str, Tensor]:
        states = [method.state() for method in self.each]
        return {key: torch.cat([state[key] for state in states]) for key in states[0]}

    def load_state(self, state: dict[str, Tensor]) -> None:
        count = len(self.each)
        for place, method in enumerate(self.each):
            method.load_state({k: v.tensor_split(count)[place] for k, v in state.items()})

    def gentler(self) -> tuple[Method, str] | None:
        found = [method.gentler() for method in self.each]
        if found[0] is None:
            return None
        methods = iter([method for method, _ in found if method is not None])  # type: ignore[misc]
        return InParts(lambda: next(methods), len(self.each)), found[0][1]
