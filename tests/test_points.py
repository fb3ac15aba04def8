"""gratis.attack, the attacks' options, and evaluations that several attacks share."""

import pytest
import torch
from torch import Tensor, nn

import gratis
from gratis import L2, Linf
from gratis.attacks.confirming import confirmed
from gratis.attacks.search import Attacked
from gratis.budget import Meter
from gratis.evaluate import robust_accuracy
from gratis.evaluate.answered import Answered
from gratis.losses import cross_entropy
from gratis.tasks import Classification
from tests.problems import Counting, Recording, a_problem, batched, own_labels

EVERY = [
    *("fgsm", "bim-5", "pgd-5-2", "cw-5-2", "pgd-5-2:climb-on", "pgd-5-2:compatible"),
    "pgd-5-2:bf16",
    *("apgd-ce", "apgd-dlr", "apgd-t", "fab-t"),
]


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("name", EVERY)
def test_points_lie_in_the_ball_and_fool_exactly_the_broken_images(name: str) -> None:
    model, x, y, ball = a_problem(12)
    points = gratis.attack(model, x, y, name, ball=ball)
    assert points.shape == x.shape
    assert float((points - x).abs().max()) <= ball.eps * (1 + 1e-9)
    assert 0 <= float(points.min()) <= float(points.max()) <= 1
    found = robust_accuracy(model, [(x, y)], [name], ball=ball)
    model.eval()
    assert torch.equal(model(points).argmax(1) == y, found.robust)
    wrong = ~found.correct[:, 0]
    assert wrong.any()
    assert torch.equal(points[wrong], x[wrong])


def test_the_model_is_left_as_it_was() -> None:
    model, x, y, ball = a_problem(6)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gratis.attack(model, x, y, "autoattack", ball=ball)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["fgsm", "pgd-3-2", "cw-3", "apgd-ce", "apgd-t"])
def test_a_start_of_ones_own_is_where_the_first_restart_begins(name: str) -> None:
    model, x, _, ball = a_problem(6)
    y = own_labels(model, x)
    model.eval()
    start = ball.place(x, ball.eps * (2 * torch.rand_like(x) - 1))
    recording = Recording(model)
    gratis.attack(recording, x, y, name, ball=ball, start=start)
    torch.testing.assert_close(recording.seen[0], start)


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("square", lambda x: x, "no start to choose; those with one: fgsm, bim, pgd"),
        ("pgd-3", lambda x: x[:2], r"shape \[2, 3, 6, 5\], the images \[6, 3, 6, 5\]"),
        ("pgd-3", lambda x: (x + 0.1).clamp(0, 1), r"outside eps 0.03; project it first"),
    ],
)
def test_unusable_starts_are_refused(name: str, start: object, message: str) -> None:
    model, x, y, ball = a_problem(6)
    with pytest.raises(ValueError, match=message):
        gratis.attack(model, x, y, name, ball=ball, start=start(x))  # type: ignore[operator]


# --- climbing on


def test_climbing_on_breaks_the_same_images_and_goes_deeper() -> None:
    model, x, y, ball = a_problem()
    found = robust_accuracy(
        model, [(x, y)], ["pgd-20-2", "pgd-20-2:climb-on"], ball=ball, points=True
    )
    assert torch.equal(found.correct[:, 1], found.correct[:, 2])
    assert found.adversarial is not None
    broken = found.correct[:, 0] & ~found.robust
    model.eval()
    with torch.no_grad():
        first, last = (cross_entropy(model(found.adversarial[k]), y)[broken] for k in (0, 1))
    assert (last >= first - 1e-9).float().mean() > 0.9
    assert float((last - first).mean()) > 0
    assert found.meters[2].probes > found.meters[1].probes


# --- several attacks


def test_the_union_alone_costs_less_and_is_the_same() -> None:
    model, x, y, ball = a_problem()
    names = ["pgd-2", "pgd-20-2", "cw-20-2"]
    each = robust_accuracy(model, batched(x, y, 16), names, ball=ball)
    union = robust_accuracy(model, batched(x, y, 16), names, ball=ball, alone=False)
    assert torch.equal(each.robust, union.robust)
    for column in range(1, 4):  # what stands after the first so many
        assert torch.equal(union.correct[:, column], each.correct[:, : column + 1].all(1))
    assert union.meters[1] == each.meters[1]
    assert union.meters[3].probes < each.meters[3].probes


@pytest.mark.usefixtures("few_steps")
def test_parts_add_up_to_the_whole() -> None:
    model, x, y, ball = a_problem()
    counting = Counting(model)
    found = robust_accuracy(counting, batched(x, y, 16), ["pgd-1", "autoattack"], ball=ball)
    assert found.parts[0] == ()
    parts = found.parts[1]
    assert [part.attack for part in parts] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    standing = found.correct[:, 0]
    for part in parts:
        assert torch.equal(part.given, standing)
        assert not (part.broken & ~part.given).any()
        standing = standing & ~part.broken
    assert torch.equal(standing, found.correct[:, 2])
    assert 0 < int(standing.sum()) < int(found.correct[:, 0].sum())
    # the whole also asks for the number of classes once a pool; each part asks again at each point
    # that it found
    beyond = 1
    assert sum(p.meter.probes for p in parts) == found.meters[2].probes
    assert sum(p.meter.forwards for p in parts) + beyond == found.meters[2].forwards
    assert sum(m.forwards + m.probes for m in found.meters) == counting.forwards


