"""Masking checks: what is planted is found, a healthy network fails nothing, nothing is moved."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gratis.attacks import autoattack
from gratis.attacks.apgd import APGD
from gratis.attacks.square import Square
from gratis.balls import L2, Ball, Linf
from gratis.evaluate import Checks, Finding, Robustness, check_masking, robust_accuracy
from gratis.evaluate.checks import masking, paired
from gratis.evaluate.checks.outcome import Outcome
from gratis.evaluate.checks.rules import RULES, judged
from gratis.evaluate.checks.subject import Subject
from gratis.methods import PGDTraining, fgsm, fgsm_rs
from gratis.passes import Method
from gratis.tasks import Classification

BALL = Linf(0.15)
IMAGES = 100


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.tensor(data.target)[order]


X, Y = digits()


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Images that no network here was trained on."""
    for first in range(1500, 1500 + IMAGES, 64):
        last = min(first + 64, 1500 + IMAGES)
        yield X[first:last], Y[first:last]


def trained(method: Method, epochs: int, width: int = 64, rate: float = 0.01) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * 15 + 1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        chosen = torch.randperm(1500, generator=generator).split(100)
        for x, y in method.batches([(X[c], Y[c]) for c in chosen], model):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def healthy() -> nn.Module:
    return trained(PGDTraining(BALL, 7), epochs=8)


def checked(
    model: nn.Module, attack: str = "pgd-50-4", ball: Ball = BALL, **options: Any
) -> Checks:
    """What the checks find behind an evaluation under `attack`."""
    found = robust_accuracy(model, batches(), [attack], ball=ball, examples=4)
    return check_masking(model, batches, found, ball=ball, **options)


def subject(model: nn.Module, *attacks: str, ball: Ball = BALL, **options: Any) -> Subject:
    """What single checks are given, after an evaluation under `attacks`."""
    found = robust_accuracy(model, batches(), attacks, ball=ball)
    given = {"alone": True, "surrogate": None, "history": None, "classes": 10} | options
    return Subject(model, batches, found, ball, Classification(), 0, **given)


def verdict(id: str, outcome: Outcome) -> str:
    assert outcome.statistic is not None
    return judged(RULES[id], outcome.statistic, outcome.images or IMAGES)


def finding(checks: Checks, id: str) -> Finding:
    return next(f for f in checks.findings if f.id == id)


def failed(checks: Checks) -> set[str]:
    return {f.id for f in checks.findings if f.verdict == "fail"}


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
    assert of_healthy.passes <= (10 * 101 + 2) / 3 / 5 + 1e-9
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


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """An AutoAttack of two attacks and a Square of few queries."""
    from gratis.attacks import _WHOLE

    square = Square("square", queries=100)
    monkeypatch.setitem(_WHOLE, "square", square)
    monkeypatch.setattr(autoattack, "STANDARD", (APGD("apgd-ce"), square))


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


# --- planted failures


class Quantise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 4).round() / 4


class Through(nn.Module):
    """A model and something done to its input or its logits."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.model(self.before(x)))
        return out


class NoGradient(torch.autograd.Function):
    """The identity, with a backward of zeros: a gradient-zeroing hook."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.zeros_like(grads[0])


def masked(model: nn.Module) -> nn.Module:
    return Through(model, before=NoGradient.apply)


def optimised(model: nn.Module) -> nn.Module:
    """Sharpens its answer by a step on the input before it gives it."""

    def step(x: Tensor) -> Tensor:
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            logits = model(inner)
            (grad,) = torch.autograd.grad(logits.logsumexp(1).sum(), inner)
        return x + 0.01 * grad.sign()

    return Through(model, before=step)


