"""Plain YAML values to typed objects and back."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gratis.schema import construct, convert, plain


@dataclass
class Inner:
    eps: float
    norm: Literal["linf", "l2"] = "linf"


@dataclass
class Outer:
    inner: Inner
    count: int = 1
    flag: bool = False
    text: str = ""
    rates: tuple[float, ...] = ()
    limit: int | None = None
    mode: Literal["recover", "off"] = "recover"
    options: dict[str, Any] = field(default_factory=dict)
    either: Inner | float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} must be at least 1")


def outer(**values: Any) -> Outer:
    return construct(Outer, {"inner": {"eps": 0.1}, **values}, "")


def test_values_become_what_the_annotations_ask_for() -> None:
    built = construct(
        Outer,
        {
            "inner": {"eps": "8/255", "norm": "l2"},
            "count": 3.0,
            "flag": True,
            "text": 7,
            "rates": [1, "1e-3", "1/4"],
            "limit": None,
            "options": {"width": 4, "nested": {"a": [1]}},
        },
        "",
    )
    assert built.inner == Inner(8 / 255, "l2")
    assert (built.count, built.flag, built.text) == (3, True, "7")
    assert isinstance(built.count, int)
    assert built.rates == (1.0, 0.001, 0.25)
    assert built.options == {"width": 4, "nested": {"a": [1]}}


def test_one_value_stands_for_a_tuple_of_one() -> None:
    assert outer(rates="8/255").rates == (8 / 255,)


def test_a_bare_off_is_off() -> None:
    assert outer(mode=False).mode == "off"
    with pytest.raises(ValueError, match=r"inner\.norm: False.* is none of linf, l2"):
        construct(Inner, {"eps": 1, "norm": False}, "inner")


def test_a_union_takes_what_fits_first() -> None:
    assert outer(either={"eps": 1}).either == Inner(1.0)
    assert outer(either="1/2").either == 0.5
    with pytest.raises(ValueError, match=r"either: 'x' should be a mapping.*; or either: 'x' is"):
        outer(either="x")


def test_makers_build_what_calling_does_not() -> None:
    def make(value: Any, where: str) -> Inner:
        return Inner(float(value) / 10)

    assert construct(Outer, {"inner": 3}, "", {Inner: make}).inner == Inner(0.3)


def test_functions_are_built_by_as_well() -> None:
    def named(ball: Inner, steps: int = 2) -> tuple[Inner, int]:
        return ball, steps

    assert construct(named, {"ball": {"eps": 1}}, "method") == (Inner(1.0), 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, r"unknown key cuont \(did you mean count\?\); there are inner, count"),
        ({"inner": {"epsilon": 1}}, r"unknown key inner\.epsilon .*did you mean eps"),
        ({"inner": {}}, r"missing key inner\.eps"),
        ({"inner": 3}, r"inner: 3 should be a mapping"),
        ({"inner": {"eps": "a lot"}}, r"inner\.eps: 'a lot' is no number"),
        ({"inner": {"eps": True}}, r"inner\.eps: 'True' is no number"),
        ({"inner": {"eps": None}}, r"inner\.eps: 'None' is no number"),
        ({"inner": {"eps": float("inf")}}, r"inner\.eps: inf is no finite number"),
        ({"inner": {"eps": 1, "norm": "linff"}}, r"inner\.norm: 'linff' \(did you mean linf\?\)"),
        ({"count": 1.5}, r"count: 1\.5 is no whole number"),
        ({"count": True}, r"count: True is no whole number"),
        ({"count": "3"}, r"count: '3' is no whole number"),
        ({"count": None}, r"count: None is no whole number"),
        ({"count": 0}, r"count=0 must be at least 1"),
        ({"flag": "yes"}, r"flag: 'yes' should be true or false"),
        ({"flag": 1}, r"flag: 1 should be true or false"),
        ({"text": ["a"]}, r"text: \['a'\] should be text"),
        ({"text": None}, r"text: None should be text"),
        ({"rates": [0.1, "b"]}, r"rates\[1\]: 'b' is no number"),
        ({"limit": "many"}, r"limit: 'many' is no whole number"),
        ({"options": [1]}, r"options: \[1\] should be a mapping"),
        ({"mode": True}, r"mode: True"),
        ({3: 4}, r"unknown key 3"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        construct(Outer, {"inner": {"eps": 0.1}, **values}, "")


def test_missing_and_unusable_wholes_are_named() -> None:
    with pytest.raises(ValueError, match="missing key inner"):
        construct(Outer, {}, "")
    with pytest.raises(ValueError, match=r"recipe: \[1\] should be a mapping"):
        construct(Outer, [1], "")


def test_an_objects_own_complaint_is_told_where_it_stands() -> None:
    with pytest.raises(ValueError, match=r"^data: count=0 must"):
        construct(Outer, {"inner": {"eps": 1}, "count": 0}, "data")


def test_convert_passes_anything_where_anything_goes() -> None:
    marker = object()
    assert convert(Any, marker, "x") is marker


# --- back to YAML's types


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    max_leaves=10,
)


@given(values)
def test_plain_values_are_yamls_own_and_stay(value: Any) -> None:
    once = plain(value)
    assert plain(once) == once


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_plain_floats_read_back_equal(value: float) -> None:
    assert convert(float, plain(value), "x") == value


def test_plain_spells_shares_of_255_and_lists() -> None:
    assert plain({"eps": 8 / 255, "peak": 0.4, "rates": (1.0, 2 / 255)}) == {
        "eps": "8/255",
        "peak": 0.4,
        "rates": [1.0, "2/255"],
    }
    with pytest.raises(TypeError, match="no plain form"):
        plain({"eps": object()})
