"""The laws of the perturbation sets: projection, sampling, steepest direction, checks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from gratis.balls import BALLS, L1, L2, Ball, Linf, sparse_sign

ULP = 2.0**-23
"""Pixels lie in [0, 1]: x + delta - x is exact to half of this."""

SHAPES = [(4, 3, 5, 5), (3, 1, 2, 7), (1, 1, 1, 1), (1, 3, 4, 2)]
RADII = {
    "linf": (0.0, 1e-3, 8 / 255, 0.3, 1.0),
    "l2": (0.0, 1e-3, 128 / 255, 2.0, 100.0),
    "l1": (0.0, 1e-3, 1.0, 12.0, 1000.0),
}
ALL_BALLS = [BALLS[norm](eps) for norm, radii in RADII.items() for eps in radii]

balls = pytest.mark.parametrize("ball", ALL_BALLS, ids=repr)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def images(shape: tuple[int, ...]) -> Tensor:
    """Random pixels, a third of them at the edges of the box."""
    x = torch.rand(shape)
    edge = torch.rand(shape)
    return torch.where(edge < 1 / 6, 0.0, torch.where(edge > 5 / 6, 1.0, x))


def assert_inside(ball: Ball, x: Tensor, delta: Tensor) -> None:
    assert delta.shape == x.shape
    assert (ball.size(delta) <= ball.eps * (1 + 1e-5) + ULP).all()
    assert (x + delta >= ball.low - ULP).all()
    assert (x + delta <= ball.high + ULP).all()


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


# --- L1 and the pixel box together


pixels = st.floats(0, 1) | st.sampled_from([0.0, 1.0])
changes = st.floats(-3, 3) | st.sampled_from([0.0, -1.0, 1.0])
lists = st.lists(st.tuples(pixels, changes), min_size=1, max_size=7)
radii = st.floats(0, 4) | st.sampled_from([0.0, 1e-9, 1.0, 1000.0])


def as_images(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def bisected(x: Tensor, delta: Tensor, eps: float) -> Tensor:
    """The projection on L1 ball and box, by halving the interval of what every pixel loses."""
    room = torch.where(delta > 0, 1 - x, x)
    low, high = 0.0, float(delta.abs().max())
    if torch.minimum(delta.abs(), room).sum() <= eps:
        high = 0.0
    for _ in range(100):
        less = (low + high) / 2
        size = torch.minimum((delta.abs() - less).clamp_min(0), room)
        low, high = (low, less) if size.sum() <= eps else (less, high)
    return delta.sign() * torch.minimum((delta.abs() - high).clamp_min(0), room)


@given(image=lists, eps=radii)
def test_l1_projects_on_ball_and_box_at_once(image: list[tuple[float, float]], eps: float) -> None:
    x, delta = as_images([p for p, _ in image]), as_images([d for _, d in image])
    ball = L1(eps)
    nearest = ball.project(x, delta)
    assert ball.size(nearest) <= eps * (1 + 1e-12) + 1e-15
    assert (x + nearest).min() >= -1e-15
    assert (x + nearest).max() <= 1 + 1e-15
    torch.testing.assert_close(nearest, bisected(x, delta, eps), rtol=0, atol=1e-9)
    torch.testing.assert_close(ball.project(x, nearest), nearest, rtol=0, atol=1e-12)


def quadratic_programme(x: Tensor, delta: Tensor, eps: float) -> float:
    """The squared distance of one image's delta to L1 ball and box, by a solver."""
    pixels, change = x.flatten().numpy(), delta.flatten().numpy()
    n = len(pixels)
    # raised and lowered, both at least 0, make up the perturbation

    def missing(v: np.ndarray) -> np.ndarray:
        return v[:n] - v[n:] - change

    found = minimize(
        lambda v: (missing(v) ** 2).sum(),
        np.zeros(2 * n),
        jac=lambda v: 2 * np.concatenate([missing(v), -missing(v)]),
        bounds=[(0, 1 - p) for p in pixels] + [(0, p) for p in pixels],
        constraints={"type": "ineq", "fun": lambda v: eps - v.sum()},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success
    return float(found.fun)


@pytest.mark.parametrize("eps", [0.0, 0.3, 0.9, 2.0, 50.0])
def test_l1_projection_is_the_quadratic_programme(eps: float) -> None:
    x, delta = images((4, 1, 2, 3)).double(), torch.randn(4, 1, 2, 3, dtype=torch.float64)
    away = (L1(eps).project(x, delta) - delta).square().flatten(1).sum(1)
    exact = [quadratic_programme(*pair, eps) for pair in zip(x, delta, strict=True)]
    assert away.tolist() == pytest.approx(exact, abs=1e-7)


def test_l1_projection_obeys_the_variational_inequality_in_many_dimensions() -> None:
    x, ball = images((10, 3, 8, 8)).double(), L1(6.0)
    delta = torch.randn_like(x)
    nearest = ball.project(x, delta)
    for _ in range(50):
        other = ball.project(x, torch.randn_like(x))
        product = ((delta - nearest) * (other - nearest)).flatten(1).sum(1)
        assert (product <= 1e-9).all()


def test_l1_keeps_its_length_where_one_after_the_other_loses_it() -> None:
    x, delta = torch.full((1, 1, 1, 3), 0.5), torch.tensor([[[[3.0, 0.4, 0.0]]]])
    ball = L1(0.8)
    torch.testing.assert_close(ball.project(x, delta).flatten().tolist(), [0.5, 0.3, 0.0])
    one_after_the_other = ball.into_box(x, ball.onto_ball(delta))
    torch.testing.assert_close(one_after_the_other.flatten().tolist(), [0.5, 0.0, 0.0])


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


# --- sampling


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


# --- climbing


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
