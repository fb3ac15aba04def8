"""LARS and LAMB by name: their options in recipes, and learning."""

import pytest

from gratis import train
from gratis.optim import LAMB, LARS, build_optimizer
from tests.recipes import tiny
from tests.small_net import conv_and_linear


@pytest.mark.parametrize("name", ["lars", "lamb"])
@pytest.mark.parametrize("decay", ["all", "weights"])
@pytest.mark.parametrize("layerwise", ["all", "weights"])
def test_norms_and_biases_are_spared_each_way(name: str, decay: str, layerwise: str) -> None:
    optimizer = build_optimizer(
        conv_and_linear(),
        name,
        learning_rate=0.1,
        weight_decay=0.5,
        decay=decay,
        layerwise=layerwise,
    )
    said = {
        p.ndim > 1: (group["weight_decay"], group["layerwise"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert said[True] == (0.5, True)
    assert said[False] == (0.5 if decay == "all" else 0.0, layerwise == "all")
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6


def test_names_and_options_reach_the_optimizers() -> None:
    lars = build_optimizer(conv_and_linear(), "lars", learning_rate=0.3, momentum=0.7)
    assert isinstance(lars, LARS)
    assert (lars.defaults["lr"], lars.defaults["momentum"]) == (0.3, 0.7)
    lamb = build_optimizer(
        conv_and_linear(), "lamb", learning_rate=0.3, momentum=0.7, bias_correction=True,
        weight_norm_clip=None,
    )  # fmt: skip
    assert isinstance(lamb, LAMB)
    assert (lamb.defaults["lr"], lamb.defaults["betas"]) == (0.3, (0.7, 0.999))
    assert (lamb.defaults["bias_correction"], lamb.defaults["weight_norm_clip"]) == (True, None)


@pytest.mark.parametrize(("name", "rate"), [("lars", 10.0), ("lamb", 0.03)])
def test_a_recipe_learns_with_it(name: str, rate: float, tmp_path) -> None:
    recipe = tiny(
        "natural", f"optimizer.name={name}", f"optimizer.learning_rate={rate}",
        "optimizer.layerwise=weights", "optimizer.decay=weights", "optimizer.per_images=50",
        "optimizer.scaling=sqrt", "schedule.shape=cosine", "schedule.warmup=1/4",
        "evaluation.attacks=[pgd-1]", passes=4,
    )  # fmt: skip
    log = train.run(recipe, tmp_path / "run").log()
    rates = [record["learning_rate"] for record in log if record["kind"] == "step"]
    assert max(rates) == pytest.approx(2**0.5 * rate)  # batches of 100
    epochs = [record for record in log if record["kind"] == "epoch"]
    assert epochs[-1]["train_loss"] < 0.8 * epochs[0]["train_loss"]
