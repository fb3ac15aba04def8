"""Networks by name. Every one takes pixels in [0, 1]: normalisation is its first layer."""

import difflib
import inspect
import pkgutil
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from gratis.nn.auxbn import add_aux, drop_aux, group_norms
from gratis.nn.batchnorm import parameters_by_decay, set_momentum, untracked_statistics
from gratis.nn.detector import Detector, retinanet
from gratis.nn.normalize import Normalize, PerImageStandardize
from gratis.nn.resnet import PreActResNet18, WideResNet32x10
from gratis.nn.resnet9 import ResNet9
from gratis.nn.small import mnist_net, small_conv
from gratis.nn.syncedbn import sync_norms

__all__ = [
    "MODELS",
    "Detector",
    "Normalize",
    "PerImageStandardize",
    "PreActResNet18",
    "ResNet9",
    "WideResNet32x10",
    "add_aux",
    "build_model",
    "drop_aux",
    "group_norms",
    "mnist_net",
    "parameters_by_decay",
    "retinanet",
    "set_momentum",
    "small_conv",
    "sync_norms",
    "untracked_statistics",
]


def _torchvision(architecture: str, classes: int, channels: int) -> nn.Module:
    from torchvision.models import get_model  # slow to import, and most models do not need it

    if channels != 3:
        raise ValueError(
            f"{architecture} takes images of 3 channels, these have {channels}: "
            f"use preact-resnet18 or timm:{architecture}, which take any number"
        )
    model: nn.Module = get_model(architecture, weights=None, num_classes=classes)
    return model


# A builder takes `classes` and, where it cares, `channels` and `image_size`; its other
# parameters are the options that a recipe may set.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mnist-net": mnist_net,
    "small-conv": small_conv,
    "preact-resnet18": PreActResNet18,
    "resnet9": ResNet9,
    "wrn-32-10": WideResNet32x10,
    "resnet18": partial(_torchvision, "resnet18"),
    "resnet50": partial(_torchvision, "resnet50"),
    "retinanet-r18": partial(retinanet, "resnet18"),
    "retinanet-r50": partial(retinanet, "resnet50"),
}


def build_model(
    name: str,
    *,
    classes: int,
    channels: int,
    image_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> nn.Module:
    """A new network: [B, channels, image_size, image_size] in [0, 1] -> logits [B, classes], or
    a detector's answers.

    name: a key of `MODELS`; `timm:NAME`, a model of timm without weights (a ViT wants the option
    `img_size`); or `module:function`, yours, called with classes, channels, image_size and the
    options as keywords.
    mean, std: given both, a `Normalize` layer comes first: the result then has two children,
    `normalize` and `net`. `wrn-32-10` standardises images itself and needs neither.
    options: what the builder takes besides, such as `width`.

    Raises ValueError for a name that is not known, an option that the builder does not take, or
    a `module:function` that cannot be imported or returns no `nn.Module`.
    """
    if (mean is None) != (std is None):
        raise ValueError("only one of mean and std was given: give both or neither")
    shape = {"classes": classes, "channels": channels, "image_size": image_size}
    if name.startswith("timm:"):
        net = _timm(name, shape, options)
    elif ":" in name:
        net = _users(name, shape, options)
    else:
        net = _ours(name, shape, options)
    if mean is None or std is None:
        return net
    if len(mean) not in (1, channels):
        raise ValueError(
            f"mean and std have {len(mean)} numbers and the images {channels} channels: "
            "give a number for each channel, or a single one"
        )
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), net=net))


def _ours(name: str, shape: Mapping[str, int], options: Mapping[str, Any]) -> nn.Module:
    if name not in MODELS:
        nearest = difflib.get_close_matches(name, MODELS, n=1)
        raise ValueError(
            f"there is no model {name!r}"
            + (f"; did you mean {nearest[0]!r}?" if nearest else ".")
            + f" Known: {', '.join(MODELS)}, timm:NAME, module:function"
        )
    builder = MODELS[name]
    taken = inspect.signature(builder).parameters
    if unknown := [option for option in options if option not in taken]:
        known = [option for option in taken if option not in shape]
        raise ValueError(
            f"model {name} has no option {', '.join(unknown)}; it takes "
            + (", ".join(known) if known else "no options")
        )
    return builder(**{key: value for key, value in shape.items() if key in taken}, **options)


def _timm(name: str, shape: Mapping[str, int], options: Mapping[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"model {name} needs timm: pip install gratis[timm]") from error
    architecture = name.removeprefix("timm:")
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise ValueError(
            f"timm has no model {architecture!r}"
            + (f"; nearest: {', '.join(nearest)}" if nearest else "; see timm.list_models()")
        )
    try:
        model: nn.Module = timm.create_model(
            architecture,
            pretrained=False,
            num_classes=shape["classes"],
            in_chans=shape["channels"],
            **options,
        )
    except TypeError as error:
        raise ValueError(f"model {name} refuses the options {dict(options)}: {error}") from error
    return model


def _users(name: str, shape: Mapping[str, int], options: Mapping[str, Any]) -> nn.Module:
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model {name} could not be imported: {error}. Write module:function, "
            "with the module installed or its folder on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ValueError(f"model {name} is a {type(function).__name__}; it must be a function")
    try:
        inspect.signature(function).bind(**shape, **options)
    except TypeError as error:
        raise ValueError(
            f"model {name} takes {inspect.signature(function)} and was to be called with "
            f"{', '.join([*shape, *options])}: {error}"
        ) from error
    model = function(**shape, **options)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name} returned a {type(model).__name__}, not an nn.Module")
    return model
