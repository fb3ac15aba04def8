"""The quantiser in closed form: its rounding, its error, and messages of several tensors."""

import pytest
import torch
from torch import nn

from gratis import Learner
from gratis.comm_hooks import in_parts
from gratis.quantiser import dequantise, message_bytes, pack, quantise, unpack
from tests.dying import assert_same
from tests.exchanges import STEPS, stream, there_and_back
from tests.two_processes import needs_gloo

pytestmark = needs_gloo
eight_and_four = pytest.mark.parametrize("bits", [8, 4])


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
