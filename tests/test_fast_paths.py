"""What the attacks of AutoAttack do quickly, against the plainest way to the same numbers."""

import math

import pytest
import torch
from torch import Tensor, nn

from gratis.attacks import Attack, Attacked, autoattack, packing
from gratis.attacks.apgd import APGD
from gratis.attacks.fab import BACKWARD, FAB, LARGEST_BIAS, OVERSHOOT, onto_plane
from gratis.attacks.first_layer import input_gradients
from gratis.attacks.search import either, generator_for
from gratis.attacks.square import HALVINGS, Square
from gratis.balls import L1, L2, Ball, Linf, finite
from gratis.budget import Meter
from gratis.evaluate import robust_accuracy
from gratis.tasks import Classification
from tests.problems import a_problem, batched
from tests.test_hot_paths import Counted


def attacked_by(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, ball: Ball
) -> tuple[Attacked, Tensor, Tensor]:
    """The images that the model gets right, and what became of them: (attacked, points, broken)."""
    task = Classification()
    right = model(x).argmax(1) == y
    keys = list(range(int(right.sum())))
    attacked = Attacked(model, x[right], y[right], ball, task.losses, task.correct, keys, Meter())
    points, broken = attack(attacked)
    return attacked, points, broken


# --- FAB


def one_by_one(z: Tensor, slope: Tensor, level: Tensor, ball: Ball) -> Tensor:
    """onto_plane for Linf and L2: sort the times at which pixels reach the box, and walk along."""
    moves = torch.zeros_like(z)
    for i in range(len(z)):
        excess = float((slope[i] * z[i]).sum() - level[i])
        pixels = []
        for p in range(len(z[i])):
            pull = float(slope[i, p]) * math.copysign(1, excess)
            room = float(z[i, p]) - ball.low if pull > 0 else ball.high - float(z[i, p])
            speed = 1.0 if ball.norm == "linf" else abs(pull)
            if pull:
                pixels.append((room / speed, abs(pull) * speed, room, speed, pull, p))
        pixels.sort()
        left, time, before = abs(excess), math.inf, 0.0
        for k, (arrival, *_) in enumerate(pixels):
            rate = sum(gain for _, gain, *_ in pixels[k:])  # of those on their way
            if left <= rate * (arrival - before):
                time = before + left / rate
                break
            left, before = left - rate * (arrival - before), arrival
        for _, _, room, speed, pull, p in pixels:
            moves[i, p] = -math.copysign(min(time * speed, room), pull)
    return moves


