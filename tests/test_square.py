"""Square's windows in L2 and L1: their bumps, and that they use the whole ball."""

import pytest
import torch
from torch import Tensor

from gratis.attacks.windows import Windows
from gratis.balls import L1, L2, Ball
from tests.norm_balls import BALLS, images


def some_windows(ball: Ball, x: Tensor, queries: int = 60) -> Windows:
    random = [torch.Generator().manual_seed(i) for i in range(len(x))]
    return Windows(random, x, ball, queries)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 9])
def test_bumps_have_length_one_and_two_signs(side: int) -> None:
    x = torch.zeros(2, 1, 9, 9, dtype=torch.float64)
    share = torch.tensor([0.2, 0.7])
    for ball in BALLS:
        bumps = some_windows(ball, x)._bumps(share, side, x)
        torch.testing.assert_close(ball.size(bumps), torch.ones(2, dtype=torch.float64))
        assert torch.equal(bumps[0], bumps[1].T)
        upper = bumps[1][: side // 2]
        assert (upper > 0).all()
        assert (bumps[1][side // 2 :] < 0).all()
        assert upper.numel() == 0 or upper.argmax() == upper.numel() // 2 // side * side + side // 2


def test_a_bump_by_hand() -> None:
    # three by three: the upper row alone, its middle 1 + 1/4 (L2), its ends 1/4
    x = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    bump = some_windows(L2(1.0), x)._bumps(torch.tensor([0.9]), 3, x)[0]
    torch.testing.assert_close(bump[0] / bump[0, 0], torch.tensor([1.0, 5.0, 1.0]).double())
    torch.testing.assert_close(bump[1:] / bump[1, 0], torch.tensor([[1.0] * 3, [1, 5, 1]]).double())


@pytest.mark.parametrize(
    "shape", [(3, 7, 11), (1, 28, 28), (1, 1, 1), (2, 2, 9), (1, 4, 4)], ids=str
)
@pytest.mark.parametrize("make", [L2, L1])
def test_windows_use_the_whole_ball_and_never_leave_it(
    make: type[Ball], shape: tuple[int, ...]
) -> None:
    for ball in (make(0.5), make(0.5, low=-50.0, high=51.0)):
        x = images(3, *shape)
        proposals = some_windows(ball, x)
        best = proposals.first(x)
        assert not torch.equal(best, x)
        for query in range(1, 60):
            area = 0.8 * shape[1] * shape[2] / 2 ** (query // 10)
            tried = proposals.next(query, area, x, best)
            ball.check(tried)
            size = ball.size(tried - x)
            assert (size <= ball.eps * (1 + 1e-9)).all()
            # a box that never binds; in a single pixel a bump may undo what was there
            if ball.high > 1 and shape[1] > 1:
                torch.testing.assert_close(size, torch.full_like(size, ball.eps))
            best = tried if query % 3 else best


def test_a_window_gets_what_the_other_held() -> None:
    x = torch.full((1, 1, 9, 9), 0.5, dtype=torch.float64)
    ball = L2(0.1)
    proposals = some_windows(ball, x)
    best = proposals.first(x)
    before, after = best - x, proposals.next(1, 9.0, x, best) - x
    touched = before != after
    assert int(touched.sum()) <= 18  # two windows of three by three
    torch.testing.assert_close(before[touched].norm(), after[touched].norm())
