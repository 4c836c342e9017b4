"""The manual of options, for the screen or as docs/configuration.md: `python -m snn.config [--markdown]`."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from snn.cli import OneLineParser
from snn.schema import KINDS, Section
from snn.settings import section_in


class Option(NamedTuple):
    """A field of the configuration as the manual shows it."""

    name: str
    default: str
    takes: str
    meaning: str


def options(section: type[Section], prefix: str = "") -> Iterator[Option]:
    """Yield the fields of a section, including those of the sections within it."""
    for name, field in section.model_fields.items():
        if inside := section_in(field.annotation):
            yield from options(inside, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else repr(field.default)
            yield Option(prefix + name, default, _words(field.annotation), str(field.description))


def _words(annotation: Any) -> str:
    """Describe a type in words: int, a | b | c, list of int."""
    if get_origin(annotation) is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    if get_origin(annotation) is dict:
        return "name: number"
    if get_origin(annotation) is tuple:
        return f"list of {_words(get_args(annotation)[0])}"
    if get_origin(annotation) is Annotated:
        return _words(get_args(annotation)[0])
    if get_args(annotation):  # X | None
        return " | ".join(_words(kind) for kind in get_args(annotation) if kind is not type(None))
    return annotation.__name__


def titles() -> Iterator[tuple[str, type[Section]]]:
    """Yield each kind of configuration with a title that names the section which identifies it."""
    for section, kind in KINDS.items():
        yield f"{kind.model_config['title']}: a YAML with a section `{section}`", kind


def text() -> str:
    """Return the manual for a terminal."""
    lines = []
    for title, kind in titles():
        lines += ["", title, "", *(f"{o.name:<29} {o.default:<12} {o.takes:<22} {o.meaning}" for o in options(kind))]
    return "\n".join(lines[1:])


def markdown() -> str:
    """Return the manual as the page docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "Every field with its default, type and meaning; `--set section.field=value` sets any of them.",
        "This page is written by `python -m snn.config --markdown > docs/configuration.md`.",
    ]
    for title, kind in titles():
        lines += ["", f"## {title}", "", "| field | default | takes | meaning |", "|---|---|---|---|"]
        for option in options(kind):
            cells = (f"`{option.name}`", f"`{option.default}`", option.takes, option.meaning.replace("<", "&lt;"))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the manual."""
    parser = OneLineParser(prog="python -m snn.config", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="print the page docs/configuration.md")
    print(markdown() if parser.parse_args().markdown else text())
