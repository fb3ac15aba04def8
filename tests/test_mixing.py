"""Mixup and CutMix: which images are blended, and that labels are counted alike."""

import pytest
import torch
from torch import nn

from gratis import FastAdvProp, Natural
from tests.uphill import BALL, passes_of

SWAPPED = torch.tensor([0, 1])


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


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_of_the_beta_distribution(alpha):
    """Its mean is a half, its variance 1 / (4 (2 alpha + 1))."""
    x = torch.tensor([0.0, 1.0]).view(-1, 1, 1, 1)
    shares = []
    for seed in range(1500):
        (p,), _ = passes_of(Natural(mix="mixup", mix_alpha=alpha), x, SWAPPED, seed=seed)
        shares.append(p.x[0].item())
    shares = 1 - torch.tensor(shares)
    # where the order leaves both in place, the share does not show
    shown = shares[shares < 1]
    assert 650 < len(shown) < 850
    variance = 1 / (4 * (2 * alpha + 1))
    assert shown.mean().item() == pytest.approx(0.5, abs=4 * (variance / len(shown)) ** 0.5)
    assert shown.var().item() == pytest.approx(variance, rel=0.15)


def test_rectangles_lie_anywhere_and_are_cut_at_the_edges():
    x = torch.tensor([0.0, 1.0]).view(-1, 1, 1, 1).expand(-1, 1, 16, 16).contiguous()
    pasted = torch.zeros(16, 16)
    for seed in range(400):
        (p,), _ = passes_of(Natural(mix="cutmix"), x, SWAPPED, seed=seed)
        pasted += (p.x != x)[0, 0]
    assert pasted.min() > 0
    # a place near the middle is covered by more rectangles, left as often from right as top from
    # bottom
    assert pasted[8, 8] > 1.3 * pasted[0, 0]
    for corner in (pasted[0, 15], pasted[15, 0], pasted[15, 15]):
        assert corner.item() == pytest.approx(pasted[0, 0].item(), rel=0.4)
