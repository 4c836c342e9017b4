"""A survey of the recordings in a folder: the class, speaker and split of each."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from snn.errors import InputError

SPLITS = ("train", "validation", "test")
AUDIO = frozenset(".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64".split())
FILE_NAME_UP_TO_UNDERSCORE = r"(.*/)?(?P<label>[^_/]+)_"
FOLDER = "(?P<label>[^/]+)/"

# Google Speech Commands (Warden 2018, arXiv:1804.03209): <class>/<speaker's hash>_nohash_<number>.wav
SPEECH_COMMANDS = r"(.*/)?(?P<label>[^/]+)/(?P<speaker>[^/]+)_nohash_\d+\."
BACKGROUND = "_background_noise_"  # a folder of noises, which belong to no class
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}

COLUMNS = ("file", "label", "subject", "speaker", "split")  # of a table; subject and speaker mean the same
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}

SHOWN = 5  # files named in one line


class Recording(NamedTuple):
    """A file with its label, speaker and split."""

    path: Path
    label: str
    speaker: str | None = None
    split: str | None = None


class Survey(NamedTuple):
    """The contents of a folder: the recordings, the number of other things by kind, and notes for the user."""

    recordings: list[Recording]
    left_out: Counter[str]
    notes: list[str]


def files_below(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Return the files below a folder, sorted, and the number of other things by kind.

    Hidden files and folders are skipped, as is macOS' own __MACOSX. Linked folders are followed, each folder once,
    preferably at its own place.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give the one that holds the recordings")
    files, left_out, seen = [], Counter(), set()
    waiting, linked = [folder], []
    while waiting or linked:
        here = waiting.pop() if waiting else linked.pop(0)
        place = here.resolve()
        if place in seen or (here != folder and here.parent.resolve().is_relative_to(place)):
            left_out["linked folder that was read already"] += 1
            continue
        seen.add(place)
        for path in here.iterdir():
            if is_hidden(path.name):
                left_out["hidden"] += 1
            elif path.is_dir():
                (linked if path.is_symlink() else waiting).append(path)
            elif path.is_file():
                files.append(path)
            else:
                left_out["broken link" if path.is_symlink() else "special file"] += 1
        linked.sort()
    return sorted(files), left_out


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is none of the user's."""
    return name.startswith(".") or name == "__MACOSX"


def from_names(folder: Path, label_pattern: str | None) -> Survey:
    """Find the recordings below a folder by a pattern with the group `label` and, if wanted, `speaker` and `split`.

    The pattern, a regular expression, is matched against the start of each relative path. None stands for the pattern
    of Speech Commands if a file is named so, and otherwise for the file name up to its first underscore. The lists of
    Speech Commands give the split if there are any.
    """
    files, left_out = files_below(folder)
    paths = [path for path in files if _is_audio(path) and BACKGROUND not in path.parent.relative_to(folder).parts]
    _count_others(left_out, [path for path in files if path.name not in LISTS.values()], paths, folder)
    if not paths:
        raise InputError(
            f"{folder} holds no WAV, FLAC, OGG or MP3 files{_but(left_out)}: give a folder of recordings, "
            "or convert them to one of these"
        )
    names = [path.relative_to(folder).as_posix() for path in paths]
    notes = []
    if label_pattern is None:
        is_commands = any(re.match(SPEECH_COMMANDS, name) for name in names)
        label_pattern = SPEECH_COMMANDS if is_commands else FILE_NAME_UP_TO_UNDERSCORE
        folders = sorted({path.parent.name for path in paths if path.parent != folder})
        if is_commands:
            notes.append("named as Speech Commands: the folder is the class, the name up to _nohash_ the speaker")
        elif len(folders) > 1:
            notes.append(
                "the classes come from the file names, not from the folders "
                f"({_some(folders)}); --label-pattern '{FOLDER}' uses the folders"
            )
    pattern = compiled(label_pattern)
    recordings = []
    for path, name in zip(paths, names, strict=True):
        match = pattern.match(name)
        if match is None:
            advice = f"; for the folder as the class: --label-pattern '{FOLDER}'" if "/" in name else ""
            raise InputError(f"{path} does not match the label pattern {label_pattern!r}: change either{advice}")
        recordings.append(described(path, match.groupdict(), str(path)))
    lists = [path for path in files if path.name in LISTS.values()]
    if "split" not in pattern.groupindex:
        recordings = _by_lists(recordings, lists, notes)
    elif lists:
        notes.append(f"{lists[0]} is not used: the label pattern names the split")
    return Survey(recordings, left_out, notes)


