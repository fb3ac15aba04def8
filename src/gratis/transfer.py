"""Training that begins with weights from elsewhere: another run's, or a file's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gratis.nn.auxbn import drop_aux, plain_name
from gratis.nn.freezing import behind_normalize, head_of
from gratis.recipe import Recipe, from_plain
from gratis.run import Run
from gratis.weights import read_weights, sha256, some, weights_of

MEAN, STD = "normalize.mean", "normalize.std"


def begin(recipe: Recipe, model: nn.Module, classes: int) -> dict[str, Any] | None:
    """Put what `model.start` names into the recipe's fresh `model`; returns what to log of it.

    A run directory gives the checkpoint that its own evaluation names, averaged weights where
    there are any; else it is a file, plain or nested as training scripts leave them. The head
    stays random where it has another number of classes there, or the recipe wants a new one;
    auxiliary norms begin as twins of the main ones. None for a recipe without a start.

    Raises ValueError, naming tensors, where the weights are of another network, and for a
    normalisation other than the recipe's: the weights expect the one they were trained behind.
    Source: Salman 2020, section 3 (fixed features and full networks); Shafahi 2020.
    """
    start = recipe.model.start
    if start is None:
        return None
    net = behind_normalize(model)
    checkpoint, found = _found(Path(start), net)
    record = {"path": start, "checkpoint": checkpoint, "weights_sha256": sha256(found)}
    found = _normalised_alike(found, model, start)
    head = _head_to_replace(found, net, classes, recipe.model.new_head)
    _fill(net, found, head, start)
    return {**record, "new_head": head}


def _found(start: Path, net: nn.Module) -> tuple[str | None, dict[str, Tensor]]:
    """(the checkpoint of a run, None for a file; names and tensors)."""
    if not start.is_dir():
        if not start.exists():
            raise ValueError(f"model.start: there is no run directory or file {start}")
        return None, read_weights(start, net.state_dict().keys())
    run = Run.open(start)
    checkpoint = from_plain(run.recipe).evaluation.checkpoint
    return checkpoint, weights_of(run.whole_checkpoint(checkpoint))


def _normalised_alike(
    found: Mapping[str, Tensor], model: nn.Module, start: str
) -> dict[str, Tensor]:
    """The weights behind the normalisation, which must be the same here and there."""
    if MEAN not in found or STD not in found:
        return dict(found)
    mean, std = found[MEAN].flatten(), found[STD].flatten()
    own = model.state_dict()
    same = behind_normalize(model) is not model and all(
        own[key].numel() == found[key].numel() and torch.allclose(own[key], found[key], atol=1e-6)
        for key in (MEAN, STD)
    )
    if not same:
        raise ValueError(
            f"model.start: the weights of {start} were trained behind a normalisation that the "
            f"recipe does not have: give model.mean={_numbers(mean)} and "
            f"model.std={_numbers(std)}"
        )
    return {key.removeprefix("net."): v for key, v in found.items() if key not in (MEAN, STD)}


def _numbers(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def _head_to_replace(
    found: Mapping[str, Tensor], net: nn.Module, classes: int, wanted: bool
) -> str | None:
    """The name of the head, where it is to stay as it was drawn."""
    head = head_of(net, classes)
    weight = found.get(f"{head}.weight")
    own = net.state_dict().get(f"{head}.weight")
    other = weight is not None and own is not None and len(weight) != len(own)
    return head if wanted or other else None


def _fill(net: nn.Module, found: Mapping[str, Tensor], head: str | None, start: str) -> None:
    """Each tensor of `net` from its namesake, all but the head's if that stays."""

    def kept(name: str) -> bool:
        return head is not None and name.startswith(f"{head}.")

    own = net.state_dict()
    plain = drop_aux(found)
    # an auxiliary norm that the weights lack begins as its main one's twin
    taken = {
        name: found[name] if name in found else plain.get(plain_name(name)[0])
        for name in own
        if not kept(name)
    }
    lacking = [name for name, value in taken.items() if value is None]
    names = {plain_name(name)[0] for name in own}
    extra = [name for name in plain if name not in names and not kept(name)]
    fitting = {name: value for name, value in taken.items() if value is not None}
    shapes = [
        f"{name} is {list(value.shape)} there and {list(own[name].shape)} here"
        for name, value in fitting.items()
        if value.shape != own[name].shape
    ]
    if lacking or extra or shapes:
        raise ValueError(
            f"model.start: the weights of {start} do not fit {type(net).__name__}: it lacks "
            f"{some(lacking)}, has {some(extra)} too many, and of other shapes {some(shapes)}; "
            "give model.name and model.options of the network that they were trained in"
        )
    net.load_state_dict(own | fitting)
