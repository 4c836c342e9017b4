"""Speech from espeak-ng, which comes with the package `espeakng_loader`: no system package is needed."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock

import espeakng_loader
import numpy as np

from snn.errors import InputError

# From espeak-ng's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS, CHARS_UTF8, POSITION_CHARACTER = 2, 1, 1
RATE_WORDS_PER_MIN, PITCH = 1, 3
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

ONE_AT_A_TIME = Lock()  # espeak-ng has one state a process

SILENCE = 0.01  # of the peak: quieter sound at either end is trimmed


@cache
def _library() -> tuple[ctypes.CDLL, int]:
    """Return the initialised library and the sample rate of its speech in Hz."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data_parent = str(Path(espeakng_loader.get_data_path()).parent)
    sample_rate_hz = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data_parent.encode(), 0)
    if sample_rate_hz <= 0:
        raise RuntimeError(f"espeak-ng did not start: code {sample_rate_hz}, data in {data_parent}")
    # espeak-ng seeds the noise of the breathing voices (f2, whisper and others) with the time of day.
    library.espeak_ng_SetRandSeed(ctypes.c_long(0))
    return library, sample_rate_hz


def variants() -> list[str]:
    """Return the names of espeak-ng's voice variants, sorted."""
    return sorted(path.name for path in (Path(espeakng_loader.get_data_path()) / "voices" / "!v").iterdir())


def synthesise(text: str, language: str, variant: str, pitch: int, rate_words_per_min: int) -> tuple[np.ndarray, int]:
    """Speak `text` in a language ("en", "de", ...) with a voice of `variants()`.

    pitch: 0 to 100, 50 is the variant's own; rate_words_per_min: 80 to 450, 175 is usual.
    Returns audio, float32 [samples] in -1 to 1, without the silence at both ends, and its sample rate in Hz.
    Raises InputError if espeak-ng does not know the language or the variant.
    """
    # In another thread, because Ctrl-C may fall into Python code of the main thread alone, which espeak-ng calls back,
    # and nothing is raised out of a callback. That thread may go on for a while after Ctrl-C: all is its own.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_synthesise, text, language, variant, pitch, rate_words_per_min).result()


def _synthesise(text: str, language: str, variant: str, pitch: int, rate_words_per_min: int) -> tuple[np.ndarray, int]:
    chunks: list[np.ndarray] = []

    @CALLBACK
    def collect(samples, n_samples, _events):
        if samples and n_samples > 0:
            chunks.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
        return 0  # go on

    with ONE_AT_A_TIME:
        library, sample_rate_hz = _library()
        if variant not in variants():
            raise InputError(f"espeak-ng has no voice variant {variant!r}: choose from {', '.join(variants())}")
        if library.espeak_SetVoiceByName(f"{language}+{variant}".encode()) != 0:
            raise InputError(f"espeak-ng has no language {language!r}: use a code such as en or de")
        library.espeak_SetParameter(PITCH, pitch, 0)
        library.espeak_SetParameter(RATE_WORDS_PER_MIN, rate_words_per_min, 0)
        library.espeak_SetSynthCallback(collect)
        encoded = text.encode()
        code = library.espeak_Synth(encoded, len(encoded) + 1, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None)
    if code != 0 or not chunks:
        raise RuntimeError(f"espeak-ng failed to speak {text!r}: code {code}")
    audio = np.concatenate(chunks).astype(np.float32) / 2**15
    heard = np.flatnonzero(np.abs(audio) > SILENCE * np.abs(audio).max())
    return audio[heard[0] : heard[-1] + 1], sample_rate_hz
