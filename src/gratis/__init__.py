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
    from gratis.balls import L2, Linf
    from gratis.evaluate.robustness import robust_accuracy
    from gratis.learner import Learner
    from gratis.methods import Free, Natural, PGDTraining, fgsm, fgsm_rs
    from gratis.nn import Normalize
    from gratis.run import Run
    from gratis.tasks import Classification

__version__ = version("gratis")

_HOMES = {
    "L2": "gratis.balls",
    "Linf": "gratis.balls",
    "robust_accuracy": "gratis.evaluate.robustness",
    "Learner": "gratis.learner",
    "Free": "gratis.methods",
    "Natural": "gratis.methods",
    "PGDTraining": "gratis.methods",
    "fgsm": "gratis.methods",
    "fgsm_rs": "gratis.methods",
    "Normalize": "gratis.nn",
    "Run": "gratis.run",
    "Classification": "gratis.tasks",
}

_MODULES = ("recipe", "train")

__all__ = [
    "L2",
    "Classification",
    "Free",
    "Learner",
    "Linf",
    "Natural",
    "Normalize",
    "PGDTraining",
    "Run",
    "__version__",
    "fgsm",
    "fgsm_rs",
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