# --- a success is confirmed


def test_a_point_outside_the_ball_or_rightly_classified_is_no_success() -> None:
    model, x, y, ball = a_problem(8)
    model.eval()
    y = own_labels(model, x)
    model.eval()
    other = (y + 1) % 4
    attacked = Attacked(
        *(model, x, other, ball, cross_entropy, Classification().correct),
        keys=list(range(8)),
        meter=Meter(),
    )
    points = x.clone()  # misclassified (the labels are others), and in the ball
    points[0] = (x[0] + 2 * ball.eps).clamp(0, 1)  # too far
    points[1, 0, 0, 0] = -1e-4  # outside the pixel range
    attacked.y[2] = y[2]  # rightly classified
    said = torch.ones(8, dtype=torch.bool)
    said[3] = False  # nobody said so
    assert confirmed(attacked, points, said).tolist() == [False] * 4 + [True] * 4
    assert attacked.meter.forwards == 7


def test_successes_that_do_not_hold_are_counted() -> None:
    """A network that answers otherwise while gradients are taken: no success holds afterwards."""

    class Turning(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            answers: Tensor = self.model(x)
            return -answers if x.requires_grad else answers

    model, x, _, ball = a_problem(10)
    y = own_labels(model, x)
    found = robust_accuracy(Turning(model), batched(x, y, 4), ["pgd-2", "pgd-3"], ball=Linf(1e-9))
    assert found.robust.all()
    assert found.rejected == (10, 10)
    assert robust_accuracy(model, batched(x, y, 4), ["pgd-9"], ball=ball).rejected == (0,)


@pytest.mark.parametrize("ball", [Linf(8 / 255), Linf(1e-4), L2(0.5), L2(1e-3)], ids=repr)
def test_rounding_in_float32_is_no_offence(ball: Linf | L2) -> None:
    torch.manual_seed(1)
    x = torch.rand(64, 3, 8, 8)
    points = ball.place(x, ball.project(x, 10 * torch.randn_like(x)))
    y = torch.zeros(64, dtype=torch.long)

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([0.0, 1.0]).expand(len(x), 2)

    attacked = Attacked(
        *(Wrong(), x, y, ball, cross_entropy, Classification().correct),
        keys=list(range(64)),
        meter=Meter(),
    )
    assert confirmed(attacked, points, torch.ones(64, dtype=torch.bool)).all()


# --- going on


class Kept:
    """Outcomes in memory."""

    def __init__(self) -> None:
        self.answers: dict[int, dict[str, object]] = {}

    def get(self, place: int) -> Answered | None:
        kept = self.answers.get(place)
        return None if kept is None else Answered.of_plain(kept)

    def put(self, place: int, answered: Answered) -> None:
        self.answers[place] = answered.plain()


@pytest.mark.usefixtures("few_steps")
def test_an_interrupted_evaluation_goes_on_as_if_it_had_not_stopped() -> None:
    model, x, y, ball = a_problem()
    x[30], y[30] = x[3], y[3]  # a copy, whose key depends on those before it
    attacks = ["pgd-5-2", "autoattack"]
    options = {"ball": ball, "examples": 20, "points": True}
    whole = robust_accuracy(model, batched(x, y, 5), attacks, **options)
    kept = Kept()
    robust_accuracy(model, batched(x, y, 5), attacks, **options, outcomes=kept)
    del kept.answers[1]
    counting = Counting(model)
    again = robust_accuracy(counting, batched(x, y, 5), attacks, **options, outcomes=kept)
    assert torch.equal(again.correct, whole.correct)
    assert again.meters == whole.meters
    assert again.adversarial is not None
    assert whole.adversarial is not None
    assert torch.equal(again.adversarial, whole.adversarial)
    for one, other in zip(again.parts[1], whole.parts[1], strict=True):
        assert one.attack == other.attack
        assert torch.equal(one.given, other.given)
        assert torch.equal(one.broken, other.broken)
        assert one.meter == other.meter
    assert 0 < counting.backwards < sum(m.probes for m in whole.meters)


# --- float32: kernels differ by shape


def test_in_float32_the_batch_size_changes_next_to_nothing() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )
    x = torch.rand(500, 1, 16, 16)
    y = own_labels(net, x)
    sizes = [robust_accuracy(net, batched(x, y, n), ["pgd-10"], ball=Linf(0.01)) for n in (500, 37)]
    different = int((sizes[0].robust != sizes[1].robust).sum())
    assert 100 < int(sizes[0].robust.sum()) < 400
    assert different <= 0.002 * len(x)
