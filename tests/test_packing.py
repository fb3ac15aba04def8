"""The packed evaluator: the outcome of the plain loop, at the cost that the attacks promise."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gratis.attacks import Attacked, build_attack
from gratis.attacks.packing import FEWEST, NUMBERS_IN_CACHE, in_batches, packed
from gratis.attacks.search import STEPS_BETWEEN_DROPS, Attack, image_key, starts
from gratis.balls import L1, L2, Ball, Linf
from gratis.budget import Meter
from gratis.evaluate import robust_accuracy
from gratis.evaluate.robustness import BATCHES_IN_A_POOL
from gratis.losses import cross_entropy
from gratis.tasks import Classification
from tests.problems import Counting, a_problem, batched, linear_model, own_labels
from tests.reference.evaluation import broken_by_pgd


def attacked_by(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, size: int | None) -> Attacked:
    model.eval().requires_grad_(False)
    return Attacked(
        *(model, x, y, ball, cross_entropy, Classification().correct),
        keys=list(range(len(x))),
        meter=Meter(),
        size=size,
    )


# --- batches


def of_shape(*shape: int, size: int | None) -> Attacked:
    x, y = torch.zeros(()).expand(shape), torch.zeros(shape[0], dtype=torch.int64)
    return attacked_by(nn.Identity(), x, y, Linf(0.1), size)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 20, 128])
def test_batches_are_as_few_as_can_be_and_as_large_as_each_other(size: int) -> None:
    attacked = of_shape(300, 1, 3, 3, size=size)
    for count in (0, 1, 7, 8, 31, 100, 300):
        rows = torch.randperm(count)
        batches = packed(rows, attacked)
        assert torch.equal(torch.cat([*batches, rows[:0]]), rows)
        sizes = [len(batch) for batch in batches]
        assert len(sizes) == -(-count // size)
        assert not sizes or max(sizes) <= min(size, min(sizes) + 1)


def test_without_a_size_all_are_one_batch() -> None:
    attacked = of_shape(77, 1, 3, 3, size=None)
    assert [len(rows) for rows in packed(torch.arange(77), attacked)] == [77]


def test_large_images_come_in_batches_that_fit_a_cpus_caches() -> None:
    numbers = NUMBERS_IN_CACHE * torch.get_num_threads()
    rows = torch.arange(8 * FEWEST)
    for size in (None, 500):
        attacked = of_shape(len(rows), 1, numbers // (2 * FEWEST), 1, size=size)
        assert [len(some) for some in packed(rows, attacked)] == [2 * FEWEST] * 4
        # but not in batches that are too small to be fast
        attacked = of_shape(len(rows), 1, numbers, 1, size=size)
        assert [len(some) for some in packed(rows, attacked)] == [FEWEST] * 8
        assert len(packed(rows[: FEWEST - 1], attacked)) == 1


class Sizes(nn.Module):
    """Keeps how many images the model is asked about at a time, and under which autocast."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, list[tuple[int, bool]]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), torch.is_autocast_enabled("cpu")))
        return self.inner(x)


@pytest.mark.parametrize(
    "attack",
    ["pgd-25-3", "pgd-5-2:bf16", "pgd-5-2:compatible", "apgd-ce", "apgd-t", "fab-t", "square"],
)
@pytest.mark.usefixtures("few_steps", "few_queries")
def test_the_model_is_asked_in_batches_of_the_loaders_size_at_most(attack: str) -> None:
    model, x, y, ball = a_problem(100)
    sizes = Sizes(model)
    robust_accuracy(sizes, batched(x, y, 16), [attack], ball=ball)
    seen = Counter(size for size, _ in sizes.seen)
    assert max(seen) == 16
    assert seen[16] > 2


def test_what_survives_of_a_pool_fills_batches_again() -> None:
    """Four batches with half of their images broken at once are two full ones from then on."""
    model = linear_model(2, 9)
    x = torch.rand(64, 1, 3, 3, dtype=torch.float64)
    y = own_labels(model, x)
    y[::2] = 1 - y[::2]
    assert BATCHES_IN_A_POOL == 4
    sizes = Sizes(model)
    found = robust_accuracy(sizes, batched(x, y, 16), ["pgd-20"], ball=Linf(1e-9))
    assert int(found.robust.sum()) == 32
    assert Counter(size for size, _ in sizes.seen) == {16: 4 + 2 * 21}


# --- the outcome


@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.3), L1(2.0)], ids=repr)
@pytest.mark.parametrize("steps", [9, 10, 25])
def test_every_image_ends_as_in_the_plain_loop(ball: Ball, steps: int) -> None:
    model, x, y, _ = a_problem(16)
    model.eval()
    own = [
        [starts(ball, x[i : i + 1], [image_key(11, x[i], int(y[i]))], r) for r in range(2)]
        for i in range(len(x))
    ]
    broken = broken_by_pgd(model, x, y, own, ball.norm, ball.eps, ball.eps / 4, steps)
    order = torch.randperm(len(x))
    for size in (1, 3, 8, 16):
        found = robust_accuracy(
            model, batched(x[order], y[order], size), [f"pgd-{steps}-2"], ball=ball, seed=11
        )
        assert torch.equal(~found.robust, broken[order])
    assert 0 < int(found.robust.sum()) < int(found.correct[:, 0].sum())


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(
    "name", ["cw-12-2", "pgd-12-2:climb-on", "pgd-12-2:compatible", "pgd-12-2:bf16", "apgd-ce"]
)
def test_packing_changes_neither_points_nor_outcomes(name: str) -> None:
    model, x, _, ball = a_problem()
    y = own_labels(model, x)
    attack = build_attack(name)
    point, broken = attack(attacked_by(model, x, y, ball, None))
    assert 0 < int(broken.sum()) < len(x)
    for size in (1, 6, 16):
        again = in_batches(attack, attacked_by(model, x, y, ball, size))
        torch.testing.assert_close(again[0], point, rtol=0, atol=1e-9)
        assert torch.equal(again[1], broken)


