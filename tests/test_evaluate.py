"""Robust accuracy: exact answers on linear models, and that nothing but the model matters."""

import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gratis.attacks import Attacked, build_attack
from gratis.attacks.pgd_attack import STEPS_BETWEEN_DROPS
from gratis.balls import L2, Ball, Linf
from gratis.budget import Meter
from gratis.evaluate import Robustness, robust_accuracy
from gratis.losses import cross_entropy
from gratis.tasks import Classification


def batched(x: Tensor, y: Tensor, size: int | None = None) -> list[tuple[Tensor, Tensor]]:
    size = size or len(x)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def linear_model(classes: int, pixels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).double()


def conv_net(channels: int = 3, classes: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def own_labels(model: nn.Module, x: Tensor) -> Tensor:
    """What the model itself says of x: it is right about every image."""
    model.eval()
    with torch.no_grad():
        labels = model(x).argmax(1)
    model.train()
    return labels


def a_problem(count: int = 40) -> tuple[nn.Module, Tensor, Tensor, Ball]:
    """A float64 net, labels that it mostly gets right, and a radius that breaks about half."""
    torch.manual_seed(5)
    model = conv_net().double()
    x = torch.rand(count, 3, 6, 5, dtype=torch.float64)
    y = own_labels(model, x)
    y[::7] = (y[::7] + 1) % 4
    return model, x, y, Linf(0.03)


# --- the exact answer


def distance_to_the_boundary(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """For each image the largest gain of (z_j - z_y) within the ball, less the margin, over j."""
    w = model[1].weight
    z = model(x)
    worst = torch.full((len(x),), -torch.inf, dtype=x.dtype)
    for j in range(z.shape[1]):
        direction = (w[j] - w[y]).view_as(x)
        if ball.norm == "linf":
            room = torch.where(direction > 0, ball.high - x, x - ball.low).clamp(max=ball.eps)
            gain = (direction.abs() * room).flatten(1).sum(1)
        else:  # the box never binds in these tests
            gain = ball.eps * direction.flatten(1).norm(dim=1)
        crossed = torch.where(y == j, -torch.inf, z[:, j] - z[torch.arange(len(y)), y] + gain)
        worst = torch.maximum(worst, crossed)
    return worst.detach()


def a_linear_problem(
    classes: int, sharpness: float, ball: Ball
) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Model, images, labels (a tenth of them wrong) and which images can be broken at all."""
    x = torch.rand(200, 1, 6, 8, dtype=torch.float64)
    model = linear_model(classes, 48)
    for p in model.parameters():
        p.data *= sharpness
    y = own_labels(model, x)
    y[:20] = (y[:20] + 1) % classes
    worst = distance_to_the_boundary(model, x, y, ball)
    assert worst.abs().min() > 1e-5  # no image so near that rounding decides
    return model, x, y, (model(x).argmax(1) == y) & (worst > 0)


WIDE = {"low": -9.0, "high": 10.0}


# with ten classes the cross entropy climbs towards the nearest one only if logits are sharp
@pytest.mark.parametrize(
    ("classes", "sharpness", "ball"),
    [
        (2, 1.0, Linf(0.05)),
        (2, 1.0, L2(0.3, **WIDE)),
        (10, 20.0, Linf(0.03)),
        (10, 20.0, L2(0.2, **WIDE)),
    ],
    ids=str,
)
def test_exact_flags_on_linear_models(classes: int, sharpness: float, ball: Ball) -> None:
    model, x, y, breakable = a_linear_problem(classes, sharpness, ball)
    found = robust_accuracy(model, batched(x, y, 64), ["pgd-30-2"], ball=ball)
    clean = model(x).argmax(1) == y
    assert torch.equal(found.correct[:, 0], clean)
    assert torch.equal(found.robust, clean & ~breakable)
    assert 40 < int(found.robust.sum()) < 140


def test_the_margin_finds_the_nearest_class_however_flat_the_logits() -> None:
    for sharpness in (1.0, 20.0):
        model, x, y, breakable = a_linear_problem(10, sharpness, Linf(0.03))
        found = robust_accuracy(model, [(x, y)], ["cw-30-4"], ball=Linf(0.03))
        missed = breakable & found.robust
        assert not (found.correct[:, 0] & ~found.robust & ~breakable).any()
        assert int(missed.sum()) <= 2


@pytest.mark.parametrize(("name", "steps"), [("fgsm", 1), ("bim-6", 6)])
def test_one_step_and_iterated_steps_are_exact_for_two_classes(name: str, steps: int) -> None:
    ball = Linf(0.05)
    model, x, y, breakable = a_linear_problem(2, 1.0, ball)
    found = robust_accuracy(model, [(x, y)], [name], ball=ball)
    assert torch.equal(found.robust, found.correct[:, 0] & ~breakable)
    assert build_attack(name).parameters(ball) == {
        "loss": "cross-entropy",
        "steps": steps,
        "restarts": 1,
        "alpha": 0.05 if name == "fgsm" else 0.0125,
        "start": "zero",
    }


def test_logits_so_large_that_cross_entropy_has_no_slope() -> None:
    """A defence that only scales its logits: PGD sees gradients of 0, the margin does not."""
    model, x, y, breakable = a_linear_problem(2, 1.0, Linf(0.05))
    model = model.float()
    scaled = nn.Sequential(model, Scale(1e6))
    x = x.float()
    clean = scaled(x).argmax(1) == y
    climbed = robust_accuracy(scaled, [(x, y)], ["pgd-20", "cw-20"], ball=Linf(0.05)).correct
    assert climbed[:, 1].sum() > clean.sum() - 10  # fooled into seeing robustness
    assert torch.equal(climbed[:, 2], clean & ~breakable)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.2, **WIDE)], ids=repr)
def test_no_impossible_success_where_the_search_is_hard(ball: Ball) -> None:
    model, x, y, breakable = a_linear_problem(10, 1.0, ball)
    found = robust_accuracy(model, [(x, y)], ["pgd-30-2"], ball=ball)
    broken = found.correct[:, 0] & ~found.robust
    assert not (broken & ~breakable).any()
    assert int(broken.sum()) > 0.7 * int(breakable.sum())


def test_targets_missed_by_few_steps_are_reported_robust() -> None:
    """Steps x step size short of the radius: only what they can reach is broken."""
    x = torch.full((50, 1, 3, 3), 0.5, dtype=torch.float64)
    model = linear_model(2, 9)
    model[1].bias.data = torch.tensor([0.0, 0.0], dtype=torch.float64)
    x += 0.2 * torch.rand_like(x)
    y = own_labels(model, x)
    few = robust_accuracy(model, [(x, y)], ["pgd-1:alpha=0.0001"], ball=Linf(0.2))
    many = robust_accuracy(model, [(x, y)], ["pgd-20"], ball=Linf(0.2))
    assert few.robust.sum() > many.robust.sum()


# --- worst case over everything that was tried


def test_robust_accuracy_falls_with_the_radius_on_a_linear_model() -> None:
    x = torch.rand(100, 1, 6, 8, dtype=torch.float64)
    model = linear_model(2, 48)
    y = own_labels(model, x)
    before = torch.ones(100, dtype=torch.bool)
    for eps in (0.0, 0.01, 0.03, 0.06, 0.1, 0.3):
        robust = robust_accuracy(model, [(x, y)], ["pgd-20"], ball=Linf(eps)).robust
        assert not (robust & ~before).any()
        before = robust
    assert not before.any()


def test_zero_radius_breaks_nothing() -> None:
    model, x, y, _ = a_problem()
    for ball in (Linf(0.0), L2(0.0)):
        found = robust_accuracy(model, [(x, y)], ["pgd-3-2"], ball=ball)
        assert torch.equal(found.robust, found.correct[:, 0])


def test_more_restarts_and_more_steps_only_ever_break_more() -> None:
    model, x, y, ball = a_problem()
    ladder = ["pgd-2-1", "pgd-2-2", "pgd-2-5", "pgd-12-5", "pgd-30-5"]
    found = robust_accuracy(model, [(x, y)], ladder, ball=ball)
    assert found.attacks == tuple(ladder)
    assert found.correct.shape == (40, 6)
    for column in range(5):
        assert not (found.correct[:, column + 1] & ~found.correct[:, column]).any()
    assert found.correct[:, 1].sum() > found.correct[:, -1].sum()
    assert torch.equal(found.robust, found.correct.all(1))


def test_robust_means_under_all_attacks_not_the_last() -> None:
    model, x, y, ball = a_problem()
    found = robust_accuracy(model, [(x, y)], ["pgd-30-2", "pgd-1"], ball=ball)
    assert torch.equal(found.robust, found.correct[:, 1] & found.correct[:, 2])
    assert found.robust.sum() < found.correct[:, 2].sum()


class FooledInPassing(nn.Module):
    """Class 1 only where the mean pixel is within 0.03 of 0.6; its slope always points up."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        inside = torch.where((mean - 0.6).abs() < 0.03, 1.0, -1.0)
        return torch.stack([torch.zeros_like(mean), mean - mean.detach() + inside], 1)


@pytest.mark.parametrize("steps", [8, 40])
def test_a_point_fooled_only_on_the_way_counts_as_broken(steps: int) -> None:
    model, x = FooledInPassing(), torch.full((6, 1, 20, 20), 0.5)
    y = torch.zeros(6, dtype=torch.long)
    ball = Linf(0.2)
    found = robust_accuracy(model, [(x, y)], [f"pgd-{steps}"], ball=ball, examples=6)
    assert found.correct[:, 0].all()
    assert model(x + 0.2).argmax(1).eq(0).all()  # where the climb ends, the model is right again
    assert not found.robust.any()
    assert found.examples is not None
    assert found.examples.adversarial_prediction.eq(1).all()
    assert found.meters[1].probes == 6 * min(steps, STEPS_BETWEEN_DROPS)


def test_the_last_point_reached_counts_too() -> None:
    """One full step: only the point after it is beyond the boundary, not the start."""
    model = linear_model(2, 9)
    x = torch.full((30, 1, 3, 3), 0.5, dtype=torch.float64)
    y = own_labels(model, x)
    reach = (model[1].weight[1] - model[1].weight[0]).abs().sum().item()
    margin = (model(x)[:, 0] - model(x)[:, 1]).abs()[0].item()
    eps = 1.05 * margin / reach
    found = robust_accuracy(model, [(x, y)], [f"pgd-1:alpha={2 * eps}"], ball=Linf(eps))
    assert not found.robust.any()


# --- only the images, the seed and the model matter


@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.3)], ids=repr)
def test_batch_size_and_order_change_nothing(ball: Ball) -> None:
    model, x, y, _ = a_problem()
    whole = robust_accuracy(model, [(x, y)], ["pgd-12-2", "pgd-3"], ball=ball)
    assert 0 < int(whole.robust.sum()) < int(whole.correct[:, 0].sum())
    for size in (1, 7, 64):
        split = robust_accuracy(model, batched(x, y, size), ["pgd-12-2", "pgd-3"], ball=ball)
        assert torch.equal(split.correct, whole.correct)
    order = torch.randperm(len(x))
    mixed = robust_accuracy(model, batched(x[order], y[order], 9), ["pgd-12-2", "pgd-3"], ball=ball)
    assert torch.equal(mixed.correct, whole.correct[order])


