"""Numbers are rounded, never changed."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.report.figures import compact, duration, percent, significant, size

DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
LETTERS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def read(text: str) -> float:
    """The number that `significant` wrote."""
    if "10" in text and (match := re.fullmatch(r"(?:(-?[\d.]+)×)?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text)):
        return float(match[1] or 1) * 10.0 ** int(match[2].translate(DIGITS))
    return float(text.replace(",", ""))


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_significant_digits_read_back_as_the_number_to_half_a_percent(value):
    assert read(significant(value)) == pytest.approx(value, rel=0.0051)
    assert read(significant(-value)) == pytest.approx(-value, rel=0.0051)


@given(st.floats(min_value=1e-3, max_value=9e14))
def test_compact_numbers_read_back_too(value):
    text = compact(value)
    letter = text[-1] if text[-1].isalpha() else ""
    assert read(text.removesuffix(letter)) * LETTERS[letter] == pytest.approx(value, rel=0.0051)
    assert len(text) <= 7 or value < 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.003, "0.003"),
        (1234.5, "1,234"),
        (1e-5, "10⁻⁵"),
        (2.5e-7, "2.5×10⁻⁷"),
        (3.0, "3"),
        (40, "40"),
    ],
)
def test_trailing_zeros_go_and_small_numbers_have_a_power(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999"), (999_999, "1M"), (12_400_000, "12.4M"), (1.5e9, "1.5B"), (0.25, "0.25")]
)
def test_rounding_carries_into_the_next_letter(value, text):
    assert compact(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (59.99, "1 min 00 s"), (61, "1 min 01 s"), (3599.7, "1 h 00 min"), (7260, "2 h 01 min")],
)
def test_durations_have_two_units_at_most(seconds, text):
    assert duration(seconds) == text


def test_bytes_and_shares():
    assert [size(n) for n in (12, 3400, 999_900, 2_300_000, 7e9)] == [
        "12 B",
        "3.4 kB",
        "1 MB",
        "2.3 MB",
        "7 GB",
    ]
    assert percent(0.42307) == "42.3%"
