"""A user's own data: `module:function` returns a data set or a pair of arrays."""

import inspect
import operator
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gratis.data.decoding import is_grey, to_array
from gratis.data.images import Images

_NEEDED = (
    "it must return a pair (x, y) of arrays or tensors, or a data set with a length "
    "whose items are pairs (image, label)"
)


def load_users(name: str, split: str, root: Path | None, image_size: int | None) -> Images:
    """What the function `name` (module:function) returns for (split=, root=).

    `Images` are taken as they are. A tuple (x, y): x uint8 or float in [0, 1], [N, H, W],
    [N, C, H, W] or [N, H, W, C], which is recognised by a last dimension of 1 or 3 where
    dimension 1 is neither; y [N] of integers.
    Or a map-style data set of (PIL image or tensor, label); PIL images are resized to
    `image_size` where it is given. Class names are the data set's attribute `classes`, or
    "0", "1", ... up to the highest label.

    Raises ValueError for anything else.
    """
    function = _function(name)
    result = function(split=split, root=root)
    if isinstance(result, Images):
        return result
    if isinstance(result, tuple) and len(result) == 2:
        x, y = _tensor(name, "x", result[0]), _tensor(name, "y", result[1])
    elif hasattr(result, "__len__") and hasattr(result, "__getitem__"):
        x, y = _collected(name, result, image_size)
    else:
        raise ValueError(f"{name} returned a {type(result).__name__}; {_NEEDED}")
    if not len(x):
        raise ValueError(f"{name} returned no {split} images; {_NEEDED}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"{name}: y is {y.dtype}; integers that count classes from 0 are needed")
    classes = getattr(result, "classes", range(int(y.max()) + 1))
    return Images(
        x=_channels_first(x).to(torch.float32 if x.is_floating_point() else x.dtype),
        y=y.long(),
        classes=tuple(str(c) for c in classes),
        name=name,
        split=split,
    )


def _function(name: str) -> Any:
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"data {name} could not be imported: {error}. Write module:function, "
            "with the module installed or its folder on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ValueError(f"data {name} is a {type(function).__name__}; it must be a function")
    try:
        inspect.signature(function).bind(split="train", root=None)
    except TypeError as error:
        raise ValueError(
            f"data {name} takes {inspect.signature(function)}; "
            f"it is called with split= and root=: {error}"
        ) from error
    return function


def _tensor(name: str, what: str, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: {what} is no array of numbers of one shape: {error}; {_NEEDED}"
        ) from error


def _collected(name: str, dataset: Any, image_size: int | None) -> tuple[Tensor, Tensor]:
    """All items of a map-style data set: (images stacked, labels [N])."""
    images: list[Tensor] = []
    labels: list[int] = []
    for i in range(len(dataset)):
        try:
            image, label = dataset[i]
            labels.append(operator.index(label))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}: item {i} is no pair of an image and a whole number: {error}"
            ) from error
        if isinstance(image, Image.Image):
            images.append(torch.tensor(to_array(image, is_grey(image), image_size)))
        else:
            images.append(_tensor(name, f"image {i}", image))
        if images[i].shape != images[0].shape:
            raise ValueError(
                f"{name}: image 0 has shape {list(images[0].shape)} and image {i} "
                f"{list(images[i].shape)}; all must have the same"
                + (": give data.image_size" if isinstance(image, Image.Image) else "")
            )
    return torch.stack(images) if images else torch.empty(0), torch.tensor(labels)


def _channels_first(x: Tensor) -> Tensor:
    if x.ndim == 3:
        return x.unsqueeze(1)
    if x.ndim == 4 and _may_be_channels(x.shape[3:]) and not _may_be_channels(x.shape[1:2]):
        return x.permute(0, 3, 1, 2).contiguous()
    return x


def _may_be_channels(size: Sequence[int]) -> bool:
    return size[0] in (1, 3)
