"""LARS and LAMB: closed forms, another library's, exemptions, and laws of scale."""

import math

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from gratis.optim import LAMB, LARS
from tests.small_net import conv_and_linear

BOTH = pytest.mark.parametrize("optimizer", [LARS, LAMB])


def weight(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def after(make, w: Tensor, *gradients: Tensor) -> Tensor:
    """A copy of w [...] after one step of the optimizer that `make` gives for each gradient."""
    w = w.detach().clone().requires_grad_()
    optimizer = make([w])
    for gradient in gradients:
        w.grad = gradient.clone()
        optimizer.step()
    return w.detach()


# --- closed forms


def test_lars_first_step_by_hand() -> None:
    # |w| = 5, |g| = 2: the ratio is 0.01 * 5 / (2 + 0.1 * 5) = 0.02
    w, g = weight(3.0, 4.0), torch.tensor([2.0, 0.0], dtype=torch.float64)
    found = after(lambda p: LARS(p, 0.5, weight_decay=0.1, trust=0.01), w, g)
    assert found.tolist() == pytest.approx([3 - 0.5 * 0.02 * 2.3, 4 - 0.5 * 0.02 * 0.4], rel=1e-12)


def test_lars_scales_before_momentum() -> None:
    # one weight, no decay: each ratio is trust * w / |g|, so each step adds trust * w to v
    found = after(
        lambda p: LARS(p, 1.0, momentum=0.5, trust=0.1),
        weight(1.0),
        *torch.tensor([[7.0], [0.3]], dtype=torch.float64),
    )
    first = 1 - 0.1
    assert found.item() == pytest.approx(first - (0.5 * 0.1 + 0.1 * first), rel=1e-12)


@pytest.mark.parametrize(
    ("clip", "norm"), [(10.0, 10.0), (None, 50.0), (60.0, 50.0)], ids=["clipped", "none", "wide"]
)
def test_lamb_first_step_by_hand(clip: float | None, norm: float) -> None:
    # m = 0.1 g and v = 0.001 g^2, neither corrected; |w| = 50
    w, g = weight(30.0, 40.0), torch.tensor([2.0, -5.0], dtype=torch.float64)
    u = [
        0.1 * 2 / (math.sqrt(0.001 * 4) + 1e-6) + 0.01 * 30,
        0.1 * -5 / (math.sqrt(0.001 * 25) + 1e-6) + 0.01 * 40,
    ]
    found = after(lambda p: LAMB(p, 0.1, weight_decay=0.01, weight_norm_clip=clip), w, g)
    expected = [x - 0.1 * norm / math.hypot(*u) * d for x, d in zip((30, 40), u, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_lamb_corrects_its_averages_where_asked() -> None:
    # corrected, m = g and v = g^2: without decay u is the sign of g; eps lies outside the root
    w, g = weight(3.0, 4.0), torch.tensor([2.0, -2.0], dtype=torch.float64)
    found = after(
        lambda p: LAMB([{"params": p, "layerwise": False}], 0.1, eps=2.0, bias_correction=True),
        w,
        g,
    )
    assert found.tolist() == pytest.approx([3 - 0.05, 4 + 0.05], rel=1e-12)


def test_lamb_corrects_each_weight_by_its_own_count_of_steps() -> None:
    early, late = weight(1.0), weight(1.0)
    optimizer = LAMB([{"params": [early, late], "layerwise": False}], 0.1, bias_correction=True)
    early.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    before = late.item()
    late.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    assert before == 1
    assert late.item() == pytest.approx(0.9, rel=1e-5)


# --- another library's


def stepped(make, steps: int = 4) -> list[Tensor]:
    model = conv_and_linear().double()
    optimizer = make(model.parameters())
    for step in range(steps):
        torch.manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_lars_is_timms(decay: float) -> None:
    # timm adds 1e-8 to the denominator unless told otherwise, and adapts only where there is decay
    ours = stepped(lambda p: LARS(p, 0.5, momentum=0.8, weight_decay=decay))
    theirs = stepped(
        lambda p: timm.optim.Lars(
            p, 0.5, momentum=0.8, weight_decay=decay, eps=0.0, always_adapt=True
        )
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("correction", [False, True])
def test_lamb_without_clip_is_timms(decay: float, correction: bool) -> None:
    # timm clips the gradient of all weights together unless told otherwise, and no weight's norm
    ours = stepped(
        lambda p: LAMB(
            p, 0.1, weight_decay=decay, bias_correction=correction, weight_norm_clip=None
        )
    )
    theirs = stepped(
        lambda p: timm.optim.Lamb(
            p, 0.1, weight_decay=decay, bias_correction=correction, max_grad_norm=None,
            always_adapt=True,
        )
    )  # fmt: skip
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# --- exemptions and edges


def test_what_lars_exempts_takes_sgd_steps() -> None:
    ours = stepped(
        lambda p: LARS([{"params": p, "layerwise": False}], 0.01, momentum=0.8, weight_decay=0.05)
    )
    theirs = stepped(lambda p: torch.optim.SGD(p, 0.01, momentum=0.8, weight_decay=0.05))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_what_lamb_exempts_takes_adamw_steps() -> None:
    ours = stepped(
        lambda p: LAMB(
            [{"params": p, "layerwise": False}], 0.01, weight_decay=0.05, bias_correction=True
        )
    )
    theirs = stepped(lambda p: torch.optim.AdamW(p, 0.01, eps=1e-6, weight_decay=0.05))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_zero_weight_or_gradient_takes_a_step_of_ratio_1() -> None:
    zero, g = weight(0.0, 0.0), torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert after(lambda p: LARS(p, 0.1), zero, g).tolist() == pytest.approx([-0.3, -0.4])
    adam = 0.1 / math.sqrt(0.001)
    found = after(lambda p: LAMB(p, 0.1), zero, g)
    assert found.tolist() == pytest.approx([-0.1 * adam] * 2, rel=1e-4)
    w, none = weight(3.0, 4.0), torch.zeros(2, dtype=torch.float64)
    assert after(lambda p: LARS(p, 0.1, weight_decay=0.5), w, none).tolist() == [2.85, 3.8]
    # decay is part of LAMB's direction: ratio 5 / (0.5 * 5)
    found = after(lambda p: LAMB(p, 0.1, weight_decay=0.5), w, none)
    assert found.tolist() == pytest.approx([2.7, 3.6])
    assert after(lambda p: LAMB(p, 0.1), w, none).tolist() == [3.0, 4.0]


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_not_hidden(optimizer, bad: float) -> None:
    g = torch.tensor([bad, 1.0], dtype=torch.float64)
    assert after(lambda p: optimizer(p, 0.1), weight(3.0, 4.0), g).isnan().any()


@BOTH
def test_weights_without_gradient_stay(optimizer) -> None:
    moved, still = weight(1.0), weight(2.0)
    moved.grad = torch.ones(1, dtype=torch.float64)
    made = optimizer([{"params": [moved]}, {"params": [still]}], 0.1, weight_decay=0.1)
    made.step()
    assert moved.item() < 1
    assert still.item() == 2
    assert still not in made.state


@BOTH
def test_a_closure_gives_the_gradient(optimizer) -> None:
    w = weight(3.0, 4.0)
    made = optimizer([w], 0.1)

    def closure() -> float:
        loss = w.square().sum()
        loss.backward()
        return loss.item()

    assert made.step(closure) == 25
    assert w.square().sum().item() < 25


@BOTH
def test_sparse_gradients_are_refused(optimizer) -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"needs dense gradients .* sparse=False"):
        optimizer(embedding.parameters(), 0.1).step()


@BOTH
@pytest.mark.parametrize("values", [{"lr": -1.0}, {"lr": math.nan}, {"weight_decay": -0.1}])
def test_negative_settings_are_refused(optimizer, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be 0 or more"):
        optimizer([weight(1.0)], **{"lr": 0.1, **values})


def test_other_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"momentum=1\.0 must be 0 or more and below 1"):
        LARS([weight(1.0)], 0.1, momentum=1.0)
    with pytest.raises(ValueError, match=r"beta2=1\.0 must"):
        LAMB([weight(1.0)], 0.1, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match=r"weight_norm_clip=0\.0 would stop every weight"):
        LAMB([weight(1.0)], 0.1, weight_norm_clip=0.0)


# --- laws


@BOTH
def test_the_step_does_not_depend_on_the_size_of_gradients(optimizer) -> None:
    # away from 0, where LAMB's eps shows
    w, gradients = torch.randn(30).double(), torch.randn(3, 30).double()
    gradients += gradients.sign()
    ours = after(lambda p: optimizer(p, 0.1), w, *gradients) - w
    theirs = after(lambda p: optimizer(p, 0.1), w, *(1000 * gradients)) - w
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6 * ours.abs().max().item())


@BOTH
def test_without_decay_the_first_step_is_a_set_share_of_the_weight(optimizer) -> None:
    w, g = torch.randn(30).double(), torch.randn(30).double()
    share = 0.001 * 0.1 if optimizer is LARS else 0.1
    step = after(lambda p: optimizer(p, 0.1), w, g) - w
    assert step.norm().item() == pytest.approx(share * w.norm().item(), rel=1e-9)
