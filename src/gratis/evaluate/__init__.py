"""What a trained model is worth, by a stated protocol."""

from gratis.evaluate.checks import Checks, Finding, check_masking
from gratis.evaluate.interval import clopper_pearson
from gratis.evaluate.robustness import Examples, Robustness, robust_accuracy

__all__ = [
    "Checks",
    "Examples",
    "Finding",
    "Robustness",
    "check_masking",
    "clopper_pearson",
    "robust_accuracy",
]
