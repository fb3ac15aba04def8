"""What a trained model is worth, by a stated protocol."""

from gratis.evaluate.interval import clopper_pearson
from gratis.evaluate.robustness import Examples, Robustness, robust_accuracy

__all__ = ["Examples", "Robustness", "clopper_pearson", "robust_accuracy"]
