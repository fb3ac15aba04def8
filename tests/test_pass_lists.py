"""What each method asks to learn from, step by step, without any network."""

import dataclasses

import pytest
import torch
from torch import nn

from gratis import (
    AdvProp,
    FastAdvProp,
    Free,
    GradAlign,
    Linf,
    Natural,
    PGDTraining,
    Trades,
    Yopo,
    fgsm,
    fgsm_rs,
    n_fgsm,
)
from gratis.passes import Batch

EPS = 0.1
BALL = Linf(EPS)
GREY = torch.full((10, 1, 4, 4), 0.5)
LABELS = torch.arange(10) % 3


class UphillProbe:
    """A probe whose every gradient is +1, and which remembers where it was asked."""

    def __init__(self):
        self.points, self.norms, self.labels, self.asked_logits = [], [], [], 0

    def __call__(self, x, y, loss=None, norm="main"):
        self.points.append(x.clone())
        self.norms.append(norm)
        self.labels.append(y)
        return torch.ones_like(x)

    def logits(self, x):
        self.asked_logits += 1
        return torch.zeros(len(x), 3)


def passes_of(method, x=GREY, y=LABELS, slope=1.0, seed=0):
    """The passes that a method yields, where every backward leaves `slope` at x."""
    probe = UphillProbe()
    found = []
    for p in method.passes(Batch(x, y, torch.Generator().manual_seed(seed)), probe):
        found.append(dataclasses.replace(p))
        if p.x.requires_grad:
            p.x.grad = torch.full_like(p.x, slope)
    return found, probe


def shape(passes):
    return [(len(p.x), round(p.weight, 6), p.norm, p.update) for p in passes]


def shift(p):
    """How far a pass's images lie from grey: the same everywhere."""
    moved = p.x.detach() - 0.5
    assert moved.max() - moved.min() < 1e-6
    return moved.mean().item()


def test_natural():
    passes, probe = passes_of(Natural(replays=3))
    assert shape(passes) == [(10, 1, "main", True)] * 3
    assert all(torch.equal(p.x, GREY) for p in passes)
    assert not probe.points


def test_free():
    passes, probe = passes_of(Free(BALL, replays=3))
    assert shape(passes) == [(10, 1, "main", True)] * 3
    assert [shift(p) for p in passes] == pytest.approx([0, EPS, EPS])
    assert not probe.points


@pytest.mark.parametrize(
    ("method", "looked", "learned"),
    [
        (fgsm(BALL), [0], EPS),
        (PGDTraining(BALL, 3, step_size=0.04, start="zero"), [0, 0.04, 0.08], EPS),
        (PGDTraining(BALL, 2, step_size=0.03, start="zero"), [0, 0.03], 0.06),
    ],
)
def test_pgd(method, looked, learned):
    passes, probe = passes_of(method)
    assert shape(passes) == [(10, 1, "main", True)]
    assert [(p - 0.5).mean().item() for p in probe.points] == pytest.approx(looked, abs=1e-6)
    assert shift(passes[0]) == pytest.approx(learned, abs=1e-6)


def test_fgsm_rs_starts_anywhere_in_the_ball():
    passes, probe = passes_of(fgsm_rs(BALL))
    start = probe.points[0] - 0.5
    assert start.abs().max() <= EPS
    assert start.std() > EPS / 3
    expected = (start + 1.25 * EPS).clamp(-EPS, EPS)
    torch.testing.assert_close(passes[0].x - 0.5, expected)


def test_n_fgsm_goes_beyond_eps():
    passes, probe = passes_of(n_fgsm(BALL, noise=2))
    start = probe.points[0] - 0.5
    assert EPS < start.abs().max() <= 2 * EPS
    torch.testing.assert_close(passes[0].x - 0.5, start + EPS)
    assert (passes[0].x - 0.5).max() > 2 * EPS
    # but never out of the pixel range
    (bright,), _ = passes_of(n_fgsm(BALL), x=torch.ones(4, 1, 2, 2), y=LABELS[:4])
    assert bright.x.max() <= 1


def test_trades():
    passes, probe = passes_of(Trades(BALL, steps=2, step_size=0.03))
    (p,) = passes
    assert shape(passes) == [(10, 1, "main", True)]
    assert p.extra == 3 * 10  # a second pass, over the clean images
    assert probe.asked_logits == 1
    start = probe.points[0] - 0.5
    assert start.std() == pytest.approx(0.001, rel=0.2)
    assert all(torch.equal(y, torch.full((10, 3), 1 / 3)) for y in probe.labels)
    torch.testing.assert_close(p.x - 0.5, start + 0.06)

    def answers(x):  # clean and adversarial images answered differently
        return torch.stack([x.flatten(1).mean(1) * 4, torch.zeros(10), torch.ones(10)], 1)

    loss, logits = p.loss(answers, p.x, LABELS)
    clean, there = answers(GREY).log_softmax(1), answers(p.x).log_softmax(1)
    divergence = (clean.exp() * (clean - there)).sum(1).mean()
    expected = nn.functional.nll_loss(clean, LABELS) + 6 * divergence
    torch.testing.assert_close(loss, expected)
    assert torch.equal(logits, answers(p.x))


