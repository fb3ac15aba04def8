"""Masking checks that compare attacks and that look at their points."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gratis.balls import L1, L2, Ball, Linf
from gratis.evaluate import Robustness, check_masking, robust_accuracy
from gratis.evaluate.checks import paired, points
from tests.masking import (
    BALL,
    X,
    batches,
    checked,
    failed,
    finding,
    healthy,
    masked,
    short,
    subject,
    verdict,
)

__all__ = ["healthy", "short"]  # fixtures, asked for by name


# --- attacks compared


def evaluated(healthy: nn.Module, **columns: int) -> Robustness:
    """An evaluation in which each attack leaves the first so many right images standing."""
    clean = robust_accuracy(healthy, batches(), [], ball=BALL).correct[:, 0]
    order = clean.cumsum(0)
    right = [clean, *(clean & (order <= count) for count in columns.values())]
    names = tuple(name.replace("_", "-") for name in columns)
    correct = torch.stack(right, 1)
    measured = robust_accuracy(healthy, batches(), [], ball=BALL)
    return replace(measured, attacks=names, correct=correct, robust=correct.all(1))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("columns", "id", "statistic", "expected"),
    [
        ({"fgsm": 50, "pgd_50_10": 60}, "M1", 10, "fail"),
        ({"fgsm": 50, "pgd_50_10": 52}, "M1", 2, "warn"),  # 2 of 100 may be chance
        ({"fgsm": 50, "pgd_50_10": 51}, "M1", 1, "pass"),
        ({"fgsm": 80, "pgd_10": 40, "pgd_50_10": 40}, "M2", 40, "fail"),
        ({"fgsm": 60, "pgd_10": 40, "pgd_50_10": 40}, "M2", 20, "warn"),
        ({"pgd_50_10": 60, "cw_50": 40, "square": 30}, "M3", 10, "fail"),
        ({"pgd_50_10": 60, "fab_t": 40, "square": 60}, "M3", 0, "pass"),
        ({"pgd_10": 40, "pgd_50_10": 60}, "M8", 20, "fail"),
        ({"pgd_50_10": 60, "autoattack": 40}, "M18", 20, "fail"),
        ({"pgd_50_10": 60, "autoattack": 54}, "M18", 6, "warn"),
    ],
)
def test_columns_of_the_evaluation_are_compared(
    healthy: nn.Module, columns: dict[str, int], id: str, statistic: float, expected: str
) -> None:
    found = check_masking(healthy, batches, evaluated(healthy, **columns), ball=BALL)
    assert finding(found, id).statistic == pytest.approx(statistic)
    assert finding(found, id).verdict == expected


def test_columns_of_what_is_left_are_not_taken_for_attacks_alone(healthy: nn.Module) -> None:
    measured = evaluated(healthy, fgsm=50, pgd_10=40, pgd_50_10=30)
    for alone in (True, False):
        given = subject(healthy, alone=alone)
        given.found = measured
        assert given.given("fgsm") is not None  # the first column is alone in any case
        assert (given.given("pgd-10") is not None) == alone
        assert given.climber.name == ("pgd-50-10" if alone else "pgd-50")


def test_what_gradients_do_not_see_others_find(healthy: nn.Module) -> None:
    model = masked(healthy)
    given = subject(model, "pgd-50", ball=Linf(0.25), surrogate=healthy)
    assert verdict("M4", paired._whole_box(given)) == "fail"
    assert verdict("M10", paired._transfer(given)) == "fail"
    # many digits keep their class in noise, but not in noise as strong as this
    given = subject(model, "pgd-10", ball=Linf(0.45))
    assert verdict("M6", paired._random_points(given)) == "fail"


@pytest.mark.usefixtures("short")
def test_square_finds_what_autoattack_with_gradients_does_not(healthy: nn.Module) -> None:
    given = subject(masked(healthy), "pgd-50", ball=Linf(0.25))
    assert verdict("M18", paired._autoattack(given)) == "fail"
    spent = given.meter.thirds
    outcome = paired._square(given)
    assert verdict("M3", outcome) == "fail"
    assert given.meter.thirds == spent  # AutoAttack's own Square said so
    # and that of the evaluation, where it has an AutoAttack
    evaluation = subject(masked(healthy), "autoattack", ball=Linf(0.25))
    again = paired._square(evaluation)
    assert evaluation.meter.thirds == 0
    assert verdict("M3", again) == "fail"


def test_a_step_too_short_is_seen(healthy: nn.Module) -> None:
    found = checked(healthy, "pgd-50-4:alpha=0.0005", ball=Linf(0.2))
    assert "M8" in failed(found)
    assert "alpha=0.0005" in finding(found, "M8").shown


def test_what_does_not_converge_is_seen(healthy: nn.Module) -> None:
    given = subject(healthy, "pgd-50:alpha=0.0005", ball=Linf(0.2))
    assert verdict("M7", paired._converged(given)) == "fail"
    given = subject(healthy, "pgd-50-10")
    assert verdict("M7", paired._converged(given)) == "pass"


def test_accuracy_that_rises_with_eps_is_seen(
    healthy: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient that misleads only from half of eps on."""
    attacked = paired.Subject._attacked

    def lost(self: Any, name: str, among: Tensor, ball: Ball) -> Tensor:
        return among if ball.eps > BALL.eps else attacked(self, name, among, ball)

    monkeypatch.setattr(paired.Subject, "_attacked", lost)
    outcome = paired._rise(subject(healthy))
    assert verdict("M5", outcome) == "fail"
    assert "at 0.6" in outcome.shown