class Recording(nn.Module):
    """Keeps the points that gradients are asked of."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.seen.append(x.detach().clone())
        return self.inner(x)


def starts(model: nn.Module, batches: list[tuple[Tensor, Tensor]], seed: int = 0) -> Tensor:
    """The first point of each image that the attack asks the gradient of."""
    recording = Recording(model)
    robust_accuracy(recording, batches, ["pgd-1"], ball=Linf(0.1), seed=seed)
    return torch.cat(recording.seen)


@pytest.mark.parametrize("size", [1, 4])
def test_copies_of_an_image_get_starts_of_their_own(size: int) -> None:
    model = linear_model(2, 9)
    x = torch.rand(1, 1, 3, 3, dtype=torch.float64).repeat(4, 1, 1, 1)
    y = own_labels(model, x)
    points = starts(model, batched(x, y, size))
    assert len({tuple(p.flatten().tolist()) for p in points}) == 4
    assert torch.equal(points, starts(model, batched(x, y, 5 - size)))


def test_starts_follow_the_seed_and_lie_in_the_ball() -> None:
    model = linear_model(2, 9)
    x = torch.rand(5, 1, 3, 3, dtype=torch.float64)
    y = own_labels(model, x)
    first, again, other = (starts(model, [(x, y)], seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not (first == other).flatten(1).all(1).any()
    assert (first - x).abs().max() <= 0.1 + 1e-12
    assert first.min() >= 0
    assert first.max() <= 1


def test_the_global_random_state_is_not_used() -> None:
    model, x, y, ball = a_problem()
    state = torch.get_rng_state()
    one = robust_accuracy(model, [(x, y)], ["pgd-3-2"], ball=ball)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(
        one.correct, robust_accuracy(model, [(x, y)], ["pgd-3-2"], ball=ball).correct
    )


# --- cost


class Counting(nn.Module):
    """Counts the images that go forward and those whose gradient comes back."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.forwards, self.backwards = inner, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(self._came_back)
        return self.inner(x)

    def _came_back(self, grad: Tensor) -> None:
        self.backwards += len(grad)