def test_gradalign():
    passes, probe = passes_of(GradAlign(BALL))
    (p,) = passes
    assert shape(passes) == [(10, 1, "main", True)]
    assert p.extra == 6 * 10
    assert torch.equal(probe.points[0], GREY)
    assert shift(p) == pytest.approx(EPS)


def test_gradalign_strength_is_the_papers():
    found = [GradAlign(Linf(eps / 255)).resolved_strength for eps in (4, 8, 12, 16, 32)]
    assert found == pytest.approx([0.0632, 0.2, 0.632, 2.0, 2.0], rel=1e-3)


def test_advprop():
    passes, probe = passes_of(AdvProp(BALL, steps=2, step_size=0.03))
    assert shape(passes) == [(10, 0.5, "main", False), (10, 0.5, "aux", True)]
    assert torch.equal(passes[0].x, GREY)
    assert probe.norms == ["aux", "aux"]
    assert (passes[1].x - GREY).abs().max() <= EPS + 1e-6


def test_fast_advprop():
    passes, probe = passes_of(FastAdvProp(BALL, adversarial=0.4, step_size=0.05))
    assert not probe.points
    assert shape(passes) == [
        (6, 0.6, "main", False),
        (4, 0.2, "aux", False),
        (4, 0.2, "aux", True),
    ]
    clean, noisy, adversarial = passes
    assert torch.equal(clean.x, GREY[:6])
    assert torch.equal(clean.y, LABELS[:6])
    assert not clean.x.requires_grad
    assert noisy.x.requires_grad
    assert torch.equal(noisy.y, LABELS[6:])
    # the very images that were noisy, a step further, in another order with their labels
    expected = ((noisy.x.detach() - 0.5) + 0.05).clamp(-EPS, EPS)
    found = adversarial.x - 0.5
    order = [
        next(i for i in range(4) if torch.allclose(row, expected[i], atol=1e-6)) for row in found
    ]
    assert sorted(order) == [0, 1, 2, 3]
    assert torch.equal(adversarial.y, LABELS[6:][order])


def test_fast_advprop_without_its_parts():
    method = FastAdvProp(BALL, 0.4, rebalance=False, shuffle=False, start="clean")
    passes, _ = passes_of(method)
    assert [p.weight for p in passes] == pytest.approx([6 / 14, 4 / 14, 4 / 14])
    assert torch.equal(passes[1].x.detach(), GREY[6:])
    assert shift(passes[2]) == pytest.approx(EPS)
    assert torch.equal(passes[2].y, LABELS[6:])


@pytest.mark.parametrize("images", [1, 2, 3, 7])
def test_fast_advprop_of_a_short_batch(images):
    method = FastAdvProp(BALL, adversarial=0.2)
    passes, _ = passes_of(method, GREY[:images], LABELS[:images])
    assert sum(len(p.x) for p in passes if p.norm == "main") >= 1
    assert [p.update for p in passes] == [False] * (len(passes) - 1) + [True]
    assert sum(3 * len(p.x) for p in passes) == sum(method.update_thirds(images))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_touches_the_clean_part_alone(kind):
    x = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    plain, _ = passes_of(FastAdvProp(BALL, 0.4, shuffle=False, start="clean"), x)
    blended, _ = passes_of(FastAdvProp(BALL, 0.4, shuffle=False, start="clean", mix=kind), x)
    assert not torch.equal(plain[0].x, blended[0].x)
    assert torch.equal(plain[1].x, blended[1].x)
    assert torch.equal(plain[2].x, blended[2].x)
    assert blended[0].loss is not None
    assert blended[1].loss is blended[2].loss is None


def test_mixup_is_linear():
    """With images that show their label, the loss's label share is the pixels'."""
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    x = y.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    seen = set()
    for seed in range(20):
        (p,), _ = passes_of(Natural(mix="mixup"), x, y, seed=seed)

        def logits(point):  # log odds that equal the pixel's
            share = point.mean((1, 2, 3)).clamp(1e-6, 1 - 1e-6)
            return torch.stack([(1 - share).log(), share.log()], 1)

        loss, _ = p.loss(logits, p.x, y)
        share = p.x.mean((1, 2, 3)).clamp(1e-6, 1 - 1e-6)
        entropy = -(share * share.log() + (1 - share) * (1 - share).log()).mean()
        torch.testing.assert_close(loss, entropy, atol=1e-4, rtol=1e-4)
        seen |= {round(value, 3) for value in share.tolist()}
    assert len(seen) > 5


