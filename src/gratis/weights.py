"""Weights in files, as training scripts leave them, and a digest that names them."""

import hashlib
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NESTED = ("state_dict", "model_state_dict", "model", "net", "ema", "params")
"""Keys under which training scripts put the weights, in the order in which they are tried."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers put before each name: DataParallel and DDP, torch.compile, RobustBench."""


def load_weights(net: nn.Module, path: Path) -> None:
    """Fill `net` from a state dict in `path`; ValueError names what is missing or too much."""
    wanted = net.state_dict().keys()
    found = read_weights(path, wanted)
    missing, extra = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
    if missing or extra:
        raise ValueError(
            f"{path} does not fit the model: it lacks {some(missing)} and has {some(extra)} too "
            "many; write a module:function that builds the network the file was saved from"
        )
    try:
        net.load_state_dict(found)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model: {error}") from error


def read_weights(path: Path, wanted: Collection[str]) -> dict[str, Tensor]:
    """The state dict in `path`, its names without what wrappers put before the `wanted` ones."""
    found = _state_dict(_read(path), path)
    for prefix in PREFIXES:
        if found and all(key.startswith(prefix) for key in found) and found.keys() != wanted:
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def weights_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network in a run's checkpoint: averaged weights where there are any."""
    if state["averaged"] is None:
        return dict(state["model"])
    prefix = "module."
    return {
        key.removeprefix(prefix): value
        for key, value in state["averaged"].items()
        if key.startswith(prefix)
    }


def sha256(weights: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values in their order: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def some(names: list[str]) -> str:
    """The first names of a list, for an error."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "nothing"


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"no file {path} with weights")
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ValueError(f"{path} needs safetensors: pip install safetensors") from error
        read = load_file
    else:
        read = partial(torch.load, map_location="cpu", weights_only=True)
    try:
        return read(path)
    except Exception as error:  # whatever they make of a file that is none of their own
        raise ValueError(
            f"{path} could not be read as tensors alone (a pickle may run any code, so nothing "
            f"else is loaded): {error}"
        ) from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The names and tensors, wherever in the file they are."""
    for _ in range(3):  # {"model": {"state_dict": ...}} is as deep as such files go
        if isinstance(content, dict) and content:
            if all(isinstance(value, Tensor) for value in content.values()):
                return content
            inner = [content[key] for key in NESTED if isinstance(content.get(key), dict)]
            content = inner[0] if inner else content
    keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
    raise ValueError(f"{path} holds no state dict (found: {keys or 'nothing'})")
