"""Class names in pictures: shortened where necessary, and only those that a font of this system can draw.

matplotlib is imported where it is needed: training does without it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry

LONGEST = 18  # columns of a class name; a Chinese character takes two
NO_GLYPHS = {"Cc", "Cf", "Zs"}  # categories of characters that need none


class Lettering(NamedTuple):
    """The names as pictures show them (None if no font can draw one), and the fonts in the order to try."""

    names: tuple[str | None, ...] | None
    fonts: list[str]


def lettering(names: Sequence[str] | None, longest: int = LONGEST) -> Lettering:
    """Shorten names for a picture and find fonts for them.

    A name of more than `longest` columns loses its middle; names that are then equal get their number.
    """
    from matplotlib import rcParams

    if names is None:
        return Lettering(None, list(rcParams["font.family"]))
    clean = ["".join(c if c.isprintable() else " " for c in name).strip() for name in names]
    fonts, undrawn = _fonts(frozenset(c for name in clean for c in name if _needs_glyph(c)))
    drawn = [name if name and undrawn.isdisjoint(name) else None for name in clean]
    short = [name and _without_middle(name, longest) for name in drawn]
    times = Counter(short)
    unlike = [name and (name if times[name] == 1 else f"{k}: {name}") for k, name in enumerate(short)]
    return Lettering(tuple(name and _apart(name) for name in unlike), [*rcParams["font.family"], *fonts])


def why_numbers(names: Sequence[str] | None) -> str:
    """Explain in a sentence why pictures show numbers instead of names; return "" if they show all names."""
    short = lettering(names).names or ()
    missing = sum(name is None for name, full in zip(short, names or (), strict=True) if full.strip())
    if not missing:
        return ""
    return (
        f"Pictures show numbers instead of {missing} of {len(short)} class names, as no font of this system can draw "
        "them (install one, such as Noto); the table by class has the names."
    )


def columns(text: str) -> int:
    """Return the width of a text in Latin letters."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _without_middle(name: str, most: int) -> str:
    """Shorten the name to at most `most` columns but keep its ending: endings often tell names apart."""
    if columns(name) <= most:
        return name
    half = (most - 1) // 2
    tail = _first(name[::-1], half)[::-1]
    while tail and unicodedata.category(tail[0]).startswith("M"):  # marks on a letter that was cut off
        tail = tail[1:]
    return f"{_first(name, half)}…{tail}"


def _first(text: str, most: int) -> str:
    """Return as much of the beginning as fits into `most` columns."""
    return next(text[:k] for k in range(len(text), -1, -1) if columns(text[:k]) <= most)


def _apart(name: str) -> str:
    """Isolate a name that is read from the right, so that it does not reorder the words around it (Unicode UAX #9)."""
    return f"\u2068{name}\u2069" if any(unicodedata.bidirectional(c) in ("R", "AL") for c in name) else name


def _needs_glyph(character: str) -> bool:
    return unicodedata.category(character) not in NO_GLYPHS and not 0xFE00 <= ord(character) <= 0xFE0F


@lru_cache
def _fonts(characters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Return font families that, with the usual font, cover these characters, and the characters that none covers."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    usual = FT2Font(font_manager.findfont(font_manager.FontProperties()))
    missing = {c for c in characters if not usual.get_char_index(ord(c))}
    families: list[str] = []
    has: dict[str, set[str]] = {}
    for entry in _known_fonts() if missing else ():
        if entry.name not in has and "Last Resort" not in entry.name:
            has[entry.name] = _those_of(entry.fname, missing)
    while covered := max((has[family] & missing for family in has), key=len, default=None):
        families.append(next(family for family in has if has[family] & missing == covered))
        missing -= covered
    return families, frozenset(missing)


def _known_fonts() -> list[FontEntry]:
    """List all fonts of this system: upright fonts of normal weight first, sans before serif."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    for path in set(font_manager.findSystemFonts()) - {entry.fname for entry in manager.ttflist}:
        with suppress(OSError, RuntimeError):  # skips a font that cannot be read
            manager.addfont(path)  # installed since matplotlib last looked
    return sorted(manager.ttflist, key=lambda e: (e.style != "normal", e.weight != 400, "Sans" not in e.name))


def _those_of(path: str, characters: set[str]) -> set[str]:
    """Return the characters that a font has as outlines. Colour fonts cannot be drawn and count as empty."""
    from matplotlib.ft2font import FaceFlags, FT2Font

    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):  # damaged, or deleted since
        return set()
    if FaceFlags.COLOR in font.face_flags or FaceFlags.SCALABLE not in font.face_flags:
        return set()
    return {c for c in characters if font.get_char_index(ord(c))}
