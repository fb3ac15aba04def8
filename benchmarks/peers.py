"""What other libraries offer for the same, each called as its users call it.

    pip install foolbox
    pip install six requests
    pip install --no-deps torchattacks cleverhans adversarial-robustness-toolbox

(The last three ask for other versions of what is here, or for more than their PGD needs.) All
of them take the network in eval mode, its parameters requiring gradients as those of any do.
"""

import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn

Attack = Callable[[Tensor, Tensor], Tensor]
"""(x [B, C, H, W] in [0, 1], y [B]) -> adversarial points, of x's shape."""

PACKAGES = {
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "cleverhans": "cleverhans",
    "ART": "adversarial-robustness-toolbox",
}
WITH_RESTARTS = ("torchattacks", "foolbox", "ART")


def versions(names: Iterable[str]) -> str:
    """Of each library, in a line."""
    return ", ".join(f"{name} {version(PACKAGES[name])}" for name in names)


def pgd(
    name: str, model: nn.Module, *, eps: float, steps: int, step_size: float, restarts: int = 1
) -> Attack:
    """PGD in Linf from random starts by the library of that name.

    model: of ten classes of images 3x32x32.
    """
    build = {
        "torchattacks": by_torchattacks,
        "foolbox": by_foolbox,
        "cleverhans": by_cleverhans,
        "ART": by_art,
    }[name]
    return build(model, eps, steps, step_size, restarts)


def by_torchattacks(
    model: nn.Module, eps: float, steps: int, step_size: float, restarts: int
) -> Attack:
    import torchattacks

    each = [torchattacks.PGD(model, eps, step_size, steps) for _ in range(restarts)]
    return each[0] if restarts == 1 else torchattacks.MultiAttack(each)


def by_foolbox(model: nn.Module, eps: float, steps: int, step_size: float, restarts: int) -> Attack:
    import foolbox

    attack = foolbox.attacks.LinfProjectedGradientDescentAttack(
        abs_stepsize=step_size, steps=steps, random_start=True
    )
    if restarts > 1:
        attack = attack.repeat(restarts)

    def points(x: Tensor, y: Tensor) -> Tensor:
        bounded = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=x.device)
        _, clipped, _ = attack(bounded, x, y, epsilons=eps)
        return clipped

    return points


def by_cleverhans(
    model: nn.Module, eps: float, steps: int, step_size: float, restarts: int
) -> Attack:
    assert restarts == 1, "it has none"
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    def points(x: Tensor, y: Tensor) -> Tensor:
        return projected_gradient_descent(
            model.eval(), x, eps, step_size, steps, np.inf, clip_min=0.0, clip_max=1.0, y=y
        ).detach()

    return points


def by_art(model: nn.Module, eps: float, steps: int, step_size: float, restarts: int) -> Attack:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports a test runner that is out of date
        from art.attacks.evasion import ProjectedGradientDescent
        from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (3, 32, 32), nb_classes=10, clip_values=(0, 1)
    )

    def points(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        attack = ProjectedGradientDescent(
            wrapped,
            np.inf,
            eps,
            step_size,
            max_iter=steps,
            num_random_init=restarts,
            batch_size=len(x),
            verbose=False,
        )
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)

    return points
