"""YAML with the numbers of version 1.2 (1e-3 is a number; 1:30, 010 and dates are not) and without repeated keys."""

import re
from typing import Any

import yaml

from snn.errors import InputError


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key '{key}' occurs twice, line {node.start_mark.line + 1} and after")
        return super().construct_mapping(node, deep)


_NUMBERS = {
    "tag:yaml.org,2002:int": r"^[-+]?(0|[1-9][0-9]*)$",
    "tag:yaml.org,2002:float": r"^[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
    r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.split(":")[-1] not in ("int", "float", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes texts which YAML 1.2, or 1.1 as other programs read it, would take for numbers."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *resolvers]
        for first, resolvers in _Loader.yaml_implicit_resolvers.items()
    }


def text(values: dict, **layout: Any) -> str:
    """Return plain values as a YAML text; `layout` has options of PyYAML's dump."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **layout)


def parse(source: str, where: str) -> Any:
    """Parse a YAML text into plain values; an InputError names `where`."""
    try:
        return yaml.load(source, _Loader)
    except RecursionError:
        raise InputError(f"{where}: not valid YAML: values are nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{where}: not valid YAML: {_words(error)}") from None


def _words(error: Exception) -> str:
    """Return an error in a line, without the name that PyYAML gives to a text and the lines that it copies from it."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split()).replace(' in "<unicode string>"', "")
    parts = (error.context, error.context_mark), (error.problem, error.problem_mark)
    return ": ".join(f"{words}, line {mark.line + 1}, column {mark.column + 1}" for words, mark in parts if mark)
