"""How gradients travel: the quantiser in closed form, each exchange against the flattest loop.

Two processes are started once and do everything that the tests then look at.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from gratis import Learner, train
from gratis.comm_hooks import EXCHANGES, PowerSGD, in_parts
from gratis.distributed import joined
from gratis.journal import DivergedError
from gratis.methods import METHODS
from gratis.nn import add_aux
from gratis.passes import Batch, Pass, seeded
from gratis.quantiser import dequantise, message_bytes, pack, quantise, unpack
from tests.processes import start_together
from tests.recipes import tiny
from tests.test_distributed import Collectives, become, build, needs_gloo
from tests.test_methods import small_net
from tests.test_train import assert_same

WORLD, SEED, UPDATES = 2, 7, 4
CPU = torch.device("cpu")
QUANTISED = {"q8": 8, "q4": 4, "q8-two-sided": 8, "q4-two-sided": 4}
STEPS = {8: 127, 4: 7}

pytestmark = needs_gloo
eight_and_four = pytest.mark.parametrize("bits", [8, 4])
quantised = pytest.mark.parametrize("name", QUANTISED)
# PyTorch's hook for PowerSGD waits for the gradient's own card, where there is any card
NAMES = [name for name in EXCHANGES if name != "powersgd" or not torch.cuda.is_available()]
every = pytest.mark.parametrize("name", NAMES)
needs_powersgd = pytest.mark.skipif("powersgd" not in NAMES, reason="gradients are on the CPU")


def stream(number=0):
    return torch.Generator().manual_seed(number)


def there_and_back(tensor, bits, generator):
    return dequantise(*quantise(tensor, bits, generator), bits, tensor.numel())


# --- the quantiser


@eight_and_four
def test_rounding_keeps_the_mean_and_has_the_stated_variance(bits):
    g = torch.tensor([3.0, -1.0, 0.02, -0.2, 0.0, 2.0, -2.5])
    unit = g.norm() / STEPS[bits]
    draws, generator = 10_000, stream()
    found = torch.stack([there_and_back(g, bits, generator) for _ in range(draws)]).double()
    up = (g / unit).double() % 1
    variance = up * (1 - up) * unit**2
    assert ((found.mean(0) - g).abs() <= 5 * (variance / draws).sqrt() + 1e-6).all()
    # of a number that is one of two, the square error's own variance is known too
    spread = (up * (1 - up) * (1 - 2 * up) ** 2 / draws).sqrt() * unit**2
    assert (((found - g) ** 2).mean(0) - variance <= 5 * spread + 1e-6).all()
    low, high = (g / unit).floor(), (g / unit).floor() + 1
    levels = (found / unit).round()
    assert ((levels == low) | (levels == high)).all()


@eight_and_four
def test_the_square_error_stays_below_its_bound(bits):
    g = torch.randn(5_000, generator=stream(1))
    unit = g.norm() / STEPS[bits]
    error = ((there_and_back(g, bits, stream()) - g) ** 2).sum()
    up = (g / unit) % 1
    expected = (up * (1 - up)).sum() * unit**2
    assert error == pytest.approx(expected.item(), rel=0.1)
    assert error <= len(g) * g.norm() ** 2 / (4 * STEPS[bits] ** 2)


def test_every_byte_means_what_two_complement_says():
    every_byte = torch.arange(256, dtype=torch.uint8)
    eight = dequantise(every_byte, torch.tensor(127.0), 8, 256)
    assert eight.tolist() == [*range(128), *range(-128, 0)]
    four = dequantise(every_byte, torch.tensor(7.0), 4, 512)
    half = [*range(8), *range(-8, 0)]
    assert four[0::2].tolist() == half * 16
    assert four[1::2].tolist() == [level for level in half for _ in range(16)]


@pytest.mark.parametrize("levels", [[2, -3, 6], [-6, 0, 3, 2], [7], [-7, 0], [0, 4, 4, -4, 1]])
def test_four_bits_hold_levels_exactly_for_odd_counts_too(levels):
    g = torch.tensor(levels) / 4  # the norm is 7 / 4, so each is a level
    codes, norm = quantise(g, 4, stream())
    assert (len(codes), codes.dtype) == ((len(levels) + 1) // 2, torch.uint8)
    assert norm == 7 / 4
    assert dequantise(codes, norm, 4, len(levels)).tolist() == g.tolist()


@eight_and_four
def test_codes_are_a_function_of_the_generator(bits):
    g = torch.randn(3, 4, 5, generator=stream(1))
    first, again, other = (quantise(g, bits, stream(seed))[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, quantise(g.double().flatten(), bits, stream(5))[0])
    columns = g.transpose(0, 2).contiguous().transpose(0, 2)  # the same numbers, laid otherwise
    assert torch.equal(first, quantise(columns, bits, stream(5))[0])


@eight_and_four
def test_zeros_stay_and_what_is_not_finite_is_never_hidden(bits):
    for zeros in (torch.zeros(5), torch.zeros(()), torch.zeros(0), torch.full((3,), 1e-30)):
        codes, norm = quantise(zeros, bits, stream())
        assert not codes.any()
        assert norm == 0
        assert not dequantise(codes, norm, bits, zeros.numel()).any()
    for bad in (torch.nan, torch.inf, -torch.inf):
        assert there_and_back(torch.tensor([1.0, bad, 0.0]), bits, stream()).isnan().all()


@eight_and_four
@pytest.mark.parametrize("drawn", [0.0, 1 - 2**-24])  # the least and the most that rand gives
def test_a_single_number_never_leaves_the_levels(bits, drawn, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, drawn))
    numbers = torch.randn(500, generator=stream(3))
    for value in numbers:  # its norm is its size, rounded, so that it may lie beyond the last level
        codes, norm = quantise(value, bits, stream())
        step = norm / STEPS[bits]
        assert (dequantise(codes, norm, bits, 1) - value).abs() <= step * (1 + 1e-4)


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match="bits=3: a number travels as 8 or 4 bits"):
        quantise(torch.ones(2), 3, stream())
    with pytest.raises(ValueError, match="gradients='q2' is none of fp32"):
        Learner(nn.Linear(1, 1), None, gradients="q2")


@eight_and_four
def test_a_message_holds_tensors_one_by_one(bits):
    tensors = [torch.randn(n, generator=stream(n)) * 10**n for n in (3, 1, 4)] + [torch.zeros(2)]
    counts = [len(tensor) for tensor in tensors]
    length = message_bytes(counts, bits)
    assert length == 4 * 4 + {8: 3 + 1 + 4 + 2, 4: 2 + 1 + 2 + 1}[bits]
    out = torch.full((length + 3,), 77, dtype=torch.uint8)
    pack(tensors, bits, stream(9), out)
    assert out[length:].tolist() == [77] * 3
    generator = stream(9)
    expected = [there_and_back(tensor, bits, generator) for tensor in tensors]
    assert_same(list(unpack(out, counts, bits)), expected)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 40])
def test_parts_are_equal_and_end_where_tensors_do(world):
    counts = [7, 1, 12, 3]
    whole = torch.arange(23)
    parts = in_parts(whole, counts, world)
    sizes = [sum(map(len, part)) for part in parts]
    assert len(parts) == world
    assert max(sizes) - min(sizes) <= 1
    pieces = [piece for part in parts for piece in part]
    assert torch.equal(torch.cat(pieces), whole)
    owner = torch.arange(4).repeat_interleave(torch.tensor(counts))
    assert all(len(owner[piece].unique()) == 1 for piece in pieces)
    pieces[-1].zero_()
    assert whole[-1] == 0


# --- what the two processes do


def wide_net():
    """So wide that its gradients travel in two buckets."""
    torch.manual_seed(1)
    wide, last = (
        (nn.Linear(16, 600), nn.Tanh(), nn.Linear(600, 500)),
        (nn.Tanh(), nn.Linear(500, 4)),
    )
    return nn.Sequential(nn.Flatten(), *wide, *last)


class Spare(nn.Module):
    """With a layer that nothing uses."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = wide_net(), nn.Linear(5, 3)

    def forward(self, x):
        return self.used(x)


