"""The search in bfloat16: what it finds counts where full precision says the same."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gratis.attacks import build_attack
from gratis.balls import Linf
from gratis.budget import Meter
from gratis.evaluate import robust_accuracy
from tests.problems import (
    batched,
    digits_net,  # noqa: F401  a fixture
    linear_model,
    own_labels,
)
from tests.test_packing import Sizes


class Close(nn.Module):
    """Label 1 leads by a thousandth of the logits: in bfloat16 the two are the same number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2, bias=False)
        self.linear.weight.data = torch.tensor([[1.0] * 4, [1.001] * 4])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


def test_what_fools_the_model_in_bf16_alone_does_not_count() -> None:
    model, x = Close(), 0.5 + 0.3 * torch.rand(6, 1, 2, 2)
    y = torch.ones(6, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).argmax(1).eq(0).all()
    sizes = Sizes(model)
    found = robust_accuracy(sizes, [(x, y)], ["pgd-20-2:bf16"], ball=Linf(0.01))
    assert found.robust.all()
    # every stage's claim is asked again, and the last point of every restart
    asked_again = 2 * (2 + 1) * len(x)
    assert found.meters[1] == Meter(probes=2 * 20 * len(x), forwards=asked_again)
    in_full = sum(size for size, cast in sizes.seen if not cast)
    assert in_full == len(x) + asked_again


class Timid(nn.Module):
    """In bfloat16 always wrong; its slope is that of a linear model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        if torch.is_autocast_enabled("cpu"):
            logits = logits - 2 * logits.detach()
        return logits


def test_an_image_not_confirmed_climbs_on() -> None:
    """Every point is a claim, and yet the same images fall as in full precision."""
    model = linear_model(2, 9).float()
    x = torch.rand(60, 1, 3, 3)
    y = own_labels(model, x)
    found = robust_accuracy(
        Timid(model), batched(x, y, 8), ["pgd-20", "pgd-20:bf16"], ball=Linf(0.05)
    )
    assert torch.equal(found.correct[:, 1], found.correct[:, 2])
    assert 5 < int(found.robust.sum()) < 55


def test_the_search_in_bf16_finds_what_full_precision_finds(
    digits_net: tuple[nn.Module, Tensor, Tensor],  # noqa: F811
) -> None:
    model, _, _ = digits_net
    digits = load_digits()
    x = torch.tensor(digits.images[:1000, None] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target[:1000])
    sizes, names = Sizes(model), ["pgd-20-2", "pgd-20-2:bf16"]
    found = robust_accuracy(sizes, batched(x, y, 250), names, ball=Linf(0.1), points=True)
    assert any(cast for _, cast in sizes.seen)
    standing = found.correct.sum(0)
    assert 200 < int(standing[1]) < 800
    assert abs(int(standing[1] - standing[2])) <= 2  # 0.2 points of 1,000 images
    assert found.adversarial is not None
    with torch.no_grad():
        right = model(found.adversarial[1]).argmax(1) == y
    assert torch.equal(right, found.correct[:, 2])


def test_results_name_the_search() -> None:
    ball = Linf(0.1)
    plain, cast = (build_attack(name).parameters(ball, 10) for name in ("pgd-5-2", "pgd-5-2:bf16"))
    assert cast == {**plain, "search": "bf16"}
