"""Masking checks of a healthy network: it fails nothing, and nothing is moved."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from gratis.balls import L2
from gratis.evaluate import Checks, check_masking, robust_accuracy
from gratis.evaluate.checks import masking
from tests.masking import BALL, IMAGES, Through, batches, checked, failed, finding, healthy, short

__all__ = ["healthy", "short"]  # fixtures, asked for by name


# --- a healthy network


@pytest.fixture(scope="module")
def of_healthy(healthy: nn.Module) -> Checks:
    return checked(healthy, "pgd-50-10")


def test_a_healthy_network_fails_nothing(of_healthy: Checks) -> None:
    assert failed(of_healthy) == set()
    assert of_healthy.verdict == "no sign of masking found"
    assert [f.id for f in of_healthy.findings] == [f"M{i}" for i in range(1, 21)]
    ran = {f.id for f in of_healthy.findings if f.verdict != "not run"}
    assert {"M1", "M2", "M5", "M8", "M9", "M11", "M13", "M14", "M15", "M16", "M17", "M20"} <= ran
    assert "robust" not in of_healthy.verdict


def test_quick_checks_cost_a_fifth_and_say_what_did_not_run(of_healthy: Checks) -> None:
    # 10 restarts of 50 probes and a forward, a last confirmation, and the clean answer
    asking = 5 / 3  # M15 to M17, in any case
    assert of_healthy.passes <= asking + (10 * 101 + 2) / 3 / 5 + 1e-9
    assert of_healthy.passes == pytest.approx(
        (of_healthy.forwards + of_healthy.backwards) / 3 / IMAGES
    )
    assert of_healthy.level == "quick"
    for id in ("M3", "M18"):
        left = finding(of_healthy, id)
        assert left.verdict == "not run"
        assert left.statistic is None
        assert left.shown.startswith("costs about ")
        assert left.shown.endswith("passes per image; --checks full")
    assert finding(of_healthy, "M10").shown == "not applicable: needs a surrogate"


def test_plain_is_what_json_knows(of_healthy: Checks) -> None:
    plain = json.loads(json.dumps(of_healthy.plain()))
    assert list(plain) == [
        "verdict", "level", "passes", "forwards", "backwards", "seconds", "findings",
    ]  # fmt: skip
    assert list(plain["findings"][0]) == [
        "id", "name", "verdict", "statistic", "shown", "pass_at", "fail_at", "origin", "about",
    ]  # fmt: skip
    assert plain["findings"][0]["pass_at"] == "<= 0.5 % of images"
    assert plain["verdict"] == of_healthy.verdict


def test_the_model_is_left_as_it_was(healthy: nn.Module) -> None:
    model = nn.Sequential(healthy, nn.BatchNorm1d(10)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    noise = torch.get_rng_state()
    checked(model, "pgd-10")
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(noise, torch.get_rng_state())


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    """(id, price, thirds spent) of every priced check, as they run."""
    seen = []
    judge, price = masking._Run._judge, masking._Run._price
    state: dict[str, Any] = {"prices": {}, "spent": 0}

    def priced(self: Any, check: Any) -> float | str:
        state["prices"][check.id] = price(self, check)
        state["spent"] = self.subject.meter.thirds
        return state["prices"][check.id]

    def judged(self: Any, id: str, outcome: Any) -> None:
        if id in state["prices"]:
            passes = (self.subject.meter.thirds - state["spent"]) / 3 / self.subject.images
            seen.append((id, state["prices"][id], passes))
        judge(self, id, outcome)

    monkeypatch.setattr(masking._Run, "_price", priced)
    monkeypatch.setattr(masking._Run, "_judge", judged)
    return seen


@pytest.mark.usefixtures("short")
def test_full_checks_all_run_within_their_price(
    healthy: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(monkeypatch)
    told: list[tuple[int, int, str]] = []
    found = checked(
        healthy, full=True, surrogate=healthy, progress=lambda *which: told.append(which)
    )
    assert found.level == "full"
    assert not [f.id for f in found.findings if f.verdict == "not run"]
    assert failed(found) == set()
    assert len(seen) == 16
    assert [(id, price, spent) for id, price, spent in seen if spent > price + 1e-9] == []
    assert told[0] == (0, 20, "M16")
    assert {total for _, total, _ in told} == {20}


# --- other balls, other models


def test_euclidean_balls_are_checked_too(healthy: nn.Module) -> None:
    found = checked(healthy, "pgd-50-4", ball=L2(0.6))
    assert failed(found) == set()
    assert finding(found, "M12").shown.startswith("not applicable")


def test_a_model_without_any_gradient_says_so(healthy: nn.Module) -> None:
    model = Through(healthy, after=lambda z: z.detach())
    found = robust_accuracy(model, batches(), [], ball=BALL)
    checks = check_masking(model, batches, found, ball=BALL, full=True)
    assert "M9" in failed(checks)
    assert "carries no gradient" in finding(checks, "M1").shown


def test_a_model_that_is_never_right_is_no_puzzle(healthy: nn.Module) -> None:
    model = Through(healthy, after=lambda z: -z)
    wrong = [(x, model(x).argmin(1)) for x, _ in batches()]
    found = robust_accuracy(model, wrong, ["pgd-10"], ball=BALL)
    checks = check_masking(model, lambda: wrong, found, ball=BALL, full=True)
    assert finding(checks, "M1").shown == "not applicable: no image is right when clean"
    assert checks.verdict == "nothing to attack: no image is right when clean"


def test_beside_few_steps_something_is_looked_for(healthy: nn.Module) -> None:
    found = checked(healthy, "pgd-10")
    made = {f.id for f in found.findings if f.verdict != "not run"}
    assert {"M2", "M9", "M11", "M13"} <= made
    assert found.passes <= 5 / 3 + masking.LEAST
