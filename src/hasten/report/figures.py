"""Numbers as a reader likes them."""

import math

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LETTERS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def significant(value: float, digits: int = 3) -> str:
    """`significant(0.00031)` -> `0.00031`, `significant(2e-7)` -> `2×10⁻⁷`; trailing zeros go."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 10**6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        short = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        power = f"10{str(int(exponent)).translate(SUPERSCRIPT)}"
        return power if short == "1" else f"{short}×{power}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def compact(value: float, digits: int = 3) -> str:
    """`compact(12_400_000)` -> `12.4M`."""
    for size, letter in LETTERS:
        # 999,999 rounds to a million, so the next letter begins where rounding reaches it.
        if abs(value) >= size * (1 - 0.5 * 10**-digits):
            return f"{significant(value / size, digits)}{letter}"
    return significant(value, digits)


def size(value: float) -> str:
    """Bytes: `size(2_300_000)` -> `2.3 MB`."""
    for unit, letters in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit * 0.9995:
            return f"{significant(value / unit)} {letters}"
    return f"{value:,.0f} B"


def duration(seconds: float) -> str:
    """`duration(4000)` -> `1 h 07 min`."""
    if seconds < 59.95:
        return f"{significant(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02} min" if hours else f"{minutes} min {rest:02} s"


def percent(share: float) -> str:
    """`percent(0.4231)` -> `42.3%`."""
    return f"{100 * share:.1f}%"