@pytest.fixture(params=[False, True], ids=["nothing to wait for", "as on a device"])
def waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether attacks take the ways that never ask a device how far it has come."""
    for place in ("search", "square", "fab"):
        monkeypatch.setattr(f"gratis.attacks.{place}.waits", lambda at: request.param)
    return bool(request.param)


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.1), L2(0.1, low=-1.0, high=3.0)], ids=repr)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_plane_is_reached_as_by_sorting(ball: Ball, dtype: torch.dtype, close: float) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(60, 40, generator=generator, dtype=dtype)
    z[::3] = z[::3].round()  # at the edges of the box
    slope = torch.randn(60, 40, generator=generator, dtype=dtype) ** 3
    slope[:, ::5] = 0
    slope[0] = 0
    other = torch.rand(60, 40, generator=generator, dtype=dtype)
    level = (slope * other).sum(1)
    level[-10:] *= 50  # beyond the box, mostly
    found = onto_plane(z, slope, level, ball)
    torch.testing.assert_close(found, one_by_one(z, slope, level, ball), rtol=0, atol=close)
    alone = torch.cat(
        [onto_plane(z[i : i + 1], slope[i : i + 1], level[i : i + 1], ball) for i in range(60)]
    )
    assert torch.equal(alone, found)


def walked(model: nn.Module, x: Tensor, y: int, target: int, ball: Ball, steps: int) -> bool:
    """Whether FAB breaks one image [C, H, W] going towards one class, by a plain loop."""
    point = x.clone()
    for _ in range(steps):
        at = point.clone().requires_grad_()
        logits = model(at[None])[0]
        gap = logits[target] - logits[y]
        (slope,) = torch.autograd.grad(gap, at)
        level = (slope * point).sum() - gap.detach()
        from_point, from_image = (
            onto_plane(z[None], slope[None], level[None], ball)[0] for z in (point, x)
        )
        here, there = (max(float(ball.size(m[None])), 1e-8) for m in (from_point, from_image))
        bias = min(here / (here + there), LARGEST_BIAS)
        mixed = (1 - bias) * (point + OVERSHOOT * from_point) + bias * (x + OVERSHOOT * from_image)
        point = mixed.clamp(ball.low, ball.high)
        if int(model(point[None]).argmax()) != y:
            if float(ball.size((point - x)[None])) <= ball.eps:
                return True
            point = x + BACKWARD * (point - x)
    return False


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.2), L1(1.5)], ids=repr)
def test_fab_breaks_what_a_plain_loop_breaks(ball: Ball) -> None:
    model, x, y, _ = a_problem(12)
    model.eval()
    attacked, _, broken = attacked_by(FAB("fab-t", steps=15, targets=2), model, x, y, ball)
    expected = []
    for image, label in zip(attacked.x, attacked.y.tolist(), strict=True):
        others = model(image[None])[0].detach().index_fill(0, torch.tensor(label), -torch.inf)
        targets = others.argsort(descending=True)[:2].tolist()
        expected.append(any(walked(model, image, label, t, ball, 15) for t in targets))
    assert broken.tolist() == expected
    assert 0 < sum(expected) < len(expected)


# --- Square


def squared(model: nn.Module, x: Tensor, y: int, key: int, ball: Ball, queries: int) -> Tensor:
    """The point where Square in Linf ends for one image [C, H, W], asking about every square."""
    random = generator_for(key, "square")
    channels, height, width = x.shape
    share = torch.rand(channels, 1, width, generator=random)
    stripes = torch.where(share < 0.5, -1.0, 1.0).to(x)
    best = (x + ball.eps * stripes).clamp(ball.low, ball.high)
    drawn = torch.rand(queries, 2 + channels, generator=random)

    def value(point: Tensor) -> float:
        logits = model(point[None])[0].detach()
        return float(torch.cat([logits[:y], logits[y + 1 :]]).max() - logits[y])

    highest = value(best)
    for query in range(1, queries):
        if highest > 0:
            break
        area = 0.8 * height * width / 2 ** sum(query > at for at in HALVINGS)
        side = max(1, min(round(math.sqrt(area)), height, width))
        top = int(drawn[query, 0] * (height - side + 1))
        left = int(drawn[query, 1] * (width - side + 1))
        tried = best.clone()
        for c in range(channels):
            sign = -1.0 if drawn[query, 2 + c] < 0.5 else 1.0
            here = (c, slice(top, top + side), slice(left, left + side))
            tried[here] = (x[here] + ball.eps * sign).clamp(ball.low, ball.high)
        if (found := value(tried)) > highest:
            highest, best = found, tried
    return best


def test_square_ends_where_asking_about_every_square_does(waiting: bool) -> None:
    model, x, y, _ = a_problem(10)
    model.eval()
    ball = Linf(0.02)
    queries = 250
    attacked, points, broken = attacked_by(Square("square", queries=queries), model, x, y, ball)
    for i, (image, label) in enumerate(zip(attacked.x, attacked.y.tolist(), strict=True)):
        expected = squared(model, image, label, i, ball, queries)
        torch.testing.assert_close(points[i], expected, rtol=0, atol=0)
        assert bool(broken[i]) == (int(model(expected[None]).argmax()) != label)
    assert 0 < int(broken.sum()) < len(broken)
    # squares that change no pixel cost nothing where that can be known
    standing = int((~broken).sum())
    assert (attacked.meter.forwards < queries * standing) == (not waiting)


# --- the way back to the input


class Net(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, **options)  # type: ignore[arg-type]
        self.second = nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()).tanh().mean((2, 3))


def gradient(net: nn.Module, x: Tensor, *, quick: bool) -> Tensor:
    point = x.detach().requires_grad_()
    if quick:
        with input_gradients(point):
            value = net(point).pow(2).sum()
    else:
        value = net(point).pow(2).sum()
    return torch.autograd.grad(value, point)[0]


def backwards(net: nn.Module, x: Tensor, *, quick: bool) -> int:
    """How often a gradient is taken of oneDNN's convolutions."""
    with Counted() as counts:
        gradient(net, x, quick=quick)
    return counts.calls["aten::convolution_backward"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": (2, 1), "padding": (0, 2)},
        {"dilation": 2, "bias": False},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "circular"},
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_first_layers_gradient_is_the_same(
    options: dict[str, object], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    net, x = Net(**options).requires_grad_(False).to(memory_format=layout), torch.rand(4, 3, 12, 11)
    taken = backwards(net, x, quick=False) - backwards(net, x, quick=True)
    own = layout == torch.contiguous_format and options.get("padding") != "same"
    assert taken == own, "channels last and strings as padding are left to oneDNN"
    torch.testing.assert_close(gradient(net, x, quick=True), gradient(net, x, quick=False))
    net, x = net.double(), x.double()
    assert backwards(net, x, quick=False) == backwards(net, x, quick=True)
    assert torch.equal(gradient(net, x, quick=True), gradient(net, x, quick=False))


def test_the_first_layers_gradient_under_autocast_and_with_weights_to_learn() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.rand(4, 3, 12, 11)
    assert torch.equal(gradient(net, x, quick=True), gradient(net, x, quick=False))
    net.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient(net, x, quick=True), gradient(net, x, quick=False))
    point = x.requires_grad_()
    with input_gradients(point):
        (first,) = torch.autograd.grad(net(point).sum(), point, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), point)
    (plain,) = torch.autograd.grad(net(point).sum(), point, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(plain.pow(2).sum(), point)[0])


