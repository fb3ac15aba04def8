"""Robust image classifiers at about the price of ordinary training.

    from gratis import Free, Linf

    free = Free(Linf(8/255), replays=8)
    for x, y in free.batches(loader):            # was: for x, y in loader
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()

The names below load when first used, so that the command line can answer before torch is
imported.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gratis.balls import L1, L2, Linf
    from gratis.evaluate.points import attack
    from gratis.evaluate.robustness import robust_accuracy
    from gratis.learner import Learner
    from gratis.methods import (
        AdvProp,
        FastAdvProp,
        Free,
        GradAlign,
        Natural,
        PGDTraining,
        Trades,
        Yopo,
        fgsm,
        fgsm_rs,
        n_fgsm,
    )
    from gratis.nn import Normalize, add_aux, drop_aux
    from gratis.run import Run
    from gratis.tasks import Classification

__version__ = version("gratis")

_HOMES = {
    "L1": "gratis.balls",
    "L2": "gratis.balls",
    "Linf": "gratis.balls",
    "attack": "gratis.evaluate.points",
    "robust_accuracy": "gratis.evaluate.robustness",
    "Learner": "gratis.learner",
    "AdvProp": "gratis.methods",
    "FastAdvProp": "gratis.methods",
    "Free": "gratis.methods",
    "GradAlign": "gratis.methods",
    "Natural": "gratis.methods",
    "PGDTraining": "gratis.methods",
    "Trades": "gratis.methods",
    "Yopo": "gratis.methods",
    "fgsm": "gratis.methods",
    "fgsm_rs": "gratis.methods",
    "n_fgsm": "gratis.methods",
    "Normalize": "gratis.nn",
    "add_aux": "gratis.nn",
    "drop_aux": "gratis.nn",
    "Run": "gratis.run",
    "Classification": "gratis.tasks",
}

_MODULES = ("recipe", "train")

__all__ = [
    "L1",
    "L2",
    "AdvProp",
    "Classification",
    "FastAdvProp",
    "Free",
    "GradAlign",
    "Learner",
    "Linf",
    "Natural",
    "Normalize",
    "PGDTraining",
    "Run",
    "Trades",
    "Yopo",
    "__version__",
    "add_aux",
    "attack",
    "drop_aux",
    "fgsm",
    "fgsm_rs",
    "n_fgsm",
    "robust_accuracy",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"gratis.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gratis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