def test_cutmix_pastes_a_rectangle_and_counts_its_area():
    y = torch.tensor([0, 1])
    x = y.float().view(-1, 1, 1, 1).expand(-1, 1, 16, 16).contiguous()
    areas = []
    for seed in range(40):
        (p,), _ = passes_of(Natural(mix="cutmix"), x, y, seed=seed)
        pasted = (p.x != x)[:, 0]
        if not pasted.any():
            continue
        rows, columns = pasted[0].any(1).nonzero(), pasted[0].any(0).nonzero()
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert pasted[0].sum() == height * width  # a full rectangle
        share = pasted.float().mean((1, 2))
        constant = torch.tensor([[0.0, -2.0], [0.0, -2.0]])
        loss, _ = p.loss(lambda point, c=constant: c, p.x, y)
        own = nn.functional.cross_entropy(constant, y)
        other = nn.functional.cross_entropy(constant, 1 - y)
        torch.testing.assert_close(loss, (1 - share[0]) * own + share[0] * other)
        areas.append(share[0].item())
    assert max(areas) > 0.5
    assert min(areas) < 0.3


class TwoLayers(nn.Module):
    """A stand-in network for YOPO's hooks: layer one a known linear map."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 1, 1, bias=False)
        self.last = nn.Linear(16, 3)
        nn.init.constant_(self.first.weight, 2.0)

    def forward(self, x):
        return self.last(self.first(x).flatten(1))


def test_yopo():
    method, model = Yopo(BALL, rounds=2, steps=3, step_size=0.02), TwoLayers()
    method.bind(model, GREY)
    # multiply-adds: 16 in the first layer, 48 in the last
    assert method.share == pytest.approx(16 / 64)
    assert method.cost == pytest.approx(2 * (1 + 4 / 4))
    assert method.update_thirds(10) == (2 * (30 + 30),)
    found = []
    generator = torch.Generator().manual_seed(0)
    for p in method.passes(Batch(GREY, LABELS, generator), UphillProbe()):
        found.append(p)
        if p.loss is None:
            model(p.x).sum().backward()  # what the learner does: fills the layer's gradient
    assert shape(found) == [
        (10, 1, "main", False),
        (10, 1, "main", False),
        (10, 1, "main", False),
        (10, 1, "main", True),
    ]
    assert [p.extra + 30 for p in found] == [30, 30, 30, 30]
    # three steps of 0.02 along the sign of 2 * costate, the costate being the last layer's column
    slope = model.last.weight.sum(0).view(1, 1, 4, 4).sign()
    start = found[0].x - 0.5
    torch.testing.assert_close(found[1].x - 0.5, (start + 0.06 * slope).clamp(-EPS, EPS))
    torch.testing.assert_close(found[2].x, found[1].x)
    # and layer one alone is learned from there: <layer one (x), costate>
    loss, logits = found[1].loss(model, found[1].x, LABELS)
    assert logits is None
    expected = (model.first(found[1].x) * model.last.weight.sum(0).view(1, 1, 4, 4)).sum()
    torch.testing.assert_close(loss, expected)


def test_yopo_refuses_what_it_cannot_use():
    norm_first = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1), nn.Flatten())
    with pytest.raises(ValueError, match="not each image's own"):
        Yopo(BALL).bind(norm_first, GREY)
    with pytest.raises(ValueError, match="no module 'conv9'"):
        Yopo(BALL, first_layer="conv9").bind(TwoLayers(), GREY)
    with pytest.raises(ValueError, match="runs no such"):
        Yopo(BALL, first_layer=nn.Conv2d(1, 1, 1)).bind(TwoLayers(), GREY)
    with pytest.raises(ValueError, match="runs no such"):
        Yopo(BALL).bind(nn.Flatten(), GREY)


def test_yopo_takes_a_named_layer():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1))
    method = Yopo(BALL, first_layer="2")
    method.bind(model, GREY)
    assert method.share == pytest.approx(1)  # all that runs up to there
    assert Yopo(BALL, first_layer=model[2]).first_layer is model[2]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Yopo(BALL, rounds=0), "rounds=0"),
        (lambda: Trades(BALL, steps=0), "steps=0"),
        (lambda: Trades(BALL, beta=-1), "beta=-1"),
        (lambda: GradAlign(BALL, start="previous"), "zero, random"),
        (lambda: GradAlign(BALL, strength=-1), "strength=-1"),
        (lambda: FastAdvProp(BALL, adversarial=0), r"0 is Natural\(\)"),
        (lambda: FastAdvProp(BALL, adversarial=1.0), "between 0 and 1"),
        (lambda: FastAdvProp(BALL, mix="cutout"), "none, mixup, cutmix"),
        (lambda: FastAdvProp(BALL, mix_alpha=0), "mix_alpha=0"),
        (lambda: Natural(mix="cutout"), "none, mixup, cutmix"),
        (lambda: PGDTraining(BALL, 1, clean=1.0), "share of the loss"),
        (lambda: PGDTraining(BALL, 1, norm="other"), "main, aux"),
        (lambda: PGDTraining(BALL, 1, noise=0), "start='zero'"),
        (lambda: PGDTraining(BALL, 1, targeted=True, only_correct=True), "leave one out"),
    ],
)
def test_bad_hyperparameters_are_explained(build, message):
    with pytest.raises(ValueError, match=message):
        build()