# --- small things


def test_finite_says_what_isfinite_says() -> None:
    torch.manual_seed(0)
    values = torch.randn(40, 3, 4) * 3e38
    for row, bad in ((3, torch.nan), (5, torch.inf), (7, -torch.inf)):
        values[row, 1, 2] = bad
    values[9, 0, 0], values[9, 0, 1] = torch.inf, -torch.inf
    expected = torch.isfinite(values.flatten(1)).all(1)
    assert torch.equal(finite(values), expected)
    assert 4 <= int((~expected).sum()) < 40


def test_either_is_one_or_the_other_exactly() -> None:
    torch.manual_seed(0)
    new, old = torch.randn(2, 50, 1, 3, 3)
    new[0], old[1] = 1e-30, 1e-38
    chosen = torch.rand(50) < 0.5
    expected = torch.where(chosen.view(-1, 1, 1, 1), new, old)
    assert torch.equal(either(chosen, new, old), expected)


def test_the_batches_of_autoattack_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y, ball = a_problem(13)
    short = (
        APGD("apgd-ce", steps=12),
        APGD("apgd-t", "dlr-t", steps=12, targets=2),
        FAB("fab-t", steps=8, targets=2),
        Square("square", queries=40),
    )
    monkeypatch.setattr(autoattack, "STANDARD", short)
    whole = robust_accuracy(model, [(x, y)], ["autoattack"], ball=ball, points=True)
    monkeypatch.setattr(packing, "NUMBERS_IN_CACHE", 1)
    monkeypatch.setattr(packing, "FEWEST", 3)
    shares: list[int] = []
    cut = robust_accuracy(
        model, batched(x, y, 5), ["autoattack"], ball=ball, points=True, progress=shares.append
    )
    assert torch.equal(cut.correct, whole.correct)
    assert cut.adversarial is not None
    assert whole.adversarial is not None
    torch.testing.assert_close(cut.adversarial, whole.adversarial)
    assert shares == sorted(shares)
    assert 0 < int(whole.robust.sum()) < int(whole.correct[:, 0].sum())
