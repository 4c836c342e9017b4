"""C as text: templates, arrays and strings, and the size of a struct. Shared by both kinds of networks in C."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

NUMBERS = {
    "bool": "?",
    "uint8_t": "u1",
    "uint16_t": "u2",
    "int32_t": "i4",
    "uint32_t": "u4",
    "float": "f4",
}  # as numpy calls them


class Code(NamedTuple):
    """A network in C."""

    files: dict[str, str]  # name -> text
    constants_bytes: int  # of flash: weights, biases, scales, delays, and values of neurons
    state_bytes: int  # of RAM: sizeof(network)


def unsigned(largest: int) -> str:
    """Return the smallest type of C that holds the numbers from 0 to the largest."""
    return f"{np.min_scalar_type(largest)}_t"


def number(value: np.floating) -> str:
    """Write a float32 with the fewest digits that reproduce it."""
    return f"{value!s}f"


def definition(named: tuple[str, np.ndarray]) -> str:
    """Write the definition of an array, row after row."""
    name, array = named
    kind = "float" if array.dtype == np.float32 else f"{array.dtype}_t"
    words = [number(value) if kind == "float" else str(value) for value in array.flat]
    width = array.shape[-1] if array.ndim > 1 else 20
    rows = ",\n".join("    " + ", ".join(words[k : k + width]) for k in range(0, len(words), width))
    return f"\nstatic const {kind} {name}[{' * '.join(map(str, array.shape))}] = {{\n{rows},\n}};\n"


def quoted(text: str) -> str:
    """Write a string of C: its bytes in UTF-8, with special characters as three octal digits."""
    is_plain = re.compile(r"[\w .,;:()+*/=<>!#-]", re.ASCII).fullmatch
    return '"' + "".join(chr(b) if is_plain(chr(b)) else f"\\{b:03o}" for b in text.encode()) + '"'


def size_of_struct(header: str) -> int:
    """Return sizeof(network), if numbers are aligned to their size, as by all compilers for small processors."""
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    constants = dict(re.findall(r"#define (\w+) (\d+)", header))
    kinds: dict[str, np.dtype] = {kind: np.dtype(code) for kind, code in NUMBERS.items()}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", header, re.DOTALL):
        fields = []
        for kind, declared in re.findall(r"(\w+) ([^;]+);", body):
            for field in declared.split(","):
                field_name, *sizes = re.findall(r"\w+", field)
                fields.append((field_name, kinds[kind], tuple(int(constants.get(size, size)) for size in sizes)))
        kinds[name] = np.dtype(fields, align=True)
    return kinds["network"].itemsize


def resolved(text: str, flags: Mapping[str, bool], words: Mapping[str, object]) -> str:
    """Fill in the @WORDS@, and keep only the part of each `#if` on a flag that applies. Other `#if` stay."""
    lines, keeps = [], []  # keeps: for each open #if whether its lines stay; None: it is C's own
    for line in text.splitlines():
        word, _, name = line.strip().partition(" ")
        if word in ("#if", "#ifdef", "#ifndef"):
            keeps.append(flags[name] if word == "#if" and name.isidentifier() else None)
            is_ours = keeps[-1] is not None
        elif word == "#else":
            is_ours = keeps[-1] is not None
            keeps[-1] = not keeps[-1] if is_ours else None
        elif word == "#endif":
            is_ours = keeps.pop() is not None
        else:
            is_ours = False
        if not is_ours and False not in keeps:
            lines.append(line)
    return re.sub("@([A-Z_]+)@", lambda found: str(words[found[1]]), "\n".join(lines) + "\n")
