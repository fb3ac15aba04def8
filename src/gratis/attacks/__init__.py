"""Attacks by name: the protocol that a number is measured under."""

from gratis.attacks.pgd import pgd
from gratis.attacks.pgd_attack import PGD
from gratis.names import parse_attack

__all__ = ["PGD", "build_attack", "pgd"]


def build_attack(name: str) -> PGD:
    """The attack spelled `pgd-STEPS[-RESTARTS][:alpha=8/255]`; ValueError says what is wrong."""
    parsed = parse_attack(name)
    return PGD(name, parsed.steps, parsed.restarts, parsed.options.get("alpha"))
