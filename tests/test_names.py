"""What people type: numbers, methods, attacks."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gratis.names import (
    METHOD_NUMBERS,
    nearest,
    number,
    parse_attack,
    parse_method,
    spell,
    spell_method,
)

# --- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.03", 0.03),
        ("1e-3", 0.001),
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.5/255", 0.5 / 255),
        ("1/3", 1 / 3),
        ("-1/4", -0.25),
        ("7", 7.0),
    ],
)
def test_number_reads(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "eight", "8/", "/255", "8/0", "8/255/2", "0.1.2", "1,5", "nan", "inf", "-inf", "1e999/1"],
)
def test_what_is_no_number_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no number; write 0\.03, 1e-3 or 8/255"):
        number(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(math.nextafter(8 / 255, 1))
@example(0.75 * 0.8)
@example(123456.7901)
@example(5e-324)
def test_spelled_numbers_read_back_equal(value: float) -> None:
    assert number(spell(value)) == value


@given(st.integers(-1000, 1000))
def test_whole_shares_of_255_read_back_equal(levels: int) -> None:
    assert number(spell(levels / 255)) == levels / 255


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (1.25 * 8 / 255, "10/255"),
        (2 / 255, "2/255"),
        (0.3, "0.3"),
        (0.2, "0.2"),
        (1.0, "1"),
        (0.0, "0"),
        (1 / 3, "85/255"),
        (0.001, "0.001"),
        (5e-4, "0.0005"),
    ],
)
def test_spell_is_short(value: float, text: str) -> None:
    assert spell(value) == text


# --- the nearest name


def test_nearest_names_a_near_name_and_no_far_one() -> None:
    assert nearest("fre", ["free", "pgd"]) == " (did you mean free?)"
    assert nearest("zzzz", ["free", "pgd"]) == ""
    assert nearest("free", []) == ""


# --- methods


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("free-8", {"name": "free", "replays": 8}),
        ("free", {"name": "free"}),
        ("pgd-7", {"name": "pgd", "steps": 7}),
        ("natural", {"name": "natural"}),
        ("natural-4", {"name": "natural", "replays": 4}),
        ("fgsm", {"name": "fgsm"}),
        ("fgsm-rs", {"name": "fgsm-rs"}),
    ],
)
def test_method_names_read_and_spell_back(name: str, section: dict[str, object]) -> None:
    assert parse_method(name) == section
    assert spell_method(section) == name


@given(
    name=st.sampled_from(sorted(n for n, p in METHOD_NUMBERS.items() if p)),
    counts=st.tuples(st.integers(2, 500), st.integers(2, 500)),
)
def test_every_numbered_method_reads_back(name: str, counts: tuple[int, int]) -> None:
    numbers = dict(zip(METHOD_NUMBERS[name], counts, strict=False))
    typed = "-".join([name, *map(str, numbers.values())])
    section = parse_method(typed)
    assert section == {"name": name, **numbers}
    assert spell_method(section) == typed


def test_spell_method_leaves_out_natures_one_replay_and_other_keys() -> None:
    assert spell_method({"name": "natural", "replays": 1}) == "natural"
    section = {"name": "pgd", "steps": 7, "ball": {"eps": 0.1}, "start": "random"}
    assert spell_method(section) == "pgd-7"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fre-8", r"did you mean free"),
        ("fgsm-2", r"no training method 'fgsm-2'"),
        ("fgsmrs", r"did you mean fgsm-rs"),
        ("pgd", r"number of steps: pgd-7"),
        ("pgd-", r"no training method"),
        ("pgd-7-2", r"no training method"),
        ("free-x", r"free-N"),
        ("yopo-5", r"yopo-N-M"),
        ("", r"there are natural-N, pgd-N, fgsm, fgsm-rs, .*free-N, yopo-N-M, trades-N"),
    ],
)
def test_a_mistyped_method_is_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(name)


# --- attacks


def test_attack_names_are_taken_apart() -> None:
    plain = parse_attack("pgd-10")
    assert (plain.kind, plain.steps, plain.restarts, plain.alpha) == ("pgd", 10, 1, None)
    full = parse_attack("pgd-50-10:alpha=1/255")
    assert (full.steps, full.restarts, full.alpha) == (50, 10, 1 / 255)
    assert full.text == "pgd-50-10:alpha=1/255"
    assert parse_attack("pgd-5:alpha=0.1,compatible").flags == {"compatible"}


@given(steps=st.integers(1, 10**6), restarts=st.integers(1, 10**4), alpha=st.floats(1e-6, 10))
def test_every_attack_name_reads_back(steps: int, restarts: int, alpha: float) -> None:
    parsed = parse_attack(f"pgd-{steps}-{restarts}:alpha={spell(alpha)}")
    assert (parsed.steps, parsed.restarts, parsed.alpha) == (steps, restarts, alpha)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd", r"as in pgd-50-10"),
        ("pgd-0", r"at least 1"),
        ("pgd-10-0", r"at least 1"),
        ("pgd-1-2-3", r"no attack"),
        ("fgsm-3", r"there are fgsm, bim-STEPS, pgd-STEPS"),
        ("bim", r"bim-STEPS"),
        ("bim-3-2", r"no attack"),
        ("cw-0", r"at least 1"),
        ("cww-3", r"did you mean cw"),
        ("pgd-10:alfa=0.1", r"'alfa=0.1' \(did you mean alpha\?\)"),
        ("pgd-10:alpha", r"no option 'alpha'"),
        ("pgd-10:alpha=", r"no number"),
        ("pgd-10:alpha=x", r"no number"),
        ("pgd-10:alpha=0", r"alpha must be positive"),
        ("pgd-10:alpha=-1/255", r"alpha must be positive"),
        ("pgd-10:alpha=nan", r"no number"),
        ("cw-10:compatible", r"it takes alpha=NUMBER, climb-on"),
        ("pgd-10:compatible=1", r"it takes alpha=NUMBER, climb-on, compatible"),
        ("pgd-10:climb-on,compatible", r"climb-on and compatible exclude each other"),
        ("fgsm:climb-on", r"it takes alpha=NUMBER$"),
        ("fgsm:bf16", r"it takes alpha=NUMBER$"),
        ("pgd-10:bf16,climb-on", r"bf16 and climb-on exclude each other"),
    ],
)
def test_a_mistyped_attack_is_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_attack(name)
