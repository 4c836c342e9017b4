"""The recordings of a folder: the class, subject and split of each."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from datasets.prepare import cameras
from datasets.prepare.recordings import (
    SPLIT_NAMES,
    Recording,
    compiled,
    described,
    files_below,
    from_table,
    is_hidden,
    read_list,
    sorted_names,
)
from snn.errors import InputError


def list_sources(
    folder: Path, glob: str | None, label_pattern: str | None, label_csv: Path | None, lists: dict[str, Path]
) -> list[Recording]:
    """List the files below `folder`, sorted, with the class, subject and split from their names, a table or lists."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the folder of the recordings")
    if label_csv is not None:
        if glob is not None:
            raise InputError("--glob and --labels both choose the files; leave one out")
        sources, notes = from_table(folder, label_csv, files_below(folder)[0])
        print(*notes, sep="\n", end="\n" if notes else "")
    else:
        sources = _from_names(folder, glob, label_pattern, set(lists.values()))
    if lists:
        if any(source.split is not None for source in sources):
            said = ", ".join(f"--{name}-list" for name in lists)
            raise InputError(f"{folder}: names or the table give the splits already; leave out {said}")
        sources = _by_lists(folder, sources, lists)
    return sources


def _found(folder: Path, glob: str | None, beside: set[Path]) -> list[Path]:
    if glob is None:
        paths = [path for path in files_below(folder)[0] if cameras.is_recording(path) and path not in beside]
    else:
        try:
            paths = sorted(path for path in folder.glob(glob) if path.is_file())
        except (ValueError, NotImplementedError) as error:
            raise InputError(f"--glob {glob!r}: {error}; give a pattern below {folder}, such as '**/*.txt'") from None
        paths = [path for path in paths if not any(map(is_hidden, path.relative_to(folder).parts))]
    if not paths:
        raise InputError(
            f"{folder} holds no recording with a known name; choose the files with --glob, such as '**/*.txt', "
            "and --format"
        )
    return paths


def _from_names(folder: Path, glob: str | None, label_pattern: str | None, beside: set[Path]) -> list[Recording]:
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
        sources.append(described(path, match.groupdict(), str(path)))
    return sources if any(source.split is not None for source in sources) else _by_folders(sources)


def _by_folders(sources: list[Recording]) -> list[Recording]:
    """Take the splits from the outermost folders that differ, if these are named so, as in Train or n-cars_test."""
    shared = os.path.commonpath([source.path.parent for source in sources])
    folders = [source.path.parent.relative_to(shared).parts[:1] for source in sources]
    words = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    found = [words.get(re.split(r"[ _.-]", name[0].lower())[-1]) if name else None for name in folders]
    if len(set(found) - {None}) < 2:
        return sources
    if None in found:
        raise InputError(
            f"{sources[found.index(None)].path}: is in no folder for training, validation or testing, but other files "
            "are; move it, or give the splits with --label-pattern or --labels"
        )
    return [source._replace(split=split) for source, split in zip(sources, found, strict=True)]


def _by_lists(folder: Path, sources: list[Recording], lists: dict[str, Path]) -> list[Recording]:
    """Take the splits from lists, as Speech Commands has them: files for testing and validation; the rest train."""
    places = {source.path.absolute(): k for k, source in enumerate(sources)}  # a table may name any path
    split = dict.fromkeys(range(len(sources)), "train")
    for name, path in lists.items():
        for line, word in read_list(path):
            k = places.get((folder / word).absolute())
            if k is None:
                raise InputError(
                    f"{path}, line {line}: {folder / word} is not a recording in the folder; correct the line"
                )
            if split[k] != "train":
                raise InputError(f"{path}, line {line}: {word} is listed already; drop one of the lines")
            split[k] = name
    return [source._replace(split=split[k]) for k, source in enumerate(sources)]


def draw_splits(
    sources: list[Recording], test_share: float, validation_share: float, by: str, seed: int
) -> list[Recording]:
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
        if any(source.speaker is None for source in sources):
            raise InputError("a split by subject needs a subject for each file: (?P<subject>...) or a column subject")
        names = sorted_names(source.speaker for source in sources)
        groups = [[[k for k, source in enumerate(sources) if source.speaker == name] for name in names]]
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
