"""FAB's projection: moves onto planes that stay in the pixel box."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from gratis.attacks.fab import onto_plane
from gratis.balls import L1, L2, Linf
from tests.norm_balls import images

pixels = st.floats(0, 1) | st.sampled_from([0.0, 1.0])
slopes = st.floats(-2, 2) | st.sampled_from([0.0, -1.0, 1.0])


@given(
    image=st.lists(st.tuples(pixels, slopes), min_size=1, max_size=6),
    level=st.floats(-5, 5),
    norm=st.sampled_from(["linf", "l2", "l1"]),
)
def test_moves_onto_planes_stay_in_the_box_and_reach_what_they_can(
    image: list[tuple[float, float]], level: float, norm: str
) -> None:
    ball = {"linf": Linf(0.1), "l2": L2(1.0), "l1": L1(1.0)}[norm]
    z = torch.tensor([p for p, _ in image], dtype=torch.float64).view(1, 1, 1, -1)
    w = torch.tensor([s for _, s in image], dtype=torch.float64).view(1, 1, 1, -1)
    w = torch.where(w.abs() < 1e-6, 0.0, w)  # squares of smaller ones are out of L2's sight
    moved = z + onto_plane(z, w, torch.tensor([level], dtype=torch.float64), ball)
    assert moved.min() >= -1e-12
    assert moved.max() <= 1 + 1e-12
    lowest, highest = float(w.clamp_max(0).sum()), float(w.clamp_min(0).sum())
    reached = float((w * moved).sum())
    assert reached == pytest.approx(min(max(level, lowest), highest), abs=1e-6)
    assert torch.equal(moved[w == 0], z[w == 0])


@pytest.mark.parametrize("seed", range(20))
def test_onto_plane_in_l1_is_the_linear_programme(seed: int) -> None:
    torch.manual_seed(seed)
    z, w = images(1, 1, 2, 3), torch.randn(1, 1, 2, 3, dtype=torch.float64)
    w[0, 0, 0, 0] *= seed % 3  # now and then a pixel without slope
    level = (w * torch.rand_like(z)).sum().view(1)
    move = onto_plane(z, w, level, L1(0.1))
    flat, slope = z.flatten().tolist(), w.flatten().tolist()
    found = linprog(
        [1.0] * 12,
        A_eq=[slope + [-s for s in slope]],
        b_eq=[float(level - (w * z).sum())],
        bounds=[(0, 1 - p) for p in flat] + [(0, p) for p in flat],
    )
    assert found.success
    assert float(move.abs().sum()) == pytest.approx(found.fun, abs=1e-9)
    assert float((w * (z + move)).sum()) == pytest.approx(float(level), abs=1e-9)