@pytest.mark.parametrize("attacks", [[], ["pgd-7"], ["pgd-23-3", "pgd-10", "pgd-1-2"]], ids=str)
def test_meters_count_every_forward_and_backward(attacks: list[str]) -> None:
    model, x, y, ball = a_problem()
    counting = Counting(model)
    found = robust_accuracy(counting, batched(x, y, 9), attacks, ball=ball)
    assert found.meters[0] == Meter(forwards=40)
    assert len(found.meters) == len(found.seconds) == 1 + len(attacks)
    assert sum(m.forwards + m.probes for m in found.meters) == counting.forwards
    assert sum(m.probes for m in found.meters) == counting.backwards
    assert all(m.passes == 0 for m in found.meters)


def test_misclassified_images_cost_nothing_beyond_the_clean_pass() -> None:
    model, x, _, ball = a_problem()
    wrong = (own_labels(model, x) + 1) % 4
    found = robust_accuracy(model, [(x, wrong)], ["pgd-10-5"], ball=ball)
    assert not found.correct.any()
    assert found.meters[1] == Meter()


def test_a_robust_image_costs_every_step_and_one_last_look() -> None:
    model, x, y, _ = a_problem()
    right = int((own_labels(model, x) == y).sum())
    found = robust_accuracy(model, [(x, y)], ["pgd-25-2"], ball=Linf(1e-9))
    assert found.meters[1] == Meter(probes=right * 25 * 2, forwards=right * 2)