@pytest.mark.usefixtures("few_steps")
def test_parts_of_batches_are_put_together() -> None:
    """An attack made of parts, given in batches: as if it had been given all at once."""
    model, x, _, ball = a_problem()
    y = own_labels(model, x)

    class Whole:
        """AutoAttack, whether or not it packs by itself."""

        def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
            return build_attack("autoattack")(replace(attacked, size=None))

    def parts(attack: Attack, size: int | None) -> Attacked:
        attacked = attacked_by(model, x, y, ball, size)
        in_batches(attack, attacked)
        return attacked

    one, several = parts(Whole(), None), parts(Whole(), 9)  # type: ignore[arg-type]
    assert [part.attack for part in several.parts] == [part.attack for part in one.parts]
    for mine, theirs in zip(several.parts, one.parts, strict=True):
        assert torch.equal(mine.given, theirs.given)
        assert torch.equal(mine.broken, theirs.broken)
        assert mine.meter.probes == theirs.meter.probes


def test_images_of_two_shapes_are_two_pools() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)).double()
    wide, high = torch.rand(2, 6, 1, 4, 8, dtype=torch.float64).split([1, 1])
    x = [wide[0, :3], wide[0, 3:], high[0].transpose(-1, -2)]
    loader = [(part, own_labels(model, part)) for part in x]
    found = robust_accuracy(model, loader, ["pgd-2"], ball=Linf(0.01))
    assert found.correct[:, 0].all()
    assert len(found.robust) == 12


# --- cost


def units(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, size: int) -> tuple[int, Tensor]:
    counting = Counting(model)
    found = robust_accuracy(counting, batched(x, y, size), ["pgd-50-10"], ball=ball)
    metered = sum(meter.forwards + 2 * meter.probes for meter in found.meters)
    assert metered == counting.forwards + counting.backwards
    return metered, found.robust


def test_what_an_image_costs_under_pgd_50_10() -> None:
    """1 where it is misclassified, 10 x (50 x 2 + 1) + 1 where nothing breaks it; where something
    does, no more than the stage in which it is, and the question asked of it again.
    """
    model, x, y, ball = a_problem(9)
    whole, robust = units(model, x, y, ball, 2)
    one_by_one = [units(model, x[i : i + 1], y[i : i + 1], ball, 1)[0] for i in range(len(x))]
    assert sum(one_by_one) == whole
    clean = own_labels(model, x) == y
    assert {int(right) for right in clean} == {0, 1}
    for cost, right, stands in zip(one_by_one, clean, robust, strict=True):
        if stands:
            assert cost == 1011
        elif right:
            assert cost <= 1010
            # restarts that found nothing, stages of ten steps, the clean pass, asking again
            assert (cost - 2) % (50 * 2 + 1) % (STEPS_BETWEEN_DROPS * 2) == 0
        else:
            assert cost == 1
    assert 0 < int(robust.sum()) < int(clean.sum())


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: values and shapes that depend on data."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.name().split(".")[0]
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"):
            self.count += 1
        elif name in ("aten::index", "aten::index_put", "aten::index_put_"):
            self.count += any(i is not None and i.dtype == torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))


def waits(name: str, ball: Ball, size: int) -> int:
    torch.manual_seed(5)
    model, x, _, _ = a_problem(20)
    y = own_labels(model, x)
    attacked = attacked_by(model, x, y, ball, size)
    with Waits() as counted:
        build_attack(name)(attacked)
    return counted.count


@pytest.mark.parametrize("ball", [Linf(1e-9), L2(1e-9), L1(1e-9)], ids=repr)
@pytest.mark.parametrize("form", ["pgd-{}", "pgd-{}:compatible", "cw-{}:bf16", "pgd-{}:climb-on"])
def test_nothing_waits_for_the_device_at_a_step(form: str, ball: Ball) -> None:
    one, most = (form.format(steps) for steps in (1, STEPS_BETWEEN_DROPS))
    whole = waits(most, ball, 20)
    assert waits(one, ball, 20) == whole <= 3
    # nor at a batch: once a stage of the whole pool
    assert waits(most, ball, 4) == whole
    stages = [whole, *(waits(form.format(n * STEPS_BETWEEN_DROPS), ball, 20) for n in (2, 3))]
    assert {b - a for a, b in pairwise(stages)} <= {0, 1, 2}


def test_the_guard_sees_a_wait() -> None:
    x = torch.rand(3)
    with Waits() as counted:
        x[x > 0.5], x[0].item(), x.nonzero()
    assert counted.count == 3
