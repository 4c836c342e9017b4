"""Tables of results for the terminal and the page. Numbers are rounded here and nowhere else.

A percentage has two decimals, and the bounds of its interval have one; spikes per neuron have three decimals; any other
number has four digits. A dash stands for a number that does not exist.
"""

from collections.abc import Iterable, Sequence
from html import escape
from statistics import mean, stdev
from typing import NamedTuple

DASH = "–"


class Table(NamedTuple):
    """Rows of text under a head, which may be empty. The first cell of each row names it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_words: bool = False  # cells are words, aligned on the left; numbers are aligned on the right

    def text(self) -> str:
        """Format the table for a terminal: columns aligned, the title above them."""
        lines = [self.head, *self.rows] if self.head else self.rows
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = (
            "  ".join(
                cell.ljust(width) if k == 0 or self.is_words else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return "\n".join([*filter(None, [self.title]), *aligned])

    def html(self) -> str:
        """Format the table as an element of the page."""
        title = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.head)
        head = f"<thead><tr>{head}</tr></thead>" if self.head else ""
        rows = ("".join(f'<td dir="auto">{escape(cell)}</td>' for cell in row) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>\n" for row in rows)
        return f'<table class="{"words" if self.is_words else "numbers"}">{title}{head}<tbody>\n{body}</tbody></table>'


def text(tables: Iterable[Table]) -> str:
    """Format several tables for a terminal, without those that have no rows."""
    return "\n\n".join(table.text() for table in tables if table.rows)


def number(value: float | None, unit: str = "") -> str:
    """Format a number with four digits and separated thousands."""
    if value is None:
        return DASH
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{digits} {unit}" if unit else digits


def percent(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f} %"


def interval(low_high: Sequence[float]) -> str:
    """Format the bounds of an interval, in percent."""
    return f"{low_high[0]:.1f} to {low_high[1]:.1f} %"


def spikes(value: float) -> str:
    """Format spikes per neuron."""
    return f"{value:.3f}"


def layer_name(k: int, layers: int) -> str:
    """Return the name of layer k of `layers`, the output last."""
    return "output" if k == layers - 1 else f"hidden {k + 1}"


def mean_and_std(values: Sequence[float | None], digits: int) -> str:
    """Format mean ± standard deviation: of one value, only the value; a dash if any value does not exist."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return DASH
    spread = f" ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.{digits}f}{spread}"
