"""Quantities as people read them: SI prefixes, of which 1 M is 1e6 and never 2^20."""

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def prefix_of(largest: float) -> tuple[float, str]:
    """Return the prefix in which the largest of some values is at least one, and what it stands for.

    >>> prefix_of(2_500_000)
    (1000000.0, 'M')
    """
    smallest = PREFIXES[-1] if largest else (1.0, "")
    return next(((factor, prefix) for factor, prefix in PREFIXES if abs(largest) >= factor), smallest)


def quantity(value: float | None, unit: str) -> str:
    """Return a value with its unit, to four digits.

    >>> quantity(1_984_000, "bit"), quantity(0.0125, "J"), quantity(None, "J")
    ('1.984 Mbit', '12.5 mJ', '')
    """
    if value is None:
        return ""
    factor, prefix = prefix_of(value)
    return f"{value / factor:.4g} {prefix}{unit}"


def seconds(value: float | None) -> str:
    """Return a time: seconds are not kiloseconds.

    >>> seconds(12_345.6), seconds(12.34567), seconds(0.00123)
    ('12,346 s', '12.35 s', '1.23 ms')
    """
    if value is None:
        return ""
    return f"{value:,.0f} s" if value >= 1000 else quantity(value, "s")
