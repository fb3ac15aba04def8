"""Optimizers by name; schedules have a file of their own."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gratis import Learner, Natural
from gratis.budget import Plan
from gratis.nn import build_model
from gratis.optim import build_optimizer
from gratis.passes import Batch
from gratis.recipe import from_plain
from gratis.sections import Optimizer
from gratis.setting import learner
from tests.recipes import tiny
from tests.small_net import conv_and_linear


def test_weight_decay_can_spare_norms_and_biases() -> None:
    model = conv_and_linear()
    optimizer = build_optimizer(model, "sgd", learning_rate=0.1, weight_decay=0.5, decay="weights")
    decayed, spared = optimizer.param_groups
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert all(p.ndim == 1 for p in spared["params"])
    assert spared["weight_decay"] == 0.0


class Products(TorchDispatchMode):
    """In which precisions matrices are multiplied within it."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.name().startswith("aten::addmm"):
            self.dtypes.add(args[1].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_steps_convolutions_by_orthogonal_matrices(
    able: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in bf16 where the machine has it: emulated, they take many times as long."""
    monkeypatch.setattr("gratis.optim.muon.has_bf16", lambda device: able)
    model = conv_and_linear()
    conv = model[0]
    assert isinstance(conv, nn.Conv2d)
    before = conv.weight.detach().clone()
    optimizer = build_optimizer(model, "muon", learning_rate=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    orthogonal, _ = torch.linalg.qr(torch.randn(27, 4))
    unequal = torch.tensor([1.0, 0.5, 0.2, 0.1])[:, None] * orthogonal.T
    conv.weight.grad = unequal.view_as(conv.weight)
    with Products() as products:
        optimizer.step()
    assert products.dtypes == {dtype}
    singular = torch.linalg.svdvals((conv.weight.detach() - before).flatten(1))
    # five Newton-Schulz steps bring singular values near 1, not to it
    assert singular[0] / singular[-1] < 2


def test_muon_takes_the_rest_at_a_share_of_the_rate() -> None:
    def moved(fallback: float) -> float:
        model = conv_and_linear()
        linear = model[-1]
        assert isinstance(linear, nn.Linear)
        before = linear.weight.detach().clone()
        optimizer = build_optimizer(
            model, "muon", learning_rate=0.1, momentum=0.9, fallback=fallback
        )
        torch.manual_seed(1)
        model(torch.rand(8, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        return (linear.weight.detach() - before).abs().max().item()

    assert moved(0.5) == pytest.approx(moved(1.0) / 2, rel=1e-4)


def test_muon_can_spare_norms_and_biases() -> None:
    optimizer = build_optimizer(
        conv_and_linear(), "muon", learning_rate=0.1, weight_decay=0.5, decay="weights"
    )
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.5, 0.0]


def test_muon_without_timm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim.muon", None)
    with pytest.raises(ValueError, match=r"pip install gratis\[timm\]"):
        build_optimizer(conv_and_linear(), "muon", learning_rate=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"name": "adam", "nesterov": True},
            r"nesterov=True is for sgd and muon, adam has no use for it; .* back to False",
        ),
        ({"name": "lars", "nesterov": True}, "lars has no use"),
        ({"fallback": 0.3}, r"fallback=0\.3 is for muon, sgd has .* back to 1\.0"),
        ({"layerwise": "weights"}, "layerwise=weights is for lars and lamb, sgd has"),
        ({"name": "lars", "bias_correction": True}, "bias_correction=True is for lamb, lars"),
        ({"name": "lars", "weight_norm_clip": None}, "weight_norm_clip=None is for lamb, lars"),
        ({"scaling": "sqrt"}, "scaling=sqrt scales nothing by itself; give per_images"),
        ({"per_images": 0}, "per_images=0 must be at least 1"),
    ],
)
def test_what_an_optimizer_would_ignore_is_refused(values, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimizer(**values)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {}),
        ("adam", {}),
        ("adamw", {}),
        ("muon", {}),
        ("lars", {"layerwise": "weights"}),
        ("lamb", {"layerwise": "weights", "bias_correction": True}),
    ],
)
def test_going_on_from_a_saved_state_is_bitwise(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    def learner() -> Learner:
        optimizer = build_optimizer(model := conv_and_linear(), name, learning_rate=0.05, **options)
        return Learner(model, optimizer, channels_last=True, seed=0)

    batches = [Batch(torch.rand(8, 3, 8, 8), torch.arange(8)) for _ in range(4)]
    straight, first, second = learner(), learner(), learner()
    for batch in batches:
        straight.fit(Natural(), batch)
    for batch in batches[:2]:
        first.fit(Natural(), batch)
    torch.save(first.state(), tmp_path / "state.pt")
    second.load_state(torch.load(tmp_path / "state.pt"))
    for batch in batches[2:]:
        second.fit(Natural(), batch)
    for ours, theirs in zip(second.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    untrained = conv_and_linear().parameters()
    for theirs, at_first in zip(straight.model.parameters(), untrained, strict=True):
        assert not torch.equal(theirs, at_first)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon", "lars", "lamb"])
def test_a_written_recipe_reads_back_whatever_the_optimizer(name: str) -> None:
    recipe = tiny("natural", f"optimizer.name={name}")
    assert from_plain(recipe.plain()).optimizer == recipe.optimizer


def test_a_recipes_choices_reach_its_optimizer() -> None:
    recipe = tiny(
        "natural", "optimizer.name=lamb", "optimizer.layerwise=weights",
        "optimizer.bias_correction=true", "optimizer.weight_norm_clip=null",
    )  # fmt: skip
    weights, spared = learner(recipe, conv_and_linear(), Plan(10, 0)).optimizer.param_groups
    assert (weights["layerwise"], spared["layerwise"]) == (True, False)
    assert weights["bias_correction"]
    assert weights["weight_norm_clip"] is None


def test_a_recipe_says_no_clip_and_a_share_in_yamls_words() -> None:
    recipe = tiny(
        "natural", "optimizer.name=lamb", "optimizer.weight_norm_clip=null",
        "schedule.shape=piecewise", "schedule.warmup=5/105",
    )  # fmt: skip
    again = from_plain(recipe.plain())
    assert again.optimizer.weight_norm_clip is None
    assert again.schedule.warmup == 5 / 105


@pytest.mark.parametrize("size", [28, 32, 33])
def test_resnet9_takes_images_of_these_sizes(size: int) -> None:
    model = build_model("resnet9", classes=7, channels=1, image_size=size, width=8)
    assert model(torch.rand(2, 1, size, size)).shape == (2, 7)


def test_resnet9_has_eight_convolutions() -> None:
    model = build_model("resnet9", classes=10, channels=3, image_size=32, width=64)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [24, 64, 64, 64, 128, 256, 256, 256]
    assert sum(p.numel() for p in model.parameters()) == 1_640_888


@torch.no_grad()
def test_resnet9_with_silu_has_the_same_weights_and_a_slope_without_jumps() -> None:
    """Places eight times as near have slopes eight times as alike; with kinks they do not."""
    shape = {"classes": 7, "channels": 1, "image_size": 28, "width": 8}
    relu, silu = (
        build_model("resnet9", **shape, activation=name).double().eval()
        for name in ("relu", "silu")
    )
    silu.load_state_dict(relu.state_dict())
    x, direction = torch.rand(2, 1, 1, 28, 28, dtype=torch.float64)

    def largest_change(model: nn.Module, places: int) -> float:
        spacing, h = 0.02 / places, 1e-7
        ends = x + torch.arange(places)[:, None, None, None] * spacing * direction
        # the largest place is what goes on to the linear layer: only activations may have kinks
        low, high = (
            model.stages(nn.functional.gelu(model.stem(ends + way * direction))) for way in (-h, h)
        )
        return float(((high - low) / (2 * h)).diff(dim=0).abs().max())

    shrinks = [largest_change(m, 8) / largest_change(m, 64) for m in (relu, silu)]
    assert shrinks[0] < 3 < 7 < shrinks[1] < 9


def test_resnet9_pools_the_largest_or_the_mean() -> None:
    shape = {"classes": 7, "channels": 1, "image_size": 28, "width": 8}
    x = torch.rand(2, 1, 28, 28)
    for name, pooled, scale in (
        ("max", lambda maps: maps.amax(dim=(2, 3)), 0.125),
        ("average", lambda maps: maps.mean(dim=(2, 3)), 0.5),
    ):
        model = build_model("resnet9", **shape, pool=name).eval()
        maps = model.stages(nn.functional.gelu(model.stem(x)))
        expected = scale * pooled(maps) @ model.linear.weight.T
        torch.testing.assert_close(model(x), expected)


def test_mirrored_resnet9_answers_and_slopes_for_an_image_and_its_mirror_image_alike() -> None:
    shape = {"classes": 7, "channels": 1, "image_size": 28, "width": 8}
    plain, mirrored = (
        build_model("resnet9", **shape, mirrored=on).double() for on in (False, True)
    )
    mirrored.load_state_dict(plain.state_dict())
    x = torch.rand(2, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(mirrored(x), plain(x), rtol=0, atol=0)  # training takes one
    plain.eval(), mirrored.eval()
    answer = mirrored(x)
    torch.testing.assert_close(answer, (plain(x) + plain(x.flip(3))) / 2)
    torch.testing.assert_close(answer, mirrored(x.flip(3)), rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(answer[:, 0].sum(), x)
    towards = x.detach().flip(3).requires_grad_()
    (of_mirror,) = torch.autograd.grad(mirrored(towards)[:, 0].sum(), towards)
    torch.testing.assert_close(slope, of_mirror.flip(3))
    (of_plain,) = torch.autograd.grad(plain(x)[:, 0].sum(), x)
    assert not torch.allclose(slope, of_plain)  # an attack that saw one half only would miss this


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"activation": "gelu"}, "activation='gelu' is none of relu, silu"),
        ({"pool": "mean"}, "pool='mean' is none of max, average"),
    ],
)
def test_resnet9_names_what_it_knows(option: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model("resnet9", classes=7, channels=1, image_size=28, **option)
