"""Masking checks: signs that a robust accuracy says more about the attack than about the model.

rules        the table: what passes, what fails, and who says so
subject      the model, the images it was evaluated on, attacks on some of them
outcome      what a check is, and what comes out of it before it is judged
paired       attacks compared image by image;  slopes: input gradients;  points: where PGD ends
outputs      what asking alone shows;  differences: finite differences against autograd
masking      which checks run, and the verdict
"""

from gratis.evaluate.checks.masking import Checks, Finding, check_masking

__all__ = ["Checks", "Finding", "check_masking"]
