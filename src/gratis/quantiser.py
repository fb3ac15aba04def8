"""Tensors as a few bits a number: rounded at random so that the mean is kept, and packed."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

NORM_BYTES = 4


def quantise(tensor: Tensor, bits: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(codes, norm) of a tensor: each number as one of 2 s + 1 levels, s = 2^(bits - 1) - 1.

    tensor: any shape, d numbers.  bits: 8 or 4.  generator: on the tensor's device.
    codes: uint8 [d], or [ceil(d / 2)] with 4 bits, in the order of tensor.flatten(): the level
    s g / |g|, rounded at random to one of its two neighbours so that its mean is kept, in two's
    complement.  norm: |g|, the Euclidean norm of the whole tensor, fp32, no dimensions.
    The error's mean is 0 (to 2^-24 of a level, the generator's grid), its mean square over the
    tensor at most d |g|^2 / (4 s^2).  A tensor whose norm is 0 (as fp32 squares numbers below
    1e-23) has codes 0. One whose norm is NaN or Inf, since such a number is in it or for a norm
    beyond 1.8e19, comes back as NaN throughout.
    Raises ValueError for other bits.
    Source: Alistarh 2017 (QSGD, section 3.1), as Zhang 2022 (DAT) uses it on each tensor.
    Differs from DAT's code: that keeps 2 level + sign in a byte; here one signed number does.
    """
    steps = steps_of(bits)
    flat = tensor.detach().flatten().float()
    norm = torch.linalg.vector_norm(flat)
    scale = torch.where(norm > 0, steps / norm, 0.0)
    levels = torch.rand(flat.shape, generator=generator, device=flat.device)
    # a norm that is rounded down must not let its largest number through; NaN is no integer
    levels.addcmul_(flat, scale).floor_().clamp_(-steps, steps).nan_to_num_()
    codes = levels.to(torch.int8).view(torch.uint8)
    return (_paired(codes) if bits == 4 else codes), norm


def dequantise(codes: Tensor, norm: Tensor, bits: int, count: int) -> Tensor:
    """The fp32 numbers [count] that `quantise` made (codes, norm) of: norm times level / s.

    Raises ValueError for bits other than 8 and 4.
    """
    step = norm / steps_of(bits)
    levels = codes.view(torch.int8)
    if bits == 4:
        # shifts of signed numbers carry the sign along, which a division would round wrongly
        levels = torch.stack((levels << 4 >> 4, levels >> 4), dim=1).flatten()[:count]
    return levels.float().mul_(step)


def steps_of(bits: int) -> int:
    """s: the levels on either side of zero that numbers of so many bits have."""
    if bits not in (4, 8):
        raise ValueError(f"bits={bits}: a number travels as 8 or 4 bits; give one of these")
    return int(2 ** (bits - 1)) - 1


def _paired(codes: Tensor) -> Tensor:
    """Two codes a byte, the first in the lower half."""
    if len(codes) % 2:
        codes = torch.cat((codes, codes.new_zeros(1)))
    return (codes[0::2] & 15) | (codes[1::2] << 4)


# --- several tensors in one message: their norms, then their codes


def message_bytes(counts: Sequence[int], bits: int) -> int:
    """The length of a message that carries tensors of so many numbers each."""
    return sum(NORM_BYTES + _code_bytes(count, bits) for count in counts)


def _code_bytes(count: int, bits: int) -> int:
    return count if bits == 8 else (count + 1) // 2


def pack(tensors: Sequence[Tensor], bits: int, generator: torch.Generator, out: Tensor) -> None:
    """Write the message of `tensors`, quantised one by one, to the beginning of `out` (uint8)."""
    place, end = 0, NORM_BYTES * len(tensors)
    for tensor in tensors:
        codes, norm = quantise(tensor, bits, generator)
        out[place : place + NORM_BYTES] = norm.view(1).view(torch.uint8)
        out[end : end + len(codes)] = codes
        place, end = place + NORM_BYTES, end + len(codes)


def unpack(message: Tensor, counts: Sequence[int], bits: int) -> Iterator[Tensor]:
    """The tensors, fp32 [count] each, of a message that `pack` wrote."""
    end = NORM_BYTES * len(counts)
    norms = message[:end].clone().view(torch.float32)  # a clone begins where four bytes may
    for norm, count in zip(norms, counts, strict=True):
        codes = message[end : end + _code_bytes(count, bits)]
        yield dequantise(codes, norm, bits, count)
        end += len(codes)


def put_average(messages: Tensor, tensors: Sequence[Tensor], bits: int) -> None:
    """Put into `tensors` the mean of what `messages` [world, bytes] say, added in order of rank."""
    counts = [tensor.numel() for tensor in tensors]
    for tensor in tensors:
        tensor.zero_()
    for message in messages:
        for tensor, found in zip(tensors, unpack(message, counts, bits), strict=True):
            tensor.add_(found)
    for tensor in tensors:
        tensor.div_(len(messages))
