"""Numbers as people read them: as many digits as mean something. `--json` has numbers as they are.

    number(5.967753887176514)   5.968            size(5_301_234)     5.3 MB
    number(1234567.8901)        1,234,568        duration(4210)      1 h 10 min
    number(0.00012345)          0.0001234        counted(3, 8, "steps")  3/8 steps

Bytes are in powers of 1000.
"""

from __future__ import annotations

import math

DIGITS = 4
"""That people read of a measured number."""
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
_MANY = ((1e12, "T"), (1e9, "G"), (1e6, "M"))
_TIMES = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def number(value: float, digits: int = DIGITS) -> str:
    """A number to so many significant digits, with a comma for thousands; whole ones as they are."""
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    if value and abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    places = digits if not value else max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def measured(value: float, error: float) -> str:
    """With its standard error: as many places of both as say two digits of that."""
    if not (error > 0 and math.isfinite(error) and math.isfinite(value)):
        return number(value)
    places = max(1 - math.floor(math.log10(error)), 0)
    return f"{value:,.{places}f} ± {error:,.{places}f}"


def size(n: float) -> str:
    """Bytes in a unit in which they have at most three digits before the point, and two figures."""
    power = min(max(int(math.log10(n)) // 3, 0), len(_SIZES) - 1) if n >= 1 else 0
    if round(n / 1000**power) >= 1000 and power < len(_SIZES) - 1:
        power += 1
    return f"{n / 1000**power:.{int(power > 0 and n < 99.95 * 1000**power)}f} {_SIZES[power]}"


def many(n: float) -> str:
    """A large number in short: 135 M."""
    for power, letter in _MANY:
        if n >= 10 * power:
            return f"{n / power:,.0f} {letter}"
    return f"{n:,.0f}"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 2 min 10 s, 1 h 20 min: two units at most."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    left, parts = round(seconds), []
    if left >= 3600:
        left = 60 * round(left / 60)
    if left >= 86_400:
        left = 3600 * round(left / 3600)
    for length, unit in _TIMES:
        if left >= length or parts:
            parts.append((left // length, unit))
            left %= length
        if len(parts) == 2:
            break
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def counted(done: float, total: float | None, unit: str) -> str:
    """3/8 steps; 12.1 MB/1.2 GB; nothing for what has no unit."""
    if not unit:
        return ""
    if unit == "bytes":
        return size(done) if total is None else f"{size(done)}/{size(total)}"
    if total is None:
        return f"{many(done)} {unit}"
    for power, letter in _MANY:
        if total >= power:
            places = int(total < 10 * power)
            return f"{done / power:,.{places}f}/{total / power:,.{places}f} {letter} {unit}"
    return f"{done:,.0f}/{total:,.0f} {unit}"
