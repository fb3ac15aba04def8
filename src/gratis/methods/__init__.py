"""Training methods by name. A new one is a file here, an entry in METHODS and a row in names."""

from collections.abc import Callable

from gratis.methods.free import Free
from gratis.methods.natural import Natural
from gratis.methods.pgd_training import PGDTraining, fgsm, fgsm_rs
from gratis.passes import Method

METHODS: dict[str, Callable[..., Method]] = {
    "natural": Natural,
    "pgd": PGDTraining,
    "fgsm": fgsm,
    "fgsm-rs": fgsm_rs,
    "free": Free,
}
"""Name -> class or named constructor; its parameters are the recipe's keys under `method`."""

__all__ = ["METHODS", "Free", "Natural", "PGDTraining", "fgsm", "fgsm_rs"]
