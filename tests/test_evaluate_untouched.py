"""A model that is evaluated is only looked at: its modes, weights and statistics stay."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from gratis.balls import Linf
from gratis.evaluate import robust_accuracy
from tests.problems import batched, conv_net, own_labels


def snapshot(model: nn.Module) -> dict[str, object]:
    return {
        "modes": [m.training for m in model.modules()],
        "wanted": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "state": {k: v.clone() for k, v in model.state_dict().items()},
    }


def assert_untouched(model: nn.Module, before: dict[str, object]) -> None:
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)


def model_in_mid_training() -> tuple[nn.Module, Tensor, Tensor]:
    """Train mode, one layer frozen in eval mode, one parameter frozen, one with a gradient."""
    model = conv_net()
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[6].weight.grad = torch.ones_like(model[6].weight)
    x = torch.rand(6, 3, 5, 4)
    return model, x, own_labels(model, x)


def test_the_model_is_left_as_it_was() -> None:
    model, x, y = model_in_mid_training()
    model[1].eval()
    before = snapshot(model)
    robust_accuracy(model, [(x, y)], ["pgd-3-2"], ball=Linf(0.1), examples=3)
    assert_untouched(model, before)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_the_model_is_left_as_it_was_also_after_an_error(at: int) -> None:
    model, x, y = model_in_mid_training()
    model[1].eval()
    before = snapshot(model)
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        robust_accuracy(model, [(x, y)], ["pgd-3-2"], ball=Linf(0.1))
    assert_untouched(model, before)


def test_running_statistics_judge_and_dropout_is_off() -> None:
    model, x, y = model_in_mid_training()
    model.train()
    one = robust_accuracy(model, [(x, y)], ["pgd-5"], ball=Linf(0.02))
    two = robust_accuracy(model, batched(x, y, 1), ["pgd-5"], ball=Linf(0.02))
    assert one.correct[:, 0].all()  # y was read off in eval mode
    assert torch.equal(one.correct, two.correct)


def test_it_works_inside_no_grad_and_autocast() -> None:
    model, x, y = model_in_mid_training()
    dtypes = set()
    model.register_forward_hook(lambda *arguments: dtypes.add(arguments[-1].dtype))
    plain = robust_accuracy(model, [(x, y)], ["pgd-5"], ball=Linf(0.05), examples=6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = robust_accuracy(model, [(x, y)], ["pgd-5"], ball=Linf(0.05), examples=6)
    assert plain.examples is not None
    assert inside.examples is not None
    assert dtypes == {torch.float32}
    assert torch.equal(plain.correct, inside.correct)
    assert torch.equal(plain.examples.adversarial, inside.examples.adversarial)


@pytest.fixture
def switches() -> Iterator[None]:
    """How NVIDIA cards multiply fp32, put back."""
    parts = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    old = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    before = [part.fp32_precision for part in parts]
    yield
    torch.backends.cudnn.allow_tf32 = old[0]
    torch.set_float32_matmul_precision(old[1])
    for part, own in zip(parts, before, strict=True):
        part.fp32_precision = own


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize("by", ["default", "old switches", "medium", "new switches"])
def test_cards_multiply_in_whole_fp32_meanwhile(by: str) -> None:
    if by == "old switches":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    elif by == "medium":
        torch.set_float32_matmul_precision("medium")
    elif by == "new switches":
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        torch.backends.cuda.matmul.fp32_precision = "tf32"

    def told() -> list[str]:
        return [torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision]

    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(told())
            return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)

    before, seen = told(), list[list[str]]()
    robust_accuracy(
        Asking(), [(torch.rand(3, 3, 4, 4), torch.zeros(3).long())], ["pgd-2"], ball=Linf(0.1)
    )
    assert {tuple(each) for each in seen} == {("ieee", "ieee")}
    assert told() == before
    if by != "new switches":  # after which PyTorch lets nobody ask the old ones
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == {
            "default": "highest", "old switches": "high", "medium": "medium"
        }[by]  # fmt: skip