def test_momentum_fgsm_climbs_inside_the_ball(healthy: nn.Module) -> None:
    x, y = next(iter(batches()))
    point = paired.momentum_fgsm(healthy, x, y, BALL)
    assert (BALL.size(point - x) <= BALL.eps * (1 + 1e-5)).all()
    assert point.min() >= 0
    assert point.max() <= 1
    loss = F.cross_entropy(healthy(x), y)
    assert F.cross_entropy(healthy(point), y) > 2 * loss


# --- points and audit


def test_gradients_and_points_of_a_linear_model_in_closed_form() -> None:
    """Two classes, so that one direction is the worst at every point of the ball."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    def two() -> Iterator[tuple[Tensor, Tensor]]:
        x = X[:80] * 0.6 + 0.2
        yield x, model(x).argmax(1)

    ball = Linf(0.02)
    measured = robust_accuracy(model, two(), ["pgd-50-10"], ball=ball)
    found = check_masking(model, two, measured, ball=ball)
    assert finding(found, "M11").statistic == pytest.approx(1, abs=1e-4)
    assert finding(found, "M12").statistic == pytest.approx(0, abs=1e-4)
    assert finding(found, "M12").verdict == "report"
    assert finding(found, "M14").statistic == 100
    assert "cross entropy or DLR" not in finding(found, "M9").shown
    assert failed(found) == set()


def test_other_images_and_points_outside_are_found_out(healthy: nn.Module) -> None:
    found = robust_accuracy(healthy, batches(), ["pgd-10"], ball=BALL, examples=4)
    assert found.examples is not None
    far = replace(found.examples, adversarial=1 - found.examples.clean)
    audit = finding(check_masking(healthy, batches, replace(found, examples=far), ball=BALL), "M20")
    assert audit.verdict == "fail"
    assert "4 points lie outside the ball" in audit.shown

    doubtful = replace(found, rejected=(2,))
    audit = finding(check_masking(healthy, batches, doubtful, ball=BALL), "M20")
    assert "2 successes of the evaluation did not hold when asked again" in audit.shown
    few = replace(found, rejected=(1,))
    assert finding(check_masking(healthy, batches, few, ball=BALL), "M20").verdict == "pass"

    def shuffled() -> list[tuple[Tensor, Tensor]]:
        return [(x, y.roll(1)) for x, y in batches()]

    checks = check_masking(healthy, shuffled, found, ball=BALL)
    assert "clean answers are not those of the evaluation" in finding(checks, "M20").shown
    assert checks.verdict == "evaluation unreliable"
    with pytest.raises(ValueError, match="gives 64 images, the evaluation has 100"):
        check_masking(healthy, lambda: list(batches())[:1], found, ball=BALL)


def test_an_evaluation_weaker_than_ten_steps_is_seen(healthy: nn.Module) -> None:
    """Its attack climbs another loss by steps too short; the checks' own do not."""
    found = checked(healthy, "cw-50:alpha=0.00001", full=True)
    assert "M8" in failed(found)
    assert "which breaks" in finding(found, "M8").shown
    assert "M8" not in failed(checked(healthy, "pgd-20", full=True))
    assert "M8" not in failed(checked(healthy, "fgsm", full=True)), "it claims no more than a step"


def test_the_whole_box_of_l1_holds_every_image(healthy: nn.Module) -> None:
    given = subject(healthy, "pgd-2", ball=L1(1.0))
    assert paired._widest(given) == 64.0
    assert paired._widest(subject(healthy, "pgd-2", ball=L2(1.0))) == 8.0


def test_rounding_to_8_bits_is_that_of_the_pixels_range(healthy: nn.Module) -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x = torch.rand(4, 1, 8, 8) * 255
    point = points.Points(x, torch.zeros(4).long(), x, torch.ones(4, dtype=torch.bool))
    asked: list[Tensor] = []
    wide.register_forward_pre_hook(lambda module, given: asked.append(given[0]))
    given = subject(healthy, "pgd-2")
    given.model, given.ball = wide, Linf(8.0, 0.0, 255.0)
    points.rounded(given, point)
    torch.testing.assert_close(asked[0], x.round())
    del asked[:]
    given.ball = Linf(0.1, -1.0, 1.0)
    points.rounded(given, points.Points(x, point.y, x / 127.5 - 1, point.broken))
    torch.testing.assert_close((asked[0] + 1) * 127.5, x.round(), rtol=0, atol=1e-3)
