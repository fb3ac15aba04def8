"""Networks by name: `build_model` and what it tells about names and options that are wrong."""

import sys
import types

import pytest
import torch
from torch import nn

from gratis.nn import MODELS, Detector, build_model

SHAPE = {"classes": 5, "channels": 3, "image_size": 32}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("small-conv", {"width": 4}),
        ("preact-resnet18", {"width": 4}),
        ("wrn-32-10", {"width": 16}),
        ("resnet18", {}),
    ],
)
def test_models_by_name_give_logits(name: str, options: dict) -> None:
    model = build_model(name, **SHAPE, **options)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)


def test_every_name_has_a_builder_that_keeps_the_number_of_classes() -> None:
    for name in MODELS:
        with torch.device("meta"):
            model = build_model(name, classes=7, channels=3, image_size=28)
        if isinstance(model, Detector):  # as many for each of nine anchors
            assert model.head.classification_head.cls_logits.out_channels == 7 * 9
        else:
            assert list(model.modules())[-1].out_features == 7


def test_width_reaches_the_network() -> None:
    model = build_model("small-conv", **SHAPE, width=8)
    assert model[0].out_channels == 8


def test_mean_and_std_put_a_normalisation_first() -> None:
    model = build_model("small-conv", **SHAPE, width=4, mean=(0.5, 0.5, 0.5), std=(0.25,) * 3)
    assert [name for name, _ in model.named_children()] == ["normalize", "net"]
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.net((x - 0.5) / 0.25))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "smal-conv"}, "did you mean 'small-conv'.*preact-resnet18.*module:function"),
        ({"name": "small-conv", "widht": 3}, "no option widht; it takes width"),
        ({"name": "resnet18", "width": 3}, "no option width; it takes no options"),
        ({"name": "resnet18", "channels": 1}, "3 channels, these have 1"),
        ({"name": "mnist-net"}, "28x28 pixels, these are 32x32"),
        ({"name": "small-conv", "mean": (0.5,)}, "only one of mean and std"),
        ({"name": "small-conv", "mean": (0.5,) * 2, "std": (0.5,) * 2}, "2 numbers.*3 channels"),
    ],
)
def test_a_wrong_name_or_option_is_explained(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(**{**SHAPE, **arguments})


@pytest.fixture
def users_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("users_models")
    monkeypatch.setitem(sys.modules, "users_models", module)
    return module


def test_a_users_function_gets_the_shape_and_the_options(users_module: types.ModuleType) -> None:
    def build(classes: int, channels: int, image_size: int, hidden: int = 1) -> nn.Module:
        return nn.Linear(channels * image_size + hidden, classes)

    users_module.build = build  # type: ignore[attr-defined]
    model = build_model("users_models:build", **SHAPE, hidden=4)
    assert (model.in_features, model.out_features) == (100, 5)
    with pytest.raises(ValueError, match=r"takes \(classes.*unexpected keyword argument 'depth'"):
        build_model("users_models:build", **SHAPE, depth=4)


def test_a_users_function_that_fails_is_explained(users_module: types.ModuleType) -> None:
    users_module.nothing = lambda **_: None  # type: ignore[attr-defined]
    users_module.constant = 3  # type: ignore[attr-defined]
    for name, message in [
        ("users_models:nothing", "returned a NoneType, not an nn.Module"),
        ("users_models:constant", "is a int; it must be a function"),
        ("users_models:missing", "could not be imported.*missing.*PYTHONPATH"),
        ("no_such_module:build", "could not be imported.*no_such_module"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_model(name, **SHAPE)


def test_timm_models_by_name() -> None:
    pytest.importorskip("timm")
    shape = {"classes": 5, "channels": 1, "image_size": 32}
    model = build_model("timm:resnet10t", **shape, mean=(0.5,), std=(0.5,))
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"no model 'resnet10x'; nearest: .*resnet10t"):
        build_model("timm:resnet10x", **shape)
    with pytest.raises(ValueError, match=r"refuses the options .*widht"):
        build_model("timm:resnet10t", **shape, widht=3)


def test_absent_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install gratis\[timm\]"):
        build_model("timm:resnet10t", **SHAPE)
