"""Climbing in the perturbation sets: steepest directions, and steps of any gradient."""

import math

import pytest
import torch
from torch import Tensor

from gratis.balls import BALLS, L1, L2, Ball, Linf, sparse_sign
from tests.every_ball import ULP, assert_inside, images, shapes


@pytest.mark.parametrize("norm", BALLS)
@shapes
def test_steepest_beats_every_other_unit_direction(norm: str, shape: tuple[int, ...]) -> None:
    ball, grad = BALLS[norm](0.5), torch.randn(shape, dtype=torch.float64)

    def growth(direction: Tensor) -> Tensor:
        return (grad * direction).flatten(1).sum(1)

    steepest = ball.steepest(grad)
    torch.testing.assert_close(ball.size(steepest), torch.ones(shape[0], dtype=torch.float64))
    for _ in range(200):
        other = torch.randn_like(grad)
        other /= ball.size(other).view(-1, 1, 1, 1)
        assert (growth(steepest) >= growth(other) - 1e-12).all()


def test_l1_steps_change_a_hundredth_of_the_pixels() -> None:
    grad = torch.randn(3, 3, 16, 10)
    grad[1] = 0
    grad[2].flatten()[3:] = 0  # fewer slopes than pixels to change
    step = L1(1.0).steepest(grad)
    assert (step != 0).flatten(1).sum(1).tolist() == [5, 0, 3]
    least = grad[0].abs().flatten().topk(5).values[-1]
    expected = torch.where(grad[0].abs() >= least, grad[0].sign() / 5, 0.0)
    torch.testing.assert_close(step[0], expected)
    torch.testing.assert_close(L1(1.0).size(step), torch.tensor([1.0, 0.0, 1.0]))


def test_sparse_signs_by_hand() -> None:
    grad = torch.tensor([[3.0, -2.0, 2.0, 1.0], [1.0, 2.0, 3.0, -4.0]])
    step = sparse_sign(grad, torch.tensor([1.5, 0.0]))
    assert torch.equal(step * 3, torch.tensor([[1.0, -1.0, 1.0, 0.0], [0.0, 0.0, 0.0, -3.0]]))
    assert torch.equal(sparse_sign(grad, torch.tensor([9.0, 9.0])), grad.sign() / 4)


def test_pixels_at_the_edge_are_left_out_of_l1_steps() -> None:
    x, grad = torch.zeros(1, 1, 2, 2), torch.tensor([[[[-9.0, 1.0], [2.0, -3.0]]]])
    moved = L1(5.0).ascend(x, torch.zeros_like(x), grad, 0.5)
    assert moved.flatten().tolist() == [0.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize("ball", [Linf(0.3), L2(0.8), L1(2.0)], ids=repr)
@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e8, 1e20])
def test_ascend_ignores_the_gradients_scale(ball: Ball, scale: float) -> None:
    x, grad = images((4, 3, 5, 5)), torch.randn(4, 3, 5, 5)
    delta = ball.sample(x)
    plain = ball.ascend(x, delta, grad, 0.1)
    scaled = ball.ascend(x, delta, grad * scale, 0.1)
    torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=2 * ULP)
    assert not torch.allclose(plain, delta, atol=1e-3)


@pytest.mark.parametrize("ball", [Linf(0.3), L2(0.8), L1(2.0)], ids=repr)
def test_one_images_scale_does_not_touch_another(ball: Ball) -> None:
    x, grad = images((3, 1, 4, 4)), torch.randn(3, 1, 4, 4)
    delta = ball.sample(x)
    grad[1] *= 1e18
    together = ball.ascend(x, delta, grad, 0.1)
    for i in range(3):
        alone = ball.ascend(x[i : i + 1], delta[i : i + 1], grad[i : i + 1], 0.1)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=ULP)


@pytest.mark.parametrize("ball", [Linf(0.3), L2(0.8), L1(2.0)], ids=repr)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_image_without_a_finite_gradient_keeps_its_perturbation(ball: Ball, bad: float) -> None:
    x, grad = images((3, 3, 4, 4)), torch.randn(3, 3, 4, 4)
    delta = ball.sample(x)
    whole = ball.ascend(x, delta, grad, 0.1)
    grad[1, 2, 3, 0] = bad
    moved = ball.ascend(x, delta, grad, 0.1)
    assert torch.equal(moved[1], delta[1])
    assert torch.equal(moved[[0, 2]], whole[[0, 2]])
    assert not torch.equal(moved[0], delta[0])


@pytest.mark.parametrize("ball", [Linf(0.3), L2(0.8), L1(2.0)], ids=repr)
def test_a_zero_gradient_moves_nothing(ball: Ball) -> None:
    x = images((3, 3, 4, 4))
    delta = ball.sample(x)
    moved = ball.ascend(x, delta, torch.zeros_like(x), 0.1)
    torch.testing.assert_close(moved, delta, rtol=1e-6, atol=ULP)
    assert torch.equal(ball.steepest(torch.zeros_like(x)), torch.zeros_like(x))


@pytest.mark.parametrize("ball", [Linf(0.3), L2(0.8), L1(2.0)], ids=repr)
def test_ascend_is_a_projected_step_and_may_exceed_eps(ball: Ball) -> None:
    x, grad = images((3, 3, 4, 4)), torch.randn(3, 3, 4, 4)
    delta = ball.sample(x)
    for step_size in (0.01, 0.5, 1e6):
        # L1's few pixels should not be those that cannot move
        free = ball.movable(x + delta, grad) if isinstance(ball, L1) else grad
        expected = ball.project(x, delta + step_size * ball.steepest(free))
        moved = ball.ascend(x, delta, grad, step_size)
        assert torch.equal(moved, expected)
        assert_inside(ball, x, moved)


@pytest.mark.parametrize("ball", [Linf(0.3), L2(0.8), L1(2.0)], ids=repr)
def test_ascend_takes_a_gradient_of_another_precision(ball: Ball) -> None:
    x, grad = images((2, 1, 3, 3)), torch.randn(2, 1, 3, 3).bfloat16()
    moved = ball.ascend(x, torch.zeros_like(x), grad, 0.1)
    assert moved.dtype == torch.float32
    assert torch.equal(moved, ball.ascend(x, torch.zeros_like(x), grad.float(), 0.1))