def from_csv(folder: Path, table: Path) -> Survey:
    """Find the recordings that a table names, as `from_table` does, and count the other files below the folder."""
    files, left_out = files_below(folder)
    recordings, notes = from_table(folder, table, files)
    named = {recording.path.resolve() for recording in recordings}
    others = [path for path in files if path.resolve() not in named and path != table]
    unnamed = [path for path in others if _is_audio(path)]
    left_out["not in the table"] += len(unnamed)
    _count_others(left_out, others, unnamed, folder)
    return Survey(recordings, left_out, notes)


def from_table(folder: Path, table: Path, files: Iterable[Path]) -> tuple[list[Recording], list[str]]:
    """Return the recordings in the rows of a table, and notes for the user.

    Its columns are file (relative to `folder`), label[, subject or speaker][, split]. `files` are those below the
    folder: one of them is meant if its name differs from that in the table only by the form of Unicode. InputError,
    with the line, if a file does not exist or is there twice, or for what `described` refuses.
    """
    by_name = {unicodedata.normalize("NFC", path.relative_to(folder).as_posix()): path for path in files}
    rows, unused = _read_csv(table)
    recordings: list[Recording] = []
    first: dict[Path, int] = {}
    for line, row in rows:
        where, path = f"{table}, line {line}", folder / row["file"]
        if not os.path.isfile(path):  # macOS may write é as two characters
            path = by_name.get(unicodedata.normalize("NFC", row["file"]), path)
        if not row["file"] or not os.path.isfile(path):  # Path.is_file raises if a name is too long
            raise InputError(f"{where}: {path} does not exist: correct the name or drop the line")
        recording = described(path, row, where)
        earlier = first.setdefault(path.resolve(), len(recordings))
        if earlier < len(recordings):
            before = recordings[earlier]
            labels = "" if before.label == recording.label else f": as {before.label!r} and as {recording.label!r}"
            raise InputError(f"{where}: {path} is in line {rows[earlier][0]} already{labels}; drop one of the two")
        recordings.append(recording)
    return recordings, [f"columns of {table} not used: {', '.join(unused)}"] if unused else []


def sift(
    recordings: list[Recording], reasons: Mapping[int, str], skip_bad: bool, left_out: list[str]
) -> list[Recording]:
    """Return the recordings without the bad ones, which `reasons` holds by index; name each of these in `left_out`.

    Raises InputError naming the bad ones if there are any and they are not to be skipped.
    """
    if reasons and not skip_bad:
        named = "; ".join(reasons[i] for i in sorted(reasons)[:SHOWN])
        more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        raise InputError(
            f"{len(reasons)} of {len(recordings)} recordings cannot be used: {named}{more}. Repair or remove them, or "
            "leave them out with --skip-bad"
        )
    left_out += [reasons[i] for i in sorted(reasons)]
    return [recording for i, recording in enumerate(recordings) if i not in reasons]


def ambiguous(recordings: Sequence[Recording], sounds: Mapping[Path, str]) -> dict[int, str]:
    """Return the index and the reason for each recording whose sound also has another label."""
    found = {}
    for copies in _copies(recordings, sounds):
        one_of = {recordings[i].label: recordings[i] for i in copies}
        for i in copies if len(one_of) > 1 else ():
            other = next(recording for label, recording in one_of.items() if label != recordings[i].label)
            found[i] = f"{recordings[i].path} ({recordings[i].label}) is the same sound as {other.path} ({other.label})"
    return found


def crossing(recordings: Sequence[Recording], sounds: Mapping[Path, str]) -> dict[int, str]:
    """Return the index and the reason for each recording whose sound is also in a split held out from its own."""
    found = {}
    for copies in _copies(recordings, sounds):
        last = max(copies, key=lambda i: SPLITS.index(recordings[i].split))
        for i in copies:
            if recordings[i].split != recordings[last].split:
                found[i] = (
                    f"{recordings[i].path} ({recordings[i].split}) is the same sound as {recordings[last].path} "
                    f"({recordings[last].split})"
                )
    return found


def twice(recordings: Sequence[Recording], sounds: Mapping[Path, str]) -> list[str]:
    """Return a line on recordings that exist under two names, if there are any."""
    copies = _copies(recordings, sounds)
    if not copies:
        return []
    a, b, *_ = (recordings[i].path for i in copies[0])
    number = sum(map(len, copies)) - len(copies)
    return [
        f"{number} recording{'s exist' if number > 1 else ' exists'} under another name too: for example, {a} is {b}"
    ]


