"""What the checks of training attack, and how many images at a time."""

from torch import Tensor, nn

from gratis import Linf
from gratis.budget import Meter
from gratis.guard import watchers
from gratis.training_data import training_data
from tests.recipes import tiny


def test_checks_are_made_in_the_ball_that_is_trained_for_and_in_its_batches() -> None:
    recipe = tiny(
        "fgsm-rs", "evaluation.eps=[0.3, 0.1]", "evaluation.norm=l2", "data.batch_size=100",
        "engine.parts=5",
    )  # fmt: skip
    data = training_data(recipe)
    checker, _, _ = watchers(recipe, data.held_out)
    assert checker is not None
    assert (checker.ball, checker.size) == (Linf(0.2), 20)
    sizes: list[int] = []

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x.flatten(1)[:, :10]

    checker(Seen(), Meter())
    assert max(sizes) <= 20
    natural, _, _ = watchers(tiny("natural", "evaluation.eps=[0.3]"), data.held_out)
    assert natural is not None
    assert natural.ball == Linf(0.3)
