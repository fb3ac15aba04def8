"""Random points of the perturbation sets: inside, evenly spread, and of their generator."""

import math

import pytest
import torch

from gratis.balls import BALLS, L1, L2, Ball, Linf
from tests.every_ball import assert_inside, balls, images, shapes


@balls
@shapes
def test_samples_lie_in_the_set(ball: Ball, shape: tuple[int, ...]) -> None:
    x = images(shape)
    for _ in range(20):
        assert_inside(ball, x, ball.sample(x))
        assert (ball.size(ball.sample_unclipped(x)) <= ball.eps * (1 + 1e-5)).all()


def test_linf_samples_are_uniform_in_every_pixel() -> None:
    ball, x = Linf(0.2), torch.full((4000, 1, 2, 2), 0.5)
    pixels = ball.sample(x).flatten(1).double() / ball.eps
    assert pixels.min() < -0.999
    assert pixels.max() > 0.999
    # moments of a uniform in [-1, 1]: 0, 1/3, 1/5; five standard errors of 4000 draws
    assert pixels.mean(0).abs().max() < 5 * math.sqrt(1 / 3 / 4000)
    assert (pixels.square().mean(0) - 1 / 3).abs().max() < 5 * math.sqrt(4 / 45 / 4000)
    assert torch.corrcoef(pixels.T).fill_diagonal_(0).abs().max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("pixels", [1, 2, 12])
def test_l2_samples_fill_the_ball_evenly(pixels: int) -> None:
    ball, count = L2(0.3), 4000
    delta = ball.sample_unclipped(torch.full((count, 1, 1, pixels), 0.5)).flatten(1).double()
    # uniform in a ball: radius^pixels is uniform in [0, 1] (Kolmogorov-Smirnov), directions even
    share = (delta.norm(dim=1) / ball.eps).pow(pixels).sort().values
    steps = torch.arange(1, count + 1) / count
    assert (share - steps).abs().max() < 1.95 / math.sqrt(count)  # p = 0.001
    assert (delta.mean(0).abs() < 5 * ball.eps / math.sqrt(count)).all()
    signs = (delta > 0).double().mean(0)
    assert ((signs - 0.5).abs() < 5 * 0.5 / math.sqrt(count)).all()


@pytest.mark.parametrize("pixels", [1, 2, 12])
def test_l1_samples_fill_the_ball_evenly(pixels: int) -> None:
    ball, count = L1(0.3), 4000
    delta = ball.sample_unclipped(torch.full((count, 1, 1, pixels), 0.5)).flatten(1).double()
    # as in L2: the share of the volume within each sample's length is uniform, signs are even
    share = (ball.size(delta) / ball.eps).pow(pixels).sort().values
    steps = torch.arange(1, count + 1) / count
    assert (share - steps).abs().max() < 1.95 / math.sqrt(count)
    signs = (delta > 0).double().mean(0)
    assert ((signs - 0.5).abs() < 5 * 0.5 / math.sqrt(count)).all()
    # on its sphere a pixel's share s has 1 - (1 - s)^(pixels - 1) of the others below
    if pixels > 1:
        shares = delta.abs()[:, 0] / ball.size(delta)
        below = (1 - (1 - shares).pow(pixels - 1)).sort().values
        assert (below - steps).abs().max() < 1.95 / math.sqrt(count)


@pytest.mark.parametrize("norm", BALLS)
def test_sample_is_the_unclipped_sample_cut_to_the_box(norm: str) -> None:
    ball, x = BALLS[norm](0.5), images((5, 3, 4, 4))
    one = ball.sample(x, torch.Generator().manual_seed(3))
    other = ball.sample_unclipped(x, torch.Generator().manual_seed(3))
    assert torch.equal(one, ball.into_box(x, other))
    assert not torch.equal(one, other)  # the edges were cut


@pytest.mark.parametrize("norm", BALLS)
def test_sample_follows_its_generator(norm: str) -> None:
    ball, x = BALLS[norm](0.5), torch.rand(2, 3, 4, 4)
    draw = [ball.sample(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
