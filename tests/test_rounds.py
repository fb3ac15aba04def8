"""Attacks of several rounds: each over all images that stand, and only what holds ends any."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from gratis import attack
from gratis.attacks import Attacked, autoattack
from gratis.attacks.rounds import in_rounds, other_classes
from gratis.balls import Ball, Linf
from gratis.evaluate import robust_accuracy
from tests.problems import batched, linear_model, own_labels
from tests.test_packing import attacked_by


def test_each_round_is_made_of_what_stands_packed_anew() -> None:
    x = torch.rand(12, 1, 2, 2)
    attacked = attacked_by(nn.Identity(), x, torch.zeros(12, dtype=torch.int64), Linf(0.1), 4)
    seen: list[tuple[str, list[int]]] = []

    def go(some: Attacked, rows: Tensor, each: str) -> tuple[Tensor, Tensor]:
        assert torch.equal(some.x, x[rows])
        seen.append((each, rows.tolist()))
        return some.x + 1, rows % 3 != 0

    points, broken = in_rounds(attacked, ["one", "two", "three"], go)
    first = [("one", [0, 1, 2, 3]), ("one", [4, 5, 6, 7]), ("one", [8, 9, 10, 11])]
    assert seen == [*first, ("two", [0, 3, 6, 9]), ("three", [0, 3, 6, 9])]
    assert broken.tolist() == [i % 3 != 0 for i in range(12)]
    assert torch.equal(points, x + 1)


def test_all_broken_end_the_rounds() -> None:
    attacked = attacked_by(nn.Identity(), torch.rand(5, 1, 2, 2), torch.zeros(5), Linf(0.1), None)
    seen = []

    def go(some: Attacked, rows: Tensor, each: int) -> tuple[Tensor, Tensor]:
        seen.append(each)
        return some.x, torch.ones(len(rows), dtype=torch.bool)

    assert in_rounds(attacked, range(3), go)[1].all()
    assert seen == [0]


def test_other_classes_are_ranked_without_the_label() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0], [1.0, 2.0, 3.0]])
    x, y = logits.view(3, 3, 1, 1), torch.tensor([0, 0, 1])
    attacked = attacked_by(nn.Flatten(), x, y, Linf(0.1), 2)
    assert other_classes(attacked).tolist() == [[2, 1], [1, 2], [2, 0]]
    assert attacked.meter.forwards == 3


# --- what is claimed and does not hold


@dataclass(frozen=True)
class Made:
    """An attack that is a function."""

    name: str
    attack: Callable[[Attacked], tuple[Tensor, Tensor]]

    def parameters(self, ball: Ball, classes: int) -> dict[str, float | int | str]:
        return {}

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        return self.attack(attacked)


def lie(attacked: Attacked) -> tuple[Tensor, Tensor]:
    """Claims every image, at the image itself."""
    return attacked.x, torch.ones(len(attacked.x), dtype=torch.bool)


def downhill(attacked: Attacked) -> tuple[Tensor, Tensor]:
    """Moves all images of a linear two-class model by eps towards the other class."""
    weight = attacked.model[1].weight  # type: ignore[index]
    side = (weight[1] - weight[0]).sign().view(1, *attacked.x.shape[1:])
    towards = torch.where((attacked.y == 0).view(-1, 1, 1, 1), side, -side)
    points = attacked.ball.clip(attacked.x + attacked.ball.eps * towards)
    with torch.no_grad():
        return points, ~attacked.correct(attacked.model(points), attacked.y)


@pytest.mark.parametrize("order", [("liar", "truth"), ("truth", "liar")])
def test_a_claim_that_does_not_hold_shields_no_image(
    order: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    model, x = linear_model(2, 9), torch.rand(60, 1, 3, 3, dtype=torch.float64)
    y, ball = own_labels(model, x), Linf(0.1)
    monkeypatch.setattr(autoattack, "STANDARD", (Made("truth", downhill),))
    alone = robust_accuracy(model, batched(x, y, 16), ["autoattack"], ball=ball)
    parts = {"liar": Made("liar", lie), "truth": Made("truth", downhill)}
    monkeypatch.setattr(autoattack, "STANDARD", tuple(parts[name] for name in order))
    found = robust_accuracy(model, batched(x, y, 16), ["autoattack"], ball=ball)
    assert torch.equal(found.robust, alone.robust)
    assert 5 < int(found.robust.sum()) < 55
    assert found.rejected == (int(found.robust.sum()),), "claimed, and standing"
    broken = {part.attack: int(part.broken.sum()) for part in found.parts[0]}
    assert broken == {"liar": 0, "truth": int((~found.robust).sum())}


# --- gratis.attack


def test_labels_and_answers_that_do_not_go_together_are_refused() -> None:
    x, ball = torch.rand(4, 1, 2, 2), Linf(0.1)
    one = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="two classes or more"):
        attack(one, x, torch.zeros(4, dtype=torch.int64), "pgd-2", ball=ball)
    three = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="label 3 for a model of 3 classes"):
        attack(three, x, torch.tensor([1, 2, 3, 1]), "pgd-2", ball=ball)


def test_points_of_a_small_ball_are_a_start_in_it() -> None:
    torch.manual_seed(0)
    model, ball = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), Linf(0.0012)
    x = torch.rand(64, 3, 8, 8)
    y = own_labels(model, x)
    points = attack(model, x, y, "pgd-5", ball=ball)
    assert (points - x).abs().max() > ball.eps * (1 + 1e-5), "rounding, of pixels near 1"
    attack(model, x, y, "pgd-5", ball=ball, start=points)
    with pytest.raises(ValueError, match="outside eps"):
        attack(model, x, y, "pgd-5", ball=ball, start=ball.clip(x + 0.0013))
