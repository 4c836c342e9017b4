"""Reading a configuration from YAML, overriding and checking it, with one line for each mistake."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from snn import yaml12
from snn.errors import InputError
from snn.schema import KINDS, AnyConfig, Mark, Section

AnySection = TypeVar("AnySection", bound=Section)


def load(path: Path) -> AnyConfig:
    """Read a configuration from a YAML file. InputError names the file, the field and what is allowed."""
    return build(read_yaml(path), str(path))


def read_yaml(path: Path, kind: type[Section] | None = None) -> dict:
    """Read the mapping in a YAML file, unchecked; messages say that it must hold the fields of `kind`.

    The default is the configuration of a first-spike network.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # Windows editors may put a byte order mark first
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {getattr(error, 'strerror', None) or error}") from None
    values = yaml12.parse(text, str(path))
    if not isinstance(values, dict):
        fields = (kind or kind_of({})).model_fields
        raise InputError(f"{path}: must hold the sections {', '.join(fields)}, not {values!r:.40}")
    return values


def override(values: dict, field: str, value: Any) -> None:
    """Set `section.field` in plain values, in place. InputError if there is no such field."""
    *sections, name = field.split(".")
    section: type[Section] | None = kind_of(values)
    for step, part in enumerate([*sections, name]):
        if section is None or part not in section.model_fields:
            known = ", ".join(section.model_fields) if section else "no fields"
            inside = ".".join(sections[:step]) or "the configuration"
            raise InputError(f"{field} is not known; {inside} has {known}")
        section = section_in(section.model_fields[part].annotation)
    for part in sections:
        values[part] = {} if values.get(part) is None else values[part]
        values = values[part]
        if not isinstance(values, dict):
            raise InputError(f"{field} cannot be set: {part} is not a section but {values!r:.40}")
    values[name] = value


def build(values: dict, where: str) -> AnyConfig:
    """Build a configuration from plain values. InputError names `where`, the field and what is allowed."""
    return check(kind_of(values), values, where)


def as_yaml(section: Section) -> str:
    """Return a section as the text of a YAML file, which `read_yaml` reads back."""
    return yaml12.text(section.model_dump(mode="json"))


def check(kind: type[AnySection], values: dict, where: str) -> AnySection:
    """Build a section of this kind from plain values. InputError names `where`, the field and what is allowed."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: " + "; ".join(_explanations(error.errors(), kind))) from None


def kind_of(values: dict) -> type[AnyConfig]:
    """Return the kind of configuration that plain values describe, by the one section that only this kind has."""
    from snn.config import Config  # imported here because losses import torch, for which --help need not wait

    return next((kind for section, kind in reversed(KINDS.items()) if section in values), Config)


def _explanations(items: Iterable[Mapping[str, Any]], kind: type[Section]) -> Iterator[str]:
    """Yield an explanation of each error; the fields of a section are listed with the first of it that is not known."""
    listed: set[tuple] = set()
    for item in items:
        words, section = _explain(item, kind), item["loc"][:-1]
        if item["type"] == "extra_forbidden":
            words = words.partition(";")[0] if section in listed else words
            listed.add(section)
        yield words


def _explain(item: Mapping[str, Any], kind: type[Section]) -> str:
    """Explain one of pydantic's errors in our words."""
    field = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        section = kind
        for name in item["loc"][:-1]:
            if name in section.model_fields:  # others are keys of a dict of sections, as is one that holds no section
                section = section_in(section.model_fields[name].annotation) or section
        return f"{field} is not known; choose from {', '.join(section.model_fields)}"
    if item["type"] == "missing":
        return f"{field} is missing"
    wanted = {"tuple_type": "input should be a list", "model_type": "input should be a section of fields"}
    wanted["too_short"] = "give at least one"
    if item["type"] == "value_error":  # raised by our own checks
        return ": ".join(filter(None, (field, str(item["ctx"]["error"]))))
    message = wanted.get(item["type"], f"{item['msg'][0].lower()}{item['msg'][1:]}")
    return f"{field} = {item['input']!r:.60}: {message}"


def section_in(annotation: Any) -> type[Section] | None:
    """Return the section that a field holds, even an optional one, or None if the field holds a value."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def differences(one: Section, other: Section, prefix: str = "") -> Iterator[str]:
    """Yield the names of the fields whose values differ."""
    if type(one) is not type(other):
        yield f"{prefix}kind of network"
        return
    for name in type(one).model_fields:
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, Section) and isinstance(b, Section):
            yield from differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield f"{prefix}{name}"


def changes(one: Section, other: Section, *free: Mark) -> list[str]:
    """Return the fields whose values differ, except those of the machine and those with one of the marks `free`."""
    left_out = marked(type(one), Mark.MACHINE, *free)
    return [name for name in differences(one, other) if name not in left_out]


def marked(section: type[Section], *marks: Mark, prefix: str = "") -> set[str]:
    """Return the names of the fields with one of these marks, in the form that `differences` yields."""
    names: set[str] = set()
    for name, field in section.model_fields.items():
        if any(mark in field.metadata for mark in marks):
            names.add(f"{prefix}{name}")
        elif inside := section_in(field.annotation):
            names |= marked(inside, *marks, prefix=f"{prefix}{name}.")
    return names