def learner(name):
    model = Spare()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return Learner(model, optimizer, seed=SEED, gradients=name)


def batch(update, rank):
    generator = stream(100 * update + rank)
    x = torch.rand(6, 1, 4, 4, generator=generator)
    return Batch(x, torch.randint(0, 4, (6,), generator=generator))


def local_gradients(learner, update, rank):
    """The gradients of a process's own part, in plain PyTorch; zeros where there are none."""
    loss = nn.functional.cross_entropy(learner.model(batch(update, rank).x), batch(update, rank).y)
    parameters = list(learner.model.parameters())
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


def gradients(model):
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def exchanged(name, rank):
    """Some updates with an exchange, beside what each process had and what was seen to travel."""
    ours = learner(name)
    record = {"local": [], "averaged": [], "seen": []}
    for update in range(UPDATES):
        record["local"].append([list(local_gradients(ours, update, r)) for r in range(WORLD)])
        parts = batch(update, rank)
        with Collectives() as collectives:
            ours.backward(Pass(parts.x, parts.y))
        record["seen"].append(collectives.seen)
        record["averaged"].append(gradients(ours.model))
        ours.update()
    return record | {"weights": ours.model.state_dict(), "state": ours.state()}


def resumed(name, rank, path):
    """The same updates, with a new learner for the second half."""
    for half in ((0, 1), (2, 3)):
        ours = learner(name)
        if half[0]:
            ours.load_state(torch.load(path, weights_only=True))
        for update in half:
            ours.fit(build("natural"), batch(update, rank))
        torch.save(ours.state(), path)
    return ours.state()