class Moving(nn.Module):
    """Batch norm that goes on learning its statistics in evaluation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.norm = model, nn.BatchNorm1d(10, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x)
        self.norm.train()
        self.norm(torch.cat([z, -z]).detach())
        return z


PLANTED: dict[str, tuple[Callable[[nn.Module], nn.Module], set[str]]] = {
    "softmaxed output": (lambda m: nn.Sequential(m, nn.Softmax(1)), {"M16"}),
    "quantised input": (lambda m: nn.Sequential(Quantise(), m), {"M9", "M14"}),
    "randomised logits": (
        lambda m: Through(m, after=lambda z: z + 0.1 * torch.randn_like(z)), {"M15"},
    ),
    "dropout in eval": (
        lambda m: Through(m, before=lambda x: F.dropout(x, 0.1, training=True)), {"M15"},
    ),
    "logits x 1000": (lambda m: Through(m, after=lambda z: 1000 * z), {"M9"}),
    "zeroed gradient": (masked, {"M9", "M14"}),
    "constant": (lambda m: Through(m, after=lambda z: 0 * z + 9 * torch.eye(10)[3]), {"M9"}),
    "test-time optimiser": (optimised, {"M17"}),
    "moving statistics": (Moving, {"M17", "M20"}),
}  # fmt: skip

UNRELIABLE = {"M15", "M16", "M17", "M20"}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_found(healthy: nn.Module, what: str) -> None:
    plant, expected = PLANTED[what]
    found = checked(plant(healthy).eval())
    assert expected <= failed(found)
    if expected & UNRELIABLE:
        assert found.verdict == "evaluation unreliable"
    else:
        assert found.verdict.startswith("signs: M")
        assert expected <= set(found.verdict.removeprefix("signs: ").split(", "))
    for id in failed(found):
        assert RULES[id].advice in finding(found, id).about


def test_probabilities_are_refused_before_anything_else(healthy: nn.Module) -> None:
    found = checked(nn.Sequential(healthy, nn.Softmax(1)), "pgd-10", full=True)
    others = [f for f in found.findings if f.id not in ("M15", "M16", "M17")]
    assert {f.verdict for f in others} == {"not run"}
    assert {f.shown for f in others} == {"not applicable: the outputs are probabilities, see M16"}
    assert "Give the logits" in finding(found, "M16").about


def test_a_named_module_is_attacked_past(healthy: nn.Module) -> None:
    """With an identity backward the quantised network is about as breakable as the one inside."""
    found = checked(nn.Sequential(Quantise(), healthy))
    shown = finding(found, "M14").shown
    assert "in 0 (Quantise); with an identity backward for it pgd-10 leaves" in shown
    left, before = shown.partition("pgd-10 leaves ")[2].split(" images standing, the evaluation ")
    assert int(left.split()[0]) < int(before) - 10


def test_a_step_in_the_forward_itself_is_named_with_advice(healthy: nn.Module) -> None:
    found = checked(masked(healthy))
    assert "in Through; make the step a module of its own" in finding(found, "M14").shown


def test_a_straight_through_gradient_is_not_the_slope(healthy: nn.Module) -> None:
    model = Through(healthy, before=lambda x: x + ((x * 4).round() / 4 - x).detach())
    assert {"M14"} <= failed(checked(model))


def test_maxima_and_kinks_are_differentiable_enough() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.MaxPool2d(2), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    assert finding(checked(model), "M14").verdict == "pass"


# --- overfitting to one step


STRONG = Linf(0.3)


@pytest.mark.parametrize(
    "method", [fgsm(STRONG), fgsm_rs(STRONG, step_size=0.6)], ids=["zero start", "step of 2 eps"]
)
def test_networks_of_one_step_fail_the_overfitting_check(method: Method) -> None:
    model = trained(method, epochs=40, width=128, rate=0.02)
    found = checked(model, ball=STRONG)
    assert "M2" in failed(found)
    assert found.verdict.startswith("signs: ")
    assert "pgd-10" in finding(found, "M2").shown


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([0.5, 0.6, 0.1], "fail"),
        ([0.5, 0.6, 0.1, 0.55], "pass"),  # undone, by the guard for example
        ([0.5, 0.45, 0.4, 0.35, 0.3], "pass"),
        ([], "pass"),
    ],
)
def test_falls_in_a_training_log(healthy: nn.Module, history: list[float], expected: str) -> None:
    outcome = paired._overfitting(subject(healthy, "fgsm", "pgd-10", history=tuple(history)))
    assert outcome.certain == (expected == "fail")
    assert outcome.certain or verdict("M2", outcome) == "pass"
    assert "falls by" in outcome.shown


def test_a_fall_in_the_training_log_fails_the_check(healthy: nn.Module) -> None:
    found = checked(healthy, history=[0.6, 0.1])
    assert finding(found, "M2").verdict == "fail"


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

    def shuffled() -> list[tuple[Tensor, Tensor]]:
        return [(x, y.roll(1)) for x, y in batches()]

    checks = check_masking(healthy, shuffled, found, ball=BALL)
    assert "clean answers are not those of the evaluation" in finding(checks, "M20").shown
    assert checks.verdict == "evaluation unreliable"
    with pytest.raises(ValueError, match="gives 64 images, the evaluation has 100"):
        check_masking(healthy, lambda: list(batches())[:1], found, ball=BALL)


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