# --- the model is only looked at


def snapshot(model: nn.Module) -> dict[str, object]:
    return {
        "modes": [m.training for m in model.modules()],
        "wanted": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "state": {k: v.clone() for k, v in model.state_dict().items()},
    }


def assert_untouched(model: nn.Module, before: dict[str, object]) -> None:
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)


def model_in_mid_training() -> tuple[nn.Module, Tensor, Tensor]:
    """Train mode, one layer frozen in eval mode, one parameter frozen, one with a gradient."""
    model = conv_net()
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[6].weight.grad = torch.ones_like(model[6].weight)
    x = torch.rand(6, 3, 5, 4)
    return model, x, own_labels(model, x)


def test_the_model_is_left_as_it_was() -> None:
    model, x, y = model_in_mid_training()
    model[1].eval()
    before = snapshot(model)
    robust_accuracy(model, [(x, y)], ["pgd-3-2"], ball=Linf(0.1), examples=3)
    assert_untouched(model, before)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_the_model_is_left_as_it_was_also_after_an_error(at: int) -> None:
    model, x, y = model_in_mid_training()
    model[1].eval()
    before = snapshot(model)
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        robust_accuracy(model, [(x, y)], ["pgd-3-2"], ball=Linf(0.1))
    assert_untouched(model, before)


def test_running_statistics_judge_and_dropout_is_off() -> None:
    model, x, y = model_in_mid_training()
    model.train()
    one = robust_accuracy(model, [(x, y)], ["pgd-5"], ball=Linf(0.02))
    two = robust_accuracy(model, batched(x, y, 1), ["pgd-5"], ball=Linf(0.02))
    assert one.correct[:, 0].all()  # y was read off in eval mode
    assert torch.equal(one.correct, two.correct)


