"""The confidence interval of a share of images."""

import pytest
from scipy.stats import beta

from gratis.evaluate import clopper_pearson


@pytest.mark.parametrize("trials", [1, 2, 7, 24, 100, 1000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_equals_the_beta_quantiles(trials: int, confidence: float) -> None:
    tail = (1 - confidence) / 2
    chosen = {0, 1, 2, trials // 3, trials // 2, trials - 2, trials - 1, trials}
    for successes in sorted(k for k in chosen if 0 <= k <= trials):
        failures = trials - successes
        low = beta.ppf(tail, successes, failures + 1) if successes else 0.0
        high = beta.ppf(1 - tail, successes + 1, failures) if failures else 1.0
        assert clopper_pearson(successes, trials, confidence) == pytest.approx(
            (low, high), abs=1e-9
        )


@pytest.mark.parametrize(
    ("successes", "trials", "percent"),
    [
        (450, 1000, (41.89, 48.14)),
        (4321, 10000, (42.24, 44.19)),
        (958, 1000, (94.36, 96.96)),
        (0, 300, (0.0, 1.22)),
    ],
)
def test_known_values(successes: int, trials: int, percent: tuple[float, float]) -> None:
    found = [100 * bound for bound in clopper_pearson(successes, trials)]
    assert found == pytest.approx(percent, abs=0.005)


def test_holds_the_share_and_mirrors() -> None:
    for successes in range(21):
        low, high = clopper_pearson(successes, 20)
        assert 0 <= low <= successes / 20 <= high <= 1
        mirrored = clopper_pearson(20 - successes, 20)
        assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)
