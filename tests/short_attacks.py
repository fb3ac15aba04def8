"""The attacks that have no number of steps in their names, made shorter."""

from gratis.attacks import _WHOLE, autoattack


def put(monkeypatch, *attacks):
    """Use these in place of the standard parts of their names, alone and in AutoAttack."""
    named = {attack.name: attack for attack in attacks}
    for name, attack in named.items():
        monkeypatch.setitem(_WHOLE, name, attack)
    parts = tuple(named.get(part.name, part) for part in autoattack.STANDARD)
    monkeypatch.setattr(autoattack, "STANDARD", parts)