def test_it_works_inside_no_grad_and_autocast() -> None:
    model, x, y = model_in_mid_training()
    dtypes = set()
    model.register_forward_hook(lambda *arguments: dtypes.add(arguments[-1].dtype))
    plain = robust_accuracy(model, [(x, y)], ["pgd-5"], ball=Linf(0.05), examples=6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = robust_accuracy(model, [(x, y)], ["pgd-5"], ball=Linf(0.05), examples=6)
    assert plain.examples is not None
    assert inside.examples is not None
    assert dtypes == {torch.float32}
    assert torch.equal(plain.correct, inside.correct)
    assert torch.equal(plain.examples.adversarial, inside.examples.adversarial)


# --- soft cases


def evaluate(model: nn.Module, x: Tensor, y: Tensor, eps: float = 0.1) -> Robustness:
    return robust_accuracy(model, [(x, y)], ["pgd-3-2"], ball=Linf(eps), examples=2)


def test_a_model_that_always_says_the_same() -> None:
    model = linear_model(3, 9)
    for p in model.parameters():
        nn.init.zeros_(p)
    x, y = torch.rand(6, 1, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 0, 1])
    found = evaluate(model, x, y)
    assert torch.equal(found.robust, y == 0)
    assert torch.equal(found.correct[:, 0], y == 0)


def test_logits_that_are_no_numbers_are_wrong() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            corner = x[:, 0, 0, 0]
            bad = torch.where(corner > 0.5, torch.nan, 0.0)
            return torch.stack([1 - corner + bad, corner - 1], 1)

    x = torch.full((3, 1, 2, 2), 0.2)
    x[1] = 0.8
    y = torch.zeros(3, dtype=torch.long)
    found = evaluate(Broken(), x, y)
    assert found.correct[:, 0].tolist() == [True, False, True]
    assert found.robust.tolist() == [True, False, True]
    assert not evaluate(Broken(), x, y, eps=0.9).robust.any()  # NaN is where the climb leads


def test_a_model_without_gradients_is_refused() -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot((x.flatten(1).mean(1) > 0.5).long(), 2).float()

    x = torch.rand(4, 1, 3, 3)
    with pytest.raises(ValueError, match="no gradient back to its input"):
        evaluate(Opaque(), x, own_labels(Opaque(), x))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("count", [1, 3])
def test_odd_shapes(channels: int, classes: int, count: int) -> None:
    model = conv_net(channels, classes)
    x = torch.rand(count, channels, 3, 9)
    found = evaluate(model, x, own_labels(model, x))
    assert found.correct.shape == (count, 2)
    assert found.correct[:, 0].all()
    assert found.robust.shape == (count,)
    assert found.robust.dtype == torch.bool


def test_an_empty_loader_is_an_error() -> None:
    with pytest.raises(ValueError, match="loader was empty"):
        robust_accuracy(conv_net(), [], ["pgd-3"], ball=Linf(0.1))


def test_a_normalising_loader_is_an_error() -> None:
    x = torch.randn(3, 3, 4, 4)
    with pytest.raises(ValueError, match="normalisation into the model"):
        robust_accuracy(conv_net(), [(x, torch.zeros(3).long())], ["pgd-3"], ball=Linf(0.1))


def test_a_mistyped_attack_is_answered_before_any_work() -> None:
    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        raise AssertionError("the loader was touched")
        yield

    with pytest.raises(ValueError, match="no attack 'pgd'"):
        robust_accuracy(conv_net(), loader(), ["pgd"], ball=Linf(0.1))


def test_progress_tells_images_done() -> None:
    """After every pool, and of the images under attack a share after every stage."""
    model, x, y, ball = a_problem()
    told: list[int] = []
    robust_accuracy(model, batched(x, y, 8), [], ball=ball, progress=told.append)
    assert told == [32, 40]
    told.clear()
    attacks = ["pgd-20", "apgd-ce"]
    robust_accuracy(model, batched(x, y, 8), attacks, ball=Linf(1e-9), progress=told.append)
    assert told[:2] == [8, 16]
    assert told == sorted(told)
    assert told[-1] == 40


def test_a_model_without_parameters() -> None:
    model = nn.Flatten()
    x = torch.rand(5, 1, 1, 3)
    found = evaluate(model, x, x.flatten(1).argmax(1))
    assert found.correct[:, 0].all()


# --- the points themselves


@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.3)], ids=repr)
@pytest.mark.parametrize("attack", ["pgd-4", "pgd-25-3"])
def test_broken_images_come_with_a_point_that_proves_it(ball: Ball, attack: str) -> None:
    model, x, y, _ = a_problem()
    x = x.float()
    model.float()
    y = own_labels(model, x)
    task = Classification()
    model.eval().requires_grad_(False)
    attacked = Attacked(
        model,
        x,
        y,
        ball=ball,
        losses=cross_entropy,
        correct=task.correct,
        keys=list(range(len(x))),
        meter=Meter(),
    )
    points, broken = build_attack(attack)(attacked)
    assert 0 < int(broken.sum()) < len(x)
    assert torch.equal(model(points).argmax(1) != y, broken)
    assert (ball.size(points - x) <= ball.eps * (1 + 1e-5)).all()
    ball.check(points)
    assert (points != x).flatten(1).any(1).all()


