"""Projection on the L1 ball and the pixel box together, held against bisection and a solver."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from gratis.balls import L1
from tests.every_ball import images

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
