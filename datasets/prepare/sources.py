"""The recordings of a folder: the class, subject and split of each."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.prepare import cameras
from datasets.prepare.recordings import SPLITS, compiled, files_below, read_table, sorted_names
from snn.errors import InputError

COLUMNS = ("file", "label", "subject", "speaker", "split")  # of a table
FOLDERS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


class Source(NamedTuple):
    """A file with its class, subject and split."""

    path: Path
    label: str
    subject: str | None
    split: str | None


def list_sources(
    folder: Path, glob: str | None, label_pattern: str | None, label_csv: Path | None, lists: dict[str, Path]
) -> list[Source]:
    """List the files below `folder`, sorted, with the class, subject and split from their names, a table or lists."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the folder of the recordings")
    if label_csv is not None:
        if glob is not None:
            raise InputError("--glob and --labels both choose the files; leave one out")
        sources = _from_table(folder, label_csv)
    else:
        sources = _from_names(folder, glob, label_pattern, set(lists.values()))
    if lists:
        if any(source.split is not None for source in sources):
            said = ", ".join(f"--{name}-list" for name in lists)
            raise InputError(f"{folder}: names or the table give the splits already; leave out {said}")
        sources = _by_lists(folder, sources, lists)
    return sources


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)


def _found(folder: Path, glob: str | None, beside: set[Path]) -> list[Path]:
    try:
        found = list(folder.glob(glob)) if glob is not None else files_below(folder)[0]
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"--glob {glob!r}: {error}; give a pattern below {folder}, such as '**/*.txt'") from None
    paths = [path for path in found if path.is_file() and not _is_hidden(path, folder)]
    if glob is None:
        paths = [path for path in paths if cameras.is_recording(path) and path not in beside]
    if not paths:
        raise InputError(
            f"{folder} holds no recording with a known name; choose the files with --glob, such as '**/*.txt', "
            "and --format"
        )
    return sorted(paths)


def _from_names(folder: Path, glob: str | None, label_pattern: str | None, beside: set[Path]) -> list[Source]:
    pattern = compiled(label_pattern or r"(.*/)?(?P<label>[^/]+)/[^/]+")
    sources = []
    for path in _found(folder, glob, beside):
        match = pattern.match(path.relative_to(folder).as_posix())
        if match is None:
            raise InputError(
                f"{path} does not match the label pattern {label_pattern!r}: change either"
                if label_pattern
                else f"{path}: is not in a folder that names its class; move it to "
                f"{folder / 'CLASS' / path.name}, or name the class with --label-pattern or --labels"
            )
        sources.append(_source(path, match.groupdict(), str(path)))
    return sources if any(source.split is not None for source in sources) else _by_folders(sources)


def _by_folders(sources: list[Source]) -> list[Source]:
    """Take the splits from the outermost folders that differ, if these are named so, as in Train or n-cars_test."""
    shared = os.path.commonpath([source.path.parent for source in sources])
    folders = [source.path.parent.relative_to(shared).parts[:1] for source in sources]
    words = {name: split for split, names in FOLDERS.items() for name in names}
    found = [words.get(re.split(r"[ _.-]", name[0].lower())[-1]) if name else None for name in folders]
    if len(set(found) - {None}) < 2:
        return sources
    if None in found:
        raise InputError(
            f"{sources[found.index(None)].path}: is in no folder for training, validation or testing, but other files "
            "are; move it, or give the splits with --label-pattern or --labels"
        )
    return [source._replace(split=split) for source, split in zip(sources, found, strict=True)]


def _from_table(folder: Path, label_csv: Path) -> list[Source]:
    rows, unused = read_table(label_csv, COLUMNS)
    if unused:
        print(f"columns of {label_csv} not used: {', '.join(unused)}")
    sources, lines = [], {}
    for line, row in rows:
        path = folder / row["file"]
        where = f"{label_csv}, line {line}"
        if not path.is_file():
            raise InputError(f"{where}: {path} does not exist: correct the name or drop the line")
        if path in lines:
            raise InputError(f"{where}: {path} is in line {lines[path]} already; drop one of them")
        lines[path] = line
        sources.append(_source(path, row, where))
    return sources


def _source(path: Path, fields: dict[str, str | None], where: str) -> Source:
    fields = {name: (value or "").strip() for name, value in fields.items() if isinstance(value, str | None) and name}
    for name in ("label", "subject", "speaker", "split"):
        if name in fields and not fields[name]:
            raise InputError(f"{where}: the {name} is empty: fill it in or leave {name} out everywhere")
    split = fields.get("split")
    if split is not None:
        split = next((name for name, names in FOLDERS.items() if split.lower() in names), split)
        if split not in SPLITS:
            raise InputError(f"{where}: the split is {split!r:.40}: write train, validation or test")
    return Source(path, fields["label"], fields.get("subject", fields.get("speaker")), split)


def _by_lists(folder: Path, sources: list[Source], lists: dict[str, Path]) -> list[Source]:
    """Take the splits from lists, as Speech Commands has them: files for testing and validation; the rest train."""
    places = {source.path.absolute(): k for k, source in enumerate(sources)}  # a table may name any path
    split = dict.fromkeys(range(len(sources)), "train")
    for name, path in lists.items():
        try:
            words = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        for line, word in enumerate(words, start=1):
            k = places.get((folder / word).absolute())
            if k is None:
                raise InputError(
                    f"{path}, line {line}: {folder / word} is not a recording in the folder; correct the line"
                )
            if split[k] != "train":
                raise InputError(f"{path}, line {line}: {word} is listed already; drop one of the lines")
            split[k] = name
    return [source._replace(split=split[k]) for k, source in enumerate(sources)]


def draw_splits(sources: list[Source], test_share: float, validation_share: float, by: str, seed: int) -> list[Source]:
    """Give a split to sources without one: shares of every class's files, or of the subjects."""
    if all(source.split is not None for source in sources):
        return sources
    if any(source.split is not None for source in sources):
        missing = next(source for source in sources if source.split is None)
        raise InputError(f"{missing.path}: has no split, but others do; give it for all or for none")
    if not (0 <= test_share < 1 and 0 <= validation_share < 1 and test_share + validation_share < 1):
        raise InputError(f"the shares {test_share} and {validation_share} must be at least 0, and together below 1")
    if seed < 0:
        raise InputError(f"seed is {seed}: choose 0 or more")
    random = np.random.default_rng(seed)
    if by == "subject":
        if any(source.subject is None for source in sources):
            raise InputError("a split by subject needs a subject for each file: (?P<subject>...) or a column subject")
        names = sorted_names(source.subject for source in sources)
        groups = [[[k for k, source in enumerate(sources) if source.subject == name] for name in names]]
    else:
        groups = [
            [[k] for k, source in enumerate(sources) if source.label == label]
            for label in sorted_names(source.label for source in sources)
        ]
    split = ["train"] * len(sources)
    for group in groups:
        order = random.permutation(len(group))
        tests = min(len(group) - 1, max(1, round(test_share * len(group)))) if test_share else 0
        others = min(len(group) - 1 - tests, max(1, round(validation_share * len(group)))) if validation_share else 0
        for place, name in [
            *((k, "test") for k in order[:tests]),
            *((k, "validation") for k in order[tests : tests + others]),
        ]:
            for k in group[place]:
                split[k] = name
    return [source._replace(split=name) for source, name in zip(sources, split, strict=True)]
