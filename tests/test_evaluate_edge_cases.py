"""Robust accuracy of odd models, shapes and loaders, and what is answered to mistakes."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gratis.balls import Linf
from gratis.evaluate import Robustness, robust_accuracy
from tests.problems import a_problem, batched, conv_net, linear_model, own_labels


def evaluate(model: nn.Module, x: Tensor, y: Tensor, eps: float = 0.1) -> Robustness:
    return robust_accuracy(model, [(x, y)], ["pgd-3-2"], ball=Linf(eps), examples=2)


def test_a_model_that_always_says_the_same() -> None:
    model = linear_model(3, 9)
    for p in model.parameters():
        nn.init.zeros_(p)
    x, y = torch.rand(6, 1, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 0, 1])
    found = evaluate(model, x, y)
    assert torch.equal(found.robust, y == 0)
    assert torch.equal(found.correct[:, 0], y == 0)


def test_logits_that_are_no_numbers_are_wrong() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            corner = x[:, 0, 0, 0]
            bad = torch.where(corner > 0.5, torch.nan, 0.0)
            return torch.stack([1 - corner + bad, corner - 1], 1)

    x = torch.full((3, 1, 2, 2), 0.2)
    x[1] = 0.8
    y = torch.zeros(3, dtype=torch.long)
    found = evaluate(Broken(), x, y)
    assert found.correct[:, 0].tolist() == [True, False, True]
    assert found.robust.tolist() == [True, False, True]
    assert not evaluate(Broken(), x, y, eps=0.9).robust.any()  # NaN is where the climb leads


def test_a_model_without_gradients_is_refused() -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot((x.flatten(1).mean(1) > 0.5).long(), 2).float()

    x = torch.rand(4, 1, 3, 3)
    with pytest.raises(ValueError, match="no gradient back to its input"):
        evaluate(Opaque(), x, own_labels(Opaque(), x))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("count", [1, 3])
def test_odd_shapes(channels: int, classes: int, count: int) -> None:
    model = conv_net(channels, classes)
    x = torch.rand(count, channels, 3, 9)
    found = evaluate(model, x, own_labels(model, x))
    assert found.correct.shape == (count, 2)
    assert found.correct[:, 0].all()
    assert found.robust.shape == (count,)
    assert found.robust.dtype == torch.bool


def test_an_empty_loader_is_an_error() -> None:
    with pytest.raises(ValueError, match="loader was empty"):
        robust_accuracy(conv_net(), [], ["pgd-3"], ball=Linf(0.1))


def test_a_normalising_loader_is_an_error() -> None:
    x = torch.randn(3, 3, 4, 4)
    with pytest.raises(ValueError, match="normalisation into the model"):
        robust_accuracy(conv_net(), [(x, torch.zeros(3).long())], ["pgd-3"], ball=Linf(0.1))


def test_a_mistyped_attack_is_answered_before_any_work() -> None:
    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        raise AssertionError("the loader was touched")
        yield

    with pytest.raises(ValueError, match="no attack 'pgd'"):
        robust_accuracy(conv_net(), loader(), ["pgd"], ball=Linf(0.1))


def test_progress_tells_images_done() -> None:
    """After every pool, and of the images under attack a share after every stage."""
    model, x, y, ball = a_problem()
    told: list[int] = []
    robust_accuracy(model, batched(x, y, 8), [], ball=ball, progress=told.append)
    assert told == [32, 40]
    told.clear()
    attacks = ["pgd-20", "apgd-ce"]
    robust_accuracy(model, batched(x, y, 8), attacks, ball=Linf(1e-9), progress=told.append)
    assert told[:2] == [8, 16]
    assert told == sorted(told)
    assert told[-1] == 40


def test_a_model_without_parameters() -> None:
    model = nn.Flatten()
    x = torch.rand(5, 1, 1, 3)
    found = evaluate(model, x, x.flatten(1).argmax(1))
    assert found.correct[:, 0].all()
