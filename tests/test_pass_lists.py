"""What each method asks to learn from, step by step, without any network."""

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
from tests.uphill import BALL, EPS, GREY, LABELS, passes_of, shape, shift


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