def test_examples_are_the_first_images_as_evaluated() -> None:
    model, x, y, ball = a_problem()
    found = robust_accuracy(model, batched(x, y, 16), ["pgd-1", "pgd-20"], ball=ball, examples=9)
    kept = found.examples
    assert kept is not None
    assert torch.equal(kept.clean, x[:9])
    assert torch.equal(kept.label, y[:9])
    model.eval()
    assert torch.equal(kept.clean_prediction, model(x[:9]).argmax(1))
    assert torch.equal(kept.adversarial_prediction, model(kept.adversarial).argmax(1))
    assert torch.equal(kept.clean_prediction == y[:9], found.correct[:9, 0])
    assert torch.equal(kept.adversarial_prediction == y[:9], found.correct[:9, 2])
    misclassified = ~found.correct[:9, 0]
    assert misclassified.any()
    assert torch.equal(kept.adversarial[misclassified], x[:9][misclassified])
    assert (ball.size(kept.adversarial - x[:9]) <= ball.eps * (1 + 1e-9)).all()


def test_no_examples_unless_asked_for() -> None:
    model, x, y, ball = a_problem()
    assert robust_accuracy(model, [(x, y)], ["pgd-1"], ball=ball).examples is None


# --- another library's attack


@pytest.fixture(scope="module")
def digits_net() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(8):
        for first in range(100, len(x), 50):
            batch = slice(first, first + 50)
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval(), x[:100], y[:100]


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.6)], ids=repr)
@pytest.mark.parametrize("kind", ["pgd", "cw"])
def test_no_weaker_than_foolbox(
    digits_net: tuple[nn.Module, Tensor, Tensor], ball: Ball, kind: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports a deprecated module of scipy
        import foolbox
    import eagerpy

    model, x, y = digits_net
    steps, alpha = 20, ball.eps / 5
    base = foolbox.attacks.LinfPGD if ball.norm == "linf" else foolbox.attacks.L2PGD

    class WithMargin(base):  # type: ignore[misc, valid-type]
        def get_loss_fn(self, judged: object, labels: object) -> object:
            """Their loop up the loss of Carlini & Wagner."""
            y = labels.raw  # type: ignore[attr-defined]

            def loss(point: object) -> object:
                logits = model(point.raw)  # type: ignore[attr-defined]
                right = F.one_hot(y, logits.shape[1]).bool()
                others = logits.masked_fill(right, -torch.inf).amax(1)
                return eagerpy.astensor((others - logits[right]).sum())

            return loss

    theirs = (WithMargin if kind == "cw" else base)(abs_stepsize=alpha, steps=steps)
    judged = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, _, broken = theirs(judged, x, y, epsilons=ball.eps)
    found = robust_accuracy(model, [(x, y)], [f"{kind}-{steps}:alpha={alpha}"], ball=ball)
    assert float(found.correct[:, 0].float().mean()) > 0.9
    assert 10 <= int((~broken).sum()) <= 90  # a radius at which attacks can differ
    assert int(found.robust.sum()) <= int((~broken).sum()) + 1


@pytest.mark.slow
def test_autoattack_is_no_weaker_than_the_package_of_its_authors(
    digits_net: tuple[nn.Module, Tensor, Tensor],
) -> None:
    from pyautoattack import AutoAttack

    model, x, y = digits_net
    x, y = x[:50], y[:50]
    judged = []
    for seed in (0, 1):
        judge = AutoAttack(model, norm="Linf", eps=0.08, seed=seed)
        points = judge.run_standard_evaluation(x, y, batch_size=50)
        points = points[0] if isinstance(points, tuple) else points
        judged.append(int((model(points).argmax(1) == y).sum()))
    found = robust_accuracy(model, [(x, y)], ["autoattack"], ball=Linf(0.08))
    assert 5 < int(found.robust.sum()) < 45
    # one image is 2 points: none more may be left standing than the better of their two seeds left
    assert int(found.robust.sum()) <= max(judged)
