"""How gradients travel: each exchange against the flattest loop.

Two processes are started once and do everything that the tests then look at.
"""

import numpy as np
import pytest
import torch

from gratis.batch import seeded
from gratis.comm_hooks import in_parts
from gratis.methods import METHODS
from tests.dying import assert_same
from tests.exchanges import (
    CPU,
    NAMES,
    QUANTISED,
    SEED,
    STEPS,
    UPDATES,
    WORLD,
    batch,
    learner,
    stream,
    there_and_back,
    together,
)
from tests.processes import start_together
from tests.two_processes import build, needs_gloo

pytestmark = needs_gloo
quantised = pytest.mark.parametrize("name", QUANTISED)
every = pytest.mark.parametrize("name", NAMES)
needs_powersgd = pytest.mark.skipif("powersgd" not in NAMES, reason="gradients are on the CPU")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hooks")
    start_together(together, WORLD, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


# --- the same everywhere, and what the flattest loop says


@every
def test_processes_stay_bitwise_equal(found, name):
    one, other = (f["exchanged"][name] for f in found)
    assert_same(one["averaged"], other["averaged"])
    assert_same(one["weights"], other["weights"])
    assert_same(one["state"], other["state"])
    assert not torch.equal(one["local"][0][0][0], one["local"][0][1][0])


def buckets(numbers):
    """Numbers [13] of parameters as DDP puts them into two buckets, with its own unused one."""
    used, spare = numbers[:6], numbers[6:]
    return [[*used[3:], *spare], [torch.zeros(1), *used[:3]]]


def drawn(update, bucket, rank):
    mixed = np.random.SeedSequence((SEED, update), spawn_key=(bucket, rank))
    return stream(int(mixed.generate_state(1, np.uint64)[0]))


def one_sided(local, bits, update):
    """The average of dequantised local gradients, tensor by tensor."""
    means = []
    for bucket in range(2):
        streams = [drawn(update, bucket, rank) for rank in range(WORLD)]
        for tensors in zip(*(buckets(gradients)[bucket] for gradients in local), strict=True):
            sums = [there_and_back(t, bits, s) for t, s in zip(tensors, streams, strict=True)]
            means.append((sums[0] + sums[1]) / WORLD)
    return means


def two_sided(local, bits, update):
    """The same in two halves of each bucket, whose average their server quantises again."""
    means = []
    for bucket in range(2):
        wholes = [torch.cat([t.flatten() for t in buckets(g)[bucket]]) for g in local]
        counts = [t.numel() for t in buckets(local[0])[bucket]]
        streams = [drawn(update, bucket, rank) for rank in range(WORLD)]
        halves = [in_parts(whole, counts, WORLD) for whole in wholes]
        coded = [
            [[there_and_back(piece, bits, own) for piece in half] for half in both]
            for both, own in zip(halves, streams, strict=True)
        ]
        for server, own in enumerate(streams):
            for a, b in zip(coded[0][server], coded[1][server], strict=True):
                means.append(there_and_back((a + b) / WORLD, bits, own))
    return means


@quantised
def test_what_arrives_is_what_the_flat_loop_makes_of_local_gradients(found, name):
    flat = two_sided if name.endswith("two-sided") else one_sided
    record = found[0]["exchanged"][name]
    for update in range(UPDATES):
        expected = flat(record["local"][update], QUANTISED[name], update)
        averaged = buckets(record["averaged"][update])
        got = torch.cat([t.flatten() for bucket in averaged for t in bucket])
        assert torch.equal(got, torch.cat([t.flatten() for t in expected]))


@quantised
def test_the_error_is_at_most_a_step_of_each_process(found, name):
    steps = STEPS[QUANTISED[name]]
    for f in found:
        for local, averaged in zip(
            *(f["exchanged"][name][k] for k in ("local", "averaged")), strict=True
        ):
            for a, b, got in zip(*local, averaged, strict=True):
                allowed = (a.norm() + b.norm()) / (2 * steps)
                if name.endswith("two-sided"):  # of the average, that has an error of its own
                    allowed += ((a + b) / 2).norm() / steps + allowed * a.numel() ** 0.5 / steps
                assert ((a + b) / 2 - got).abs().max() <= allowed * (1 + 1e-5)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_casts_are_pytorchs_own(found, name):
    record = found[0]["exchanged"][name]
    assert_same(record["averaged"][0], found[0]["pytorch"][name])
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    for local, averaged in zip(record["local"], record["averaged"], strict=True):
        for a, b, got in zip(*local, averaged, strict=True):
            assert torch.equal(got, (a.to(kind) / 2 + b.to(kind) / 2).float())


@needs_powersgd
def test_powersgd_keeps_what_it_left_out(found):
    """What is sent and what is kept make up the gradient: error feedback's own law."""
    records = [f["exchanged"]["powersgd"] for f in found]
    local, averaged = records[0]["local"], records[0]["averaged"]
    large = 2  # used.1.bias comes between: parameters in the order of the model
    for update in (0, 1):
        for a, b, got in zip(*local[update], averaged[update], strict=True):
            torch.testing.assert_close(got, (a + b) / 2, rtol=1e-6, atol=1e-9)
    assert torch.linalg.matrix_rank(averaged[2][large]) == 2
    kept = records[0]["state"]["gradients"]["error.1"]
    assert kept.shape == (WORLD, 310_201)
    assert not torch.equal(kept[0], kept[1])
    sent = sum(buckets(averaged[update])[1][3] for update in (2, 3))
    whole = sum((a[large] + b[large]) / 2 for a, b in local[2:])
    left = kept.mean(0)[-300_000:].view(500, 600)
    torch.testing.assert_close(sent + left, whole, rtol=0, atol=1e-6)
    # what travelled in their place, at rank 2: (600 + 500) x 2 numbers and (16 + 600) x 2
    thin = [records[0]["state"]["gradients"][key].shape[1] for key in ("left.1", "right.1")]
    assert thin == [2 * (600 + 500), 2 * (16 + 600)]


@quantised
def test_without_an_error_of_its_own_it_is_pytorchs_all_reduce(found, name):
    expected = found[0]["exact"]["fp32"]
    assert [mean.count_nonzero().item() for mean in expected] == [1, 1, 0]
    for f in found:
        for got, mean in zip(f["exact"][name], expected, strict=True):
            torch.testing.assert_close(got, mean, rtol=1e-6, atol=0)


# --- what travels


@every
def test_one_exchange_a_bucket_and_its_bytes(found, name):
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1, "int32": 4}
    parameters = [9600, 600, 300_000, 500, 2000, 4, 15, 3]
    numbers = sum(parameters) + 1
    tensors = len(parameters) + 1
    for seen in (s for f in found for s in f["exchanged"][name]["seen"][:2]):
        used = ("allreduce_", tensors, "int32")
        assert seen[-1] == used  # DDP's own note of what was used
        kinds = [kind for kind, *_ in seen[:-1]]
        moved = sum(count * sizes[kind] for _, count, kind in seen[:-1])
        if name not in QUANTISED:
            assert kinds == ["allreduce_"] * 2
            assert moved == numbers * {"fp32": 4, "powersgd": 4, "bf16": 2, "fp16": 2}[name]
            continue
        # K messages are put together or taken apart, one of them a process's own: K - 1 travel
        sent, ring = moved * (WORLD - 1) / WORLD, 2 * (WORLD - 1) / WORLD * 4 * numbers
        assert sent == pytest.approx(ring * QUANTISED[name] / 32, rel=1e-3)
        codes = numbers * QUANTISED[name] / 8
        if name.endswith("two-sided"):
            assert kinds == ["alltoall_base_"] * 2 + ["_allgather_base_"] * 2
            # codes and a norm for each piece, twice; the shorter message is filled up
            assert 0 <= moved - 2 * (codes + 4 * (tensors + 2)) <= 64
        else:
            assert kinds == ["_allgather_base_"] * 2
            assert 0 <= moved - WORLD * (codes + 4 * tensors) <= WORLD * tensors / 2


