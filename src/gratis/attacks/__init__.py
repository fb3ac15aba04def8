"""Attacks by name: the protocol that a number is measured under."""

from gratis.attacks.apgd import APGD
from gratis.attacks.autoattack import STANDARD, AutoAttack
from gratis.attacks.compatible import FastCodePGD
from gratis.attacks.pgd import pgd
from gratis.attacks.pgd_attack import PGD
from gratis.attacks.search import Attack, Attacked
from gratis.names import parse_attack

__all__ = ["PGD", "Attack", "Attacked", "build_attack", "pgd"]


def build_attack(name: str) -> Attack:
    """The attack of that name (gratis.names.ATTACKS); ValueError says what is wrong with it.

    pgd-K-R climbs the cross entropy from R random starts, cw-K-R the margin (Carlini & Wagner's
    loss under projected gradient, as Madry 2018 evaluates); bim-K and fgsm start at the image,
    the latter with a single step of eps (Kurakin 2017, Goodfellow 2015). autoattack is the
    standard version, the others its parts, and apgd-dlr. pgd-K-R:compatible is measured as the
    released code of Wong 2020 does; :bf16 searches in bfloat16 and confirms in the model's own
    precision.
    """
    parsed = parse_attack(name)
    if parsed.kind in _WHOLE:
        return _WHOLE[parsed.kind]
    if "compatible" in parsed.flags:
        return FastCodePGD(name, parsed.steps, parsed.restarts, parsed.alpha)
    return PGD(
        name,
        parsed.steps,
        parsed.restarts,
        parsed.alpha,
        share=1.0 if parsed.kind == "fgsm" else 0.25,
        loss="margin" if parsed.kind == "cw" else "cross-entropy",
        start="random" if parsed.kind in ("pgd", "cw") else "zero",
        climb_on="climb-on" in parsed.flags,
        bf16="bf16" in parsed.flags,
    )


_WHOLE: dict[str, Attack] = {
    attack.name: attack for attack in (*STANDARD, APGD("apgd-dlr", "dlr"), AutoAttack("autoattack"))
}
"""The attacks whose name is all there is to say."""
