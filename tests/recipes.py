"""Small recipes on real digits that train in a second or two."""

from gratis.recipe import from_plain, override, with_method


def tiny(method="fgsm-rs", *settings, passes=3):
    values = {
        "name": "tiny",
        "data": {"name": "digits", "batch_size": 100, "holdout": 64},
        "model": {"name": "small-conv", "options": {"width": 4}},
        "method": with_method({"ball": {"norm": "linf", "eps": 0.2}}, method),
        "optimizer": {"learning_rate": 0.1, "weight_decay": "5e-4"},
        "budget": {"passes": passes},
        "check": {"images": 32, "attack": "pgd-2"},
        "evaluation": {"attacks": ["pgd-3-2"], "limit": 24},
    }
    return from_plain(override(values, settings))