def spoiled(name, rank, value):
    """Gradients where one process has `value` somewhere in one tensor."""
    ours = learner(name)
    for update in range(3):  # PowerSGD does not compress the first two
        parts = batch(update, rank)
        if update == 2 and rank == 1:
            ours.model.used[3].weight.register_hook(lambda g: torch.where(g == g[2, 3], value, g))
        ours.backward(Pass(parts.x, parts.y))
        found = gradients(ours.model)
        ours.update()
    return found


def by_pytorch(name, rank):
    """Averages as PyTorch's own hook makes them, on the weights that `exchanged` went through."""
    state, hook = {
        "bf16": (None, default_hooks.bf16_compress_hook),
        "fp16": (None, default_hooks.fp16_compress_hook),
        "fp32": (None, default_hooks.allreduce_hook),
    }[name]
    ours = learner("fp32")
    parallel = DistributedDataParallel(ours.model, find_unused_parameters=True)
    parallel.register_comm_hook(state, hook)
    parts = batch(0, rank)
    nn.functional.cross_entropy(parallel(parts.x), parts.y).backward()
    return gradients(ours.model)


class Given(nn.Module):
    """Its weights' gradients are what it is given."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.zeros(n) for n in (3, 4, 1)])

    def forward(self, x):
        return sum((w * part).sum() for w, part in zip(self.weights, given(int(x)), strict=True))


def given(rank):
    """One number in each tensor, which is a level of every code, and so is the processes' mean."""
    parts = [torch.zeros(3), torch.zeros(4), torch.zeros(1)]
    parts[0][1], parts[1][2], parts[2][0] = ((1024, -1 / 32, 8), (3072, -3 / 32, -8))[rank]
    return parts


def exact(name, rank):
    model = Given()
    ours = Learner(model, torch.optim.SGD(model.parameters(), 0.1), seed=SEED, gradients=name)
    ours.backward(Pass(torch.tensor([rank]), torch.zeros(1), loss=lambda m, x, y: (m(x), None)))
    return gradients(model)


def every_method():
    found = {}
    for name in METHODS:
        method = build(name)
        model = small_net().double()
        if method.auxiliary:
            add_aux(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        ours = Learner(model, optimizer, seed=SEED, gradients="q8")
        for update in range(2):
            x = torch.rand(10, 1, 6, 5, generator=stream(update), dtype=torch.float64)
            ours.fit(method, Batch(x, torch.arange(10) % 4))
        found[name] = [p.detach().clone() for p in ours.model.parameters()]
    return found


def together(rank, port, folder):
    """One of the two processes."""
    become(rank, port)
    EXCHANGES["powersgd"] = lambda seed: PowerSGD(plain=2)
    found = {}
    with joined(CPU):
        found["exchanged"] = {name: exchanged(name, rank) for name in NAMES}
        found["resumed"] = {n: resumed(n, rank, folder / f"{n}-{rank}.pt") for n in NAMES}
        found["nan"] = {name: spoiled(name, rank, torch.nan) for name in NAMES}
        found["inf"] = {name: spoiled(name, rank, torch.inf) for name in QUANTISED}
        found["pytorch"] = {name: by_pytorch(name, rank) for name in ("fp32", "bf16", "fp16")}
        found["exact"] = {name: exact(name, rank) for name in ("fp32", *QUANTISED)}
        found["methods"] = every_method()
    diverging = ("optimizer.learning_rate=1e20", "schedule.shape=constant", "engine.device=cpu")
    try:
        train.run(tiny("natural", *diverging, "engine.gradients=q8"), folder / "diverged")
    except DivergedError as error:
        found["diverged"] = str(error)
    torch.save(found, folder / f"{rank}.pt")


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