# --- what must not go wrong


@every
def test_what_is_not_finite_reaches_every_process(found, name):
    for f in found:
        assert f["nan"][name][2].isnan().any()
        assert not f["nan"][name][6].isnan().any()  # the layer that nobody used
        if name in QUANTISED:
            assert f["inf"][name][2].isnan().any()
    assert_same(*[[g.nan_to_num(7.0) for g in f["nan"][name]] for f in found])


def test_training_stops_where_it_diverges(found):
    assert all("the loss became" in f["diverged"] for f in found)


@every
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(found, name):
    for f in found:
        ours, theirs = f["resumed"][name], f["exchanged"][name]["state"]
        assert_same(ours["model"], theirs["model"])
        assert_same(ours["optimizer"], theirs["optimizer"])
        assert_same(ours["gradients"], theirs["gradients"])
    assert bool(ours["gradients"]) == (name == "powersgd")


def test_what_other_numbers_of_processes_kept_is_left():
    alone = learner("powersgd")
    alone.load_state(alone.state() | {"gradients": {"error.0": torch.ones(2, 5)}})
    assert not alone.replica.hook.kept.error_dict


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_with_few_bits(found, name):
    one, other = (f["methods"][name] for f in found)
    assert_same(one, other)
    assert all(weights.isfinite().all() for weights in one)


def test_draws_are_not_the_batchs():
    first = torch.rand(3, generator=seeded(SEED, 0, CPU))
    assert not torch.equal(first, torch.rand(3, generator=drawn(0, 0, 0)))
    assert not torch.equal(*(torch.rand(3, generator=drawn(0, 0, rank)) for rank in range(2)))
    assert not torch.equal(*(torch.rand(3, generator=drawn(u, 0, 0)) for u in range(2)))


@every
def test_one_process_sends_nothing(name):
    alone, plain = learner(name), learner("fp32")
    for update in range(2):
        alone.fit(build("natural"), batch(update, 0))
        plain.fit(build("natural"), batch(update, 0))
    assert_same(alone.model.state_dict(), plain.model.state_dict())
