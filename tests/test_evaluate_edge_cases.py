"""Robust accuracy of odd models, shapes and loaders, and what is answered to mistakes."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gratis.balls import Linf
from gratis.evaluate import Robustness, robust_accuracy
from gratis.tasks import Classification
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


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        (1, 0, r"answers are shaped \(3, 1\).*torch.cat"),
        (4, 4, "label 4 for a model of 4 classes"),
    ],
)
def test_labels_that_no_answer_could_be_right_about_are_refused(
    classes: int, label: int, message: str
) -> None:
    x, y = torch.rand(3, 3, 6, 5), torch.tensor([0, 0, label])
    with pytest.raises(ValueError, match=message):
        robust_accuracy(conv_net(classes=classes), [(x, y)], ["pgd-3"], ball=Linf(0.1))


def test_probabilities_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels \(3, 5\) for a model of 4 classes"):
        evaluate(conv_net(), torch.rand(3, 3, 6, 5), torch.full((3, 5), 0.2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_too_coarse_for_a_small_radius_are_refused(dtype: torch.dtype) -> None:
    x = torch.rand(3, 3, 6, 5).to(dtype)
    with pytest.raises(ValueError, match=r"lie too far apart to be moved by eps; give model.float"):
        evaluate(conv_net().to(dtype), x, torch.zeros(3).long())


def test_a_loader_of_empty_batches_is_empty() -> None:
    x, y = torch.rand(0, 3, 6, 5), torch.zeros(0).long()
    with pytest.raises(ValueError, match="loader was empty"):
        robust_accuracy(conv_net(), [(x, y), (x, y)], ["pgd-3"], ball=Linf(0.1))
    whole = robust_accuracy(
        conv_net(), [(x, y), (torch.rand(2, 3, 6, 5), y.new_zeros(2))], ["pgd-3"], ball=Linf(0.1)
    )
    assert len(whole.robust) == 2


def test_points_of_images_of_several_shapes_are_refused_before_the_second() -> None:
    sizes = [(torch.rand(2, 3, 6, side), torch.zeros(2).long()) for side in (5, 7)]
    model = conv_net()
    assert len(robust_accuracy(model, sizes, ["pgd-3"], ball=Linf(0.1)).robust) == 4
    with pytest.raises(ValueError, match=r"points of images \(3, 6, 7\) and of \(3, 6, 5\)"):
        robust_accuracy(model, sizes, ["pgd-3"], ball=Linf(0.1), points=True)


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize("attack", ["apgd-t", "fab-t", "square", "cw-9", "apgd-dlr"])
def test_probabilities_as_labels_are_attacked_as_their_likeliest_class(attack: str) -> None:
    model, x, y, ball = a_problem(12)
    soft = 0.1 + 0.6 * F.one_hot(y, 4).double()
    each = [robust_accuracy(model, [(x, of)], [attack], ball=ball, seed=3) for of in (y, soft)]
    assert torch.equal(each[0].correct[:, 0], each[1].correct[:, 0])
    assert torch.equal(each[0].robust, each[1].robust)
    assert 0 < int(each[0].robust.sum()) < int(each[0].correct[:, 0].sum())


def test_a_task_of_ones_own_knows_what_its_answers_mean() -> None:
    class Binary(Classification):
        def losses(self, logits: Tensor, y: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits), reduction="none")

        def correct(self, logits: Tensor, y: Tensor) -> Tensor:
            return (logits[:, 0] > 0) == y.bool()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 1))
    x = torch.rand(30, 1, 3, 3)
    y = (model(x)[:, 0] > 0).long()
    found = robust_accuracy(model, [(x, y)], ["pgd-5"], ball=Linf(0.02), task=Binary())
    # exact for a linear model: each pixel moves against the label as far as ball and range allow
    with torch.no_grad():
        logit, sign = model(x)[:, 0], 1 - 2 * y[:, None]
        away = (sign * model[1].weight).sign()
        room = torch.where(away > 0, 1 - x.flatten(1), x.flatten(1)).clamp(max=0.02)
        least = -sign[:, 0] * logit - (room * model[1].weight.abs()).sum(1)
    assert torch.equal(found.robust, least > 0)
    assert 0 < int(found.robust.sum()) < 30
