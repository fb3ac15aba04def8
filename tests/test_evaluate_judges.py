"""Robust accuracy beside other libraries' attacks: Foolbox, and AutoAttack by its authors."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gratis.balls import L2, Ball, Linf
from gratis.evaluate import robust_accuracy
from tests.problems import digits_net

__all__ = ["digits_net"]  # a fixture, asked for by name


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.6)], ids=repr)
@pytest.mark.parametrize("kind", ["pgd", "cw"])
def test_no_weaker_than_foolbox(
    digits_net: tuple[nn.Module, Tensor, Tensor], ball: Ball, kind: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports a deprecated module of scipy
        import foolbox
    import eagerpy

    model, x, y = digits_net
    steps, alpha = 20, ball.eps / 5
    base = foolbox.attacks.LinfPGD if ball.norm == "linf" else foolbox.attacks.L2PGD

    class WithMargin(base):  # type: ignore[misc, valid-type]
        def get_loss_fn(self, judged: object, labels: object) -> object:
            """Their loop up the loss of Carlini & Wagner."""
            y = labels.raw  # type: ignore[attr-defined]

            def loss(point: object) -> object:
                logits = model(point.raw)  # type: ignore[attr-defined]
                right = F.one_hot(y, logits.shape[1]).bool()
                others = logits.masked_fill(right, -torch.inf).amax(1)
                return eagerpy.astensor((others - logits[right]).sum())

            return loss

    theirs = (WithMargin if kind == "cw" else base)(abs_stepsize=alpha, steps=steps)
    judged = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, _, broken = theirs(judged, x, y, epsilons=ball.eps)
    found = robust_accuracy(model, [(x, y)], [f"{kind}-{steps}:alpha={alpha}"], ball=ball)
    assert float(found.correct[:, 0].float().mean()) > 0.9
    assert 10 <= int((~broken).sum()) <= 90  # a radius at which attacks can differ
    assert int(found.robust.sum()) <= int((~broken).sum()) + 1


@pytest.mark.slow
def test_autoattack_is_no_weaker_than_the_package_of_its_authors(
    digits_net: tuple[nn.Module, Tensor, Tensor],
) -> None:
    from pyautoattack import AutoAttack

    model, x, y = digits_net
    x, y = x[:50], y[:50]
    judged = []
    for seed in (0, 1):
        judge = AutoAttack(model, norm="Linf", eps=0.08, seed=seed)
        points = judge.run_standard_evaluation(x, y, batch_size=50)
        points = points[0] if isinstance(points, tuple) else points
        judged.append(int((model(points).argmax(1) == y).sum()))
    found = robust_accuracy(model, [(x, y)], ["autoattack"], ball=Linf(0.08))
    assert 5 < int(found.robust.sum()) < 45
    # one image is 2 points: none more may be left standing than the better of their two seeds left
    assert int(found.robust.sum()) <= max(judged)