def draw_split(recordings: list[Recording], groups: Sequence[str], test_share: float, seed: int) -> list[Recording]:
    """Draw, by `seed`, a share of the groups for testing; return the recordings with their splits.

    `groups` holds the group of each recording. A group that is the last of a class stays for training, and another is
    drawn.
    """
    labels_of: dict[str, Counter[str]] = defaultdict(Counter)
    for recording, group in zip(recordings, groups, strict=True):
        labels_of[group][recording.label] += 1
    names, left = list(labels_of), sum(labels_of.values(), Counter())
    testing: set[str] = set()
    for i in np.random.default_rng(seed).permutation(len(names)):
        labels = labels_of[names[i]]
        if len(testing) < round(test_share * len(names)) and all(left[label] > labels[label] for label in labels):
            testing.add(names[i])
            left -= labels
    return [
        recording._replace(split="test" if group in testing else "train")
        for recording, group in zip(recordings, groups, strict=True)
    ]


def words_to_hold_out(train_labels: Iterable[str], splits: Iterable[str]) -> str:
    """Return the options with which train.py holds out test and validation data, as far as the recordings allow.

    train_labels: the class of each recording to train on, whose windows count as one. The last of a class is not held
    out. Splits that have a file of their own need no options.
    """
    most, words = max(Counter(train_labels).values()), ""
    if "test" not in splits and most > 1:
        words, most = " --set data.test_by=recording", most - 1
    if "validation" not in splits and most == 1:
        words += " --set data.validation_share=0"
    return words


def by_split(recordings: Sequence[Recording], folder: Path) -> dict[str, list[Recording]]:
    """Sort recordings by split. InputError if none is to train or test on, or if a class is missing."""
    splits = {name: [recording for recording in recordings if recording.split == name] for name in SPLITS}
    for name in ("train", "test"):
        if not splits[name]:
            raise InputError(f"{folder} has no recording for the {name} file: change the split or the test share")
    learned = {recording.label for recording in splits["train"]}
    for recording in splits["validation"] + splits["test"]:
        if recording.label not in learned:
            raise InputError(
                f"the class {recording.label!r} has no recording for training, but {recording.path} is for "
                f"{recording.split}: give the class training recordings, or leave it out"
            )
    return {name: members for name, members in splits.items() if members}


def shared_speakers(splits: Mapping[str, Sequence[Recording]]) -> list[str]:
    """Return the speakers who are in the training file and in another."""
    speakers = {name: {recording.speaker for recording in members} - {None} for name, members in splits.items()}
    held_out = set().union(*(names for split, names in speakers.items() if split != "train"))
    return sorted(speakers["train"] & held_out)


def remarks(splits: Mapping[str, Sequence[Recording]]) -> list[str]:
    """Return a line on classes that look alike, and one on those that are not tested, if there are any."""
    labels = {split: {recording.label for recording in members} for split, members in splits.items()}
    alike = defaultdict(set)
    for label in labels["train"]:
        alike[unicodedata.normalize("NFKC", label).casefold()].add(label)
    lines = [f"these count as different classes: {', '.join(sorted(a))}" for a in alike.values() if len(a) > 1]
    if untested := sorted_names(labels["train"] - labels["test"]):
        lines.append(f"there is no test recording of the class {_some(untested)}")
    return lines


def sorted_names(names: Iterable[str]) -> list[str]:
    """Return the distinct names, numbers first and in numerical order."""

    def rank(name: str) -> tuple:
        number = name.lstrip("0")
        return (0, len(number), number, name) if name.isdecimal() else (1, 0, name, name)

    return sorted(set(names), key=rank)


def counted(kinds: Mapping[str, int]) -> str:
    """Describe the numbers of each kind, for instance "2 .txt, 1 hidden"."""
    return ", ".join(
        f"{number} {kind}" for kind, number in sorted(kinds.items(), key=lambda k: (-k[1], k[0])) if number
    )


def kinds_of(recordings: Iterable[Recording]) -> Counter[str]:
    """Count the recordings by format, as their names give it."""
    return Counter(recording.path.suffix[1:].upper() for recording in recordings)


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in AUDIO


def _count_others(left_out: Counter[str], files: Iterable[Path], taken: Iterable[Path], folder: Path) -> None:
    for path in set(files) - set(taken):
        kind = f"in {BACKGROUND}" if BACKGROUND in path.relative_to(folder).parts else path.suffix.lower()
        left_out[kind or "without a suffix"] += 1


def _but(left_out: Counter[str]) -> str:
    return f", but {counted(left_out)}" if left_out else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def compiled(label_pattern: str) -> re.Pattern[str]:
    """Compile a pattern of names. InputError if it is no regular expression, or has no group `label`."""
    try:
        pattern = re.compile(label_pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"the label pattern {label_pattern!r} is not a regular expression: {error}") from error
    if "label" not in pattern.groupindex:
        raise InputError(f"the label pattern {label_pattern!r} has no group (?P<label>...): add one")
    return pattern


