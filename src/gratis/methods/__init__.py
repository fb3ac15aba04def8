"""Training methods by name. A new one is a file here, an entry in METHODS and a row in names."""

from collections.abc import Callable

from gratis.methods.fast_advprop import FastAdvProp
from gratis.methods.free import Free
from gratis.methods.gradalign import GradAlign
from gratis.methods.natural import Natural
from gratis.methods.pgd_training import AdvProp, PGDTraining, fgsm, fgsm_rs, n_fgsm
from gratis.methods.trades import Trades
from gratis.methods.yopo import Yopo
from gratis.passes import Method

METHODS: dict[str, Callable[..., Method]] = {
    "natural": Natural,
    "pgd": PGDTraining,
    "fgsm": fgsm,
    "fgsm-rs": fgsm_rs,
    "n-fgsm": n_fgsm,
    "gradalign": GradAlign,
    "free": Free,
    "yopo": Yopo,
    "trades": Trades,
    "advprop": AdvProp,
    "fast-advprop": FastAdvProp,
}
"""Name -> class or named constructor; its parameters are the recipe's keys under `method`."""

__all__ = [
    "METHODS",
    "AdvProp",
    "FastAdvProp",
    "Free",
    "GradAlign",
    "Natural",
    "PGDTraining",
    "Trades",
    "Yopo",
    "fgsm",
    "fgsm_rs",
    "n_fgsm",
]
