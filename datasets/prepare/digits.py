"""The data set `digits`: the twenty spoken digits of SHD, spoken by espeak-ng and heard by the artificial cochlea."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.prepare.cochlea import cochlea
from datasets.prepare.parallel import map_in_order
from datasets.prepare.speech import synthesise, variants
from datasets.prepare.writer import is_made, write_events
from snn.errors import InputError

# The classes in the order of their labels.
WORDS = [("en", word) for word in "zero one two three four five six seven eight nine".split()] + [
    ("de", word) for word in "null eins zwei drei vier fünf sechs sieben acht neun".split()
]
PITCH = (30, 70)  # of 0 ... 100; 50 is the voice's own
RATE_WORDS_PER_MIN = (130, 220)
TEST_SHARE = 0.2  # of the voices

RECIPE = 3  # part of the provenance: raise it with every change that makes other files from the same parameters


class Utterance(NamedTuple):
    """One recording to make."""

    label: int
    voice: int  # index into `variants()`
    pitch: int
    rate_words_per_min: int
    seed: tuple[int, int]


def make_digits(out_dir: Path, seed: int, voices: int, utterances: int, processes: int | None) -> None:
    """Make out_dir/digits_train.h5 and out_dir/digits_test.h5, unless they were made with the same parameters already.

    voices: how many of espeak-ng's voices are drawn by `seed`; a fifth of them speak only in the test file;
    utterances: by each voice of each of the 20 digits, at a pitch and rate drawn by `seed`;
    processes: None for one for each core; the files do not depend on it.
    Raises InputError if a parameter is out of range or the folder cannot be written.
    """
    if not 2 <= voices <= len(variants()):
        raise InputError(f"voices is {voices}: choose 2 to {len(variants())}, the number that espeak-ng has")
    if utterances < 1:
        raise InputError(f"utterances is {utterances}: choose at least 1")
    if seed < 0:
        raise InputError(f"seed is {seed}: choose 0 or more")
    provenance = {"made_by": "digits", "recipe": RECIPE, "seed": seed, "voices": voices, "utterances": utterances}
    paths = [out_dir / f"digits_{split}.h5" for split in ("train", "test")]
    if all(is_made(path, provenance) for path in paths):
        return

    splits = plan(seed, voices, utterances)
    spoken = [utterance for split in splits for utterance in split]
    tasks = [(*sound, utterance.seed) for sound, utterance in zip(speak(spoken), spoken, strict=True)]
    heard = map_in_order(_hear, tasks, processes, "hearing")
    for path, split in zip(paths, splits, strict=True):
        write_events(
            path,
            islice(heard, len(split)),
            labels=[utterance.label for utterance in split],
            keys=[word for _, word in WORDS],
            provenance=provenance,
            speakers=[utterance.voice for utterance in split],
        )


def plan(seed: int, voices: int, utterances: int) -> tuple[list[Utterance], list[Utterance]]:
    """Draw the utterances of the training and of the test file, which have no voice in common."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(variants()))[:voices]
    n_test = max(1, round(TEST_SHARE * voices))
    drawn = [
        Utterance(
            label,
            int(voice),
            pitch=int(rng.integers(*PITCH, endpoint=True)),
            rate_words_per_min=int(rng.integers(*RATE_WORDS_PER_MIN, endpoint=True)),
            seed=(seed, index),
        )
        for index, (voice, label, _) in enumerate(np.ndindex(voices, len(WORDS), utterances))
    ]
    n_train = (voices - n_test) * len(WORDS) * utterances
    drawn = [utterance._replace(voice=int(chosen[utterance.voice])) for utterance in drawn]
    return drawn[:n_train], drawn[n_train:]


def speak(utterances: list[Utterance]) -> list[tuple[np.ndarray, int]]:
    """Return the audio and sample rate in Hz (see `synthesise`) of each utterance, the same in every call."""
    # The speech of espeak-ng depends on all that it said before in the same process (jitter of the voice, noise), even
    # after its own restart. So one fresh process speaks everything, in order.
    return list(map_in_order(_speak, utterances, 1, "speaking"))


def _speak(utterance: Utterance) -> tuple[np.ndarray, int]:
    language, word = WORDS[utterance.label]
    return synthesise(word, language, variants()[utterance.voice], utterance.pitch, utterance.rate_words_per_min)


def _hear(task: tuple[np.ndarray, int, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return cochlea(*task)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `digits`."""
    parser = subparsers.add_parser(
        "digits",
        help="the 20 spoken digits of SHD from synthetic speech: nothing to download",
        description="Make digits_train.h5 and digits_test.h5: zero to nine in English (labels 0-9) and German (10-19), "
        "voices x 20 x utterances recordings. One voice in five speaks only in the test file. "
        "Files made with the same options are kept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("data/digits"), help="folder for the two files")
    parser.add_argument("--voices", type=int, default=100, help="number of voices")
    parser.add_argument("--utterances", type=int, default=1, help="number of recordings of each digit by each voice")
    parser.add_argument("--seed", type=int, default=0, help="seed of the voices, pitch, rate and the nerve's noise")
    parser.add_argument("--processes", type=int, help="worker processes; without it, one for each core")
    parser.set_defaults(run=lambda args: make_digits(args.out, args.seed, args.voices, args.utterances, args.processes))