def _read_csv(table: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Read a table: (line, cells by column) of each row, without surrounding blanks, and the columns not in COLUMNS."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            separator = max(",;\t", key=header.count)
            columns = [name.strip().lower() for name in next(csv.reader([header], delimiter=separator), [])]
            reader = csv.DictReader(file, columns, delimiter=separator, restval="")
            rows = [(reader.line_num + 1, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} cannot be read as CSV: {error}") from error
    if not rows or not set(COLUMNS[:2]) <= set(columns) or any(columns.count(name) > 1 for name in COLUMNS):
        header = ",".join(COLUMNS[:2]) + "".join(f"[,{name}]" for name in COLUMNS[2:])
        raise InputError(f"{table} needs the header {header} and a row for each recording")
    for line, row in rows:
        if any(row.pop(None, ())):
            raise InputError(
                f"{table}, line {line}: more cells than columns; put quotes around a cell with a {separator!r}"
            )
    unused = [name for name in columns if name not in (*COLUMNS, "")]
    return [(line, {name: cell.strip() for name, cell in row.items()}) for line, row in rows], unused


def _by_lists(recordings: list[Recording], lists: Sequence[Path], notes: list[str]) -> list[Recording]:
    """Return recordings with the splits of Speech Commands' lists, if there are any; suffixes do not count."""
    if not lists:
        return recordings
    base = {path.parent for path in lists}
    names = {path.name for path in lists}
    if len(base) > 1 or LISTS["test"] not in names:
        raise InputError(
            f"{lists[0]}: the split needs one testing_list.txt, beside the folders of the classes; give the folder "
            "that holds it, or fetch it again"
        )
    split_of: dict[str, str] = {}
    for split, name in LISTS.items():
        path = next(iter(base)) / name
        for _, line in read_list(path) if name in names else ():
            listed = _without_suffix(path.parent / line)
            if split_of.setdefault(listed, split) != split:
                raise InputError(f"{path}: {line} is in {LISTS['validation']} too; remove it from one of the two")
    places = [_without_suffix(recording.path) for recording in recordings]
    notes.append(f"split by {' and '.join(sorted(names))}")
    if absent := len(split_of.keys() - set(places)):
        notes.append(f"{absent} of the {len(split_of)} recordings they list are not there")
    return [
        recording._replace(split=split_of.get(place, "train"))
        for recording, place in zip(recordings, places, strict=True)
    ]


def _without_suffix(path: Path) -> str:
    return os.path.splitext(path)[0]  # Path.with_suffix refuses a path without a name, such as /


def read_list(path: Path) -> list[tuple[int, str]]:
    """Return (number from 1, line without surrounding blanks) of each line of a list of files that is not blank.

    InputError if it cannot be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of files: {error}") from error


def described(path: Path, fields: Mapping[str, str | None], where: str) -> Recording:
    """Return a recording with the label, speaker (or subject) and split in `fields`, in one spelling each.

    InputError, with `where`, if one is empty or cannot be stored, if the split is not known, or if the speaker and the
    subject are not the same.
    """
    values = {name: spelled(fields[name] or "", f"{where}: the {name}") for name in COLUMNS[1:] if name in fields}
    for name, value in values.items():
        if not value:
            raise InputError(f"{where}: the {name} is empty: fill it in or leave {name} out everywhere")
    if split := values.get("split"):
        split = next((name for name, names in SPLIT_NAMES.items() if split.lower() in names), None)
        if split is None:
            raise InputError(f"{where}: the split is {values['split']!r:.40}: write train or test (or validation)")
    speaker = values.get("speaker", values.get("subject"))
    if values.get("subject", speaker) != speaker:
        raise InputError(
            f"{where}: the subject is {values['subject']!r:.40} and the speaker {speaker!r:.40}, which should be "
            "the same: leave one of the two out"
        )
    return Recording(path, values["label"], speaker, split)


def spelled(name: str, what: str) -> str:
    """Return one spelling of a name: NFC, single blanks, none at the ends. InputError if it cannot be stored."""
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):  # control, or not Unicode
        raise InputError(f"{what} {name!r:.80} has characters that cannot be stored: rename it")
    return name


def _copies(recordings: Sequence[Recording], sounds: Mapping[Path, str]) -> list[list[int]]:
    """Return the indices of recordings for each sound that occurs more than once."""
    of_sound = defaultdict(list)
    for i, recording in enumerate(recordings):
        of_sound[sounds[recording.path]].append(i)
    return [copies for copies in of_sound.values() if len(copies) > 1]
