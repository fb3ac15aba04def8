"""Plain YAML values to typed Python objects, with errors that name the key. Never imports torch.

A recipe is read by calling a dataclass or a named constructor with values converted to what
its annotations ask for: numbers may be written 8/255, an unknown key names the nearest.
"""

import inspect
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gratis.names import nearest, number, spell

T = TypeVar("T")
Makers = Mapping[type, Callable[[Any, str], Any]]


def construct(build: Callable[..., T], values: Any, where: str, makers: Makers | None = None) -> T:
    """build(**values), each value converted to its parameter's annotation.

    where: the dotted key of `values`, for errors.  makers: how to make types that are not
    built by calling them.  Raises ValueError that names the key, what it holds and what fits.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'recipe'}: {values!r} should be a mapping of keys")
    parameters = inspect.signature(build).parameters
    hints = get_type_hints(vars(build)["__init__"] if isinstance(build, type) else build)
    for key in values:
        if key not in parameters:
            raise ValueError(
                f"unknown key {_join(where, key)}{nearest(str(key), parameters)}; "
                f"there are {', '.join(parameters) or 'none'}"
            )
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in values
    ]
    if missing:
        raise ValueError(f"missing key {_join(where, missing[0])}")
    converted = {
        key: convert(hints[key], value, _join(where, key), makers) for key, value in values.items()
    }
    try:
        return build(**converted)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def convert(hint: Any, value: Any, where: str, makers: Makers | None = None) -> Any:
    """`value` as the annotation `hint` asks for; ValueError names `where` it stands."""
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, where, makers)
    if origin is Literal:
        if value is False and "off" in get_args(hint):
            return "off"  # YAML reads a bare off as false ...
        if value is True and "on" in get_args(hint):
            return "on"  # ... and on as true
        if value in get_args(hint):
            return value
        raise ValueError(
            f"{where}: {value!r}{nearest(str(value), map(str, get_args(hint)))} is none of "
            f"{', '.join(map(str, get_args(hint)))}"
        )
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        (item, _) = get_args(hint)
        return tuple(
            convert(item, entry, f"{where}[{place}]", makers) for place, entry in enumerate(items)
        )
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: {value!r} should be a mapping of keys")
        return dict(value)
    if makers and hint in makers:
        return makers[hint](value, where)
    if hint in _SCALARS:
        return _SCALARS[hint](value, where)
    return construct(hint, value, where, makers)


def _convert_union(hint: Any, value: Any, where: str, makers: Makers | None) -> Any:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if value is None and len(kinds) < len(get_args(hint)):
        return None
    if len(kinds) == 1:
        return convert(kinds[0], value, where, makers)
    failures = []
    for kind in kinds:
        try:
            return convert(kind, value, where, makers)
        except ValueError as error:
            failures.append(str(error))
    raise ValueError("; or ".join(failures))


def _float(value: Any, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} is no finite number")
        return float(value)
    try:
        return number(str(value))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _int(value: Any, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError(f"{where}: {value!r} is no whole number")


def _bool(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"{where}: {value!r} should be true or false")


def _str(value: Any, where: str) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{where}: {value!r} should be text")


_SCALARS: dict[Any, Callable[[Any, str], Any]] = {
    float: _float,
    int: _int,
    bool: _bool,
    str: _str,
}


def plain(value: Any) -> Any:
    """`value` in YAML's own types, numbers in their short spelling where that reads back equal."""
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        spelled = spell(value)
        return spelled if "/" in spelled else value
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    raise TypeError(f"{value!r} has no plain form")


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
