"""The laws of the perturbation sets: projection, exact placing, checks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gratis.balls import BALLS, L1, L2, Ball, Linf
from tests.every_ball import ULP, assert_inside, balls, images, shapes

# --- projection


@balls
@shapes
def test_project_lands_inside_ball_and_box(ball: Ball, shape: tuple[int, ...]) -> None:
    for length in (1e-3, 0.1, 10.0):
        x, delta = images(shape), length * torch.randn(shape)
        assert_inside(ball, x, ball.project(x, delta))


@balls
@shapes
def test_project_twice_is_project_once(ball: Ball, shape: tuple[int, ...]) -> None:
    x = images(shape)
    once = ball.project(x, torch.randn(shape))
    torch.testing.assert_close(ball.project(x, once), once, rtol=1e-6, atol=ULP)


@balls
@shapes
def test_project_leaves_points_of_the_set_alone(ball: Ball, shape: tuple[int, ...]) -> None:
    x = 0.25 + 0.5 * torch.rand(shape)
    direction = torch.randn(shape)
    shrink = 0.99 / ball.size(direction).clamp_min(1e-12)
    reach = min(ball.eps, 0.2)
    delta = direction * (reach * shrink).view(-1, 1, 1, 1)
    torch.testing.assert_close(ball.project(x, delta), delta, rtol=0, atol=ULP)


@pytest.mark.parametrize("ball", [Linf(0.3), L2(0.3), L1(0.3)], ids=repr)
def test_onto_ball_is_the_nearest_point_of_a_fine_grid(ball: Ball) -> None:
    spacing = 0.01
    axis = torch.arange(-0.3, 0.3 + 1e-6, spacing, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    grid = grid[ball.size(grid) <= ball.eps + 1e-9]
    deltas = torch.randn(50, 1, 1, 2, dtype=torch.float64)
    for delta, nearest in zip(deltas, ball.onto_ball(deltas), strict=True):
        best = (grid - delta).flatten(1).norm(dim=1).min()
        found = (nearest - delta).norm()
        assert found <= best + 1e-9  # no point of the set is nearer
        assert found >= best - 2 * spacing  # and this one is near enough to be in the set


def test_onto_ball_obeys_the_variational_inequality_in_many_dimensions() -> None:
    for ball in (Linf(0.1), L2(1.0), L1(5.0)):
        delta = 3 * torch.randn(20, 3, 4, 4, dtype=torch.float64)
        nearest = ball.onto_ball(delta)
        for _ in range(50):
            other = ball.onto_ball(torch.randn_like(delta))
            product = ((delta - nearest) * (other - nearest)).flatten(1).sum(1)
            assert (product <= 1e-9).all()  # holds for the nearest point and no other


@balls
def test_onto_ball_clips_shortens_or_takes_the_same_of_every_pixel(ball: Ball) -> None:
    delta = torch.randn(4, 3, 5, 5)
    nearest = ball.onto_ball(delta)
    if isinstance(ball, Linf):
        assert torch.equal(nearest, delta.clamp(-ball.eps, ball.eps))
    elif isinstance(ball, L1):
        lost = (delta - nearest).abs().flatten(1)
        most = lost.amax(1, keepdim=True)
        left = nearest.flatten(1) != 0
        torch.testing.assert_close(lost[left], most.expand_as(lost)[left], rtol=0, atol=1e-6)
        assert (delta.flatten(1).abs() <= most + 1e-6)[~left].all()
        full = ball.size(delta).clamp_max(ball.eps)
        torch.testing.assert_close(ball.size(nearest), full, rtol=1e-6, atol=1e-6)
    else:
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        torch.testing.assert_close(nearest, delta * (ball.eps / length).clamp_max(1.0))


@shapes
def test_into_box_never_lengthens(shape: tuple[int, ...]) -> None:
    for ball in (Linf(0.3), L2(2.0), L1(3.0)):
        for length in (1e-3, 0.3, 3.0):
            x, delta = images(shape), length * torch.randn(shape)
            cut = ball.into_box(x, delta)
            assert (cut.abs() <= delta.abs() + ULP).all()
            assert (ball.size(cut) <= ball.size(delta) + ULP * math.sqrt(x[0].numel())).all()
            assert (cut * delta >= 0).all()  # and turns no pixel's sign


@pytest.mark.parametrize("norm", BALLS)
def test_all_balls_work_in_another_pixel_range(norm: str) -> None:
    ball = BALLS[norm](4.0, low=-1.0, high=255.0)
    x = 256 * torch.rand(3, 3, 4, 4) - 1
    ball.check(x)
    delta = ball.project(x, 100 * torch.randn_like(x))
    assert (ball.size(delta) <= 4.0 + 1e-4).all()
    place = ball.place(x, delta)
    assert place.min() >= -1.0
    assert place.max() <= 255.0


# --- placing: exactly inside the pixel box


edges = st.floats(0, 1, width=32) | st.sampled_from(
    [0.0, 1.0, float(np.nextafter(np.float32(1), np.float32(0))), 1e-45, 2**-24, 1 - 2**-24]
)


@given(
    pixel=edges,
    delta=st.floats(-1, 1, width=32),
    norm=st.sampled_from(sorted(BALLS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_place_stays_exactly_inside_the_box(
    pixel: float, delta: float, norm: str, dtype: torch.dtype
) -> None:
    ball = BALLS[norm](8 / 255)
    x = torch.full((1, 1, 1, 1), pixel, dtype=dtype)
    d = torch.full((1, 1, 1, 1), delta, dtype=dtype)
    for candidate in (d, ball.project(x, d), ball.into_box(x, d)):
        placed = ball.place(x, candidate)
        assert 0.0 <= placed.item() <= 1.0
        ball.check(placed)


def test_place_is_a_new_tensor() -> None:
    x, delta = torch.full((1, 1, 2, 2), 0.9), torch.full((1, 1, 2, 2), 0.5)
    placed = Linf(0.5).place(x, delta)
    assert torch.equal(placed, torch.ones_like(x))
    assert torch.equal(x, torch.full((1, 1, 2, 2), 0.9))
    assert torch.equal(delta, torch.full((1, 1, 2, 2), 0.5))


# --- what a user may get wrong


@pytest.mark.parametrize("norm", BALLS)
def test_check_says_what_to_do_about_unusable_images(norm: str) -> None:
    ball = BALLS[norm](8 / 255)
    x = torch.rand(2, 3, 4, 4)
    ball.check(x)
    ball.check(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    ball.check(x[:0])
    with pytest.raises(ValueError, match=r"uint8.*float\(\) / 255"):
        ball.check((x * 255).byte())
    with pytest.raises(ValueError, match=r"int64"):
        ball.check((x * 255).long())
    with pytest.raises(ValueError, match=r"from -0\.5 to .*normalisation into the model"):
        ball.check(torch.cat([x, torch.full_like(x, -0.5)]))
    with pytest.raises(ValueError, match=r"to 1\.5, outside .*normalisation into the model"):
        ball.check(torch.cat([x, torch.full_like(x, 1.5)]))
    with pytest.raises(ValueError, match=r"to 255, outside .*x / 255"):
        ball.check(torch.cat([x * 255, torch.full_like(x, 255.0)]))


def test_check_tells_rounding_from_normalisation() -> None:
    x = torch.rand(2, 3, 4, 4)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 0.0, 1 + 2**-23
    expected = r"to 1\.0000001192092896, a little outside .*x\.clamp\(0\.0, 1\.0\)"
    with pytest.raises(ValueError, match=expected):
        Linf(8 / 255).check(x)
    with pytest.raises(ValueError, match=r"from -0\.0625 .*x\.clamp\(0\.0, 255\.0\)"):
        Linf(8, high=255.0).check(torch.tensor([[-0.0625, 254.0]]))
    with pytest.raises(ValueError, match="normalisation into the model"):
        Linf(8 / 255).check(x + 0.002)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_check_refuses_pixels_that_lie_too_far_apart(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"too far apart to be moved by eps; give .*x\.float\(\)"):
        Linf(8 / 255).check(torch.rand(2, 3, 4, 4).to(dtype))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_check_names_pixels_that_are_no_numbers(bad: float) -> None:
    x = torch.rand(2, 3, 4, 4)
    x[1, 0, 2, 2] = bad
    with pytest.raises(ValueError, match=r"1 of 2 images .* not finite.*leave them out"):
        Linf(8 / 255).check(x)


def test_radii_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"8/255"):
        Linf(8)
    for ball in (Linf, L2, L1):
        for eps in (-0.1, math.nan, math.inf):
            with pytest.raises(ValueError, match="radius"):
                ball(eps)
        with pytest.raises(ValueError, match="must lie below"):
            ball(0.1, low=1.0, high=0.0)
    assert Linf(8, high=255.0).eps == 8
