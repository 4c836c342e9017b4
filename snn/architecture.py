"""Layer lists as words, for all kinds of networks: 64C3 is a convolution, P2 a pool, 512F a fully connected layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from snn.errors import InputError

WORDS = (
    "64C3 (64 channels, 3x3 kernel, same padding), 32C5S2 (stride 2), P2 and A2 (2x2 maximum and average pools), "
    "512F (fully connected), 256R (recurrent); with learned delays of up to 25 steps, 256FD25 (one per input), "
    "256FDS25 (one per synapse), 256F+D25 (one per input, which also arrives at once, with weights of its own) and "
    "256RDR25 (one per neuron, for recurrent spikes)"
)

NAMED = {  # of neurons that spike once (Wei et al. 2023)
    "vgg7": "64C3 - 128C3 - P2 - 256C3 - 256C3 - P2 - 512C3 - 512C3 - P2",
    "vgg11": " - ".join(["128C3"] * 3 + ["P2"] + ["256C3"] * 3 + ["P2"] + ["512C3"] * 4 + ["P2"]),
}


class Conv(NamedTuple):
    """A convolution, padded by kernel // 2."""

    channels: int
    kernel: int
    stride: int


class Pool(NamedTuple):
    """A pool whose windows do not overlap."""

    kernel: int
    is_average: bool


class Delay(NamedTuple):
    """Learned delays of a layer's input, or of a recurrent layer's own spikes, each between 0 and max_steps."""

    per: Literal["input", "synapse", "neuron"]
    max_steps: int
    is_extra: bool = False  # each input also arrives at once, with weights of its own


class Full(NamedTuple):
    """A fully connected layer."""

    size: int
    is_recurrent: bool
    delay: Delay | None = None
    recurrent_delay_max_steps: int | None = None  # delays the layer's own spikes on their way back


def parse_delay(word: str) -> Delay:
    """Parse D25, DS25 or +D25. Raise InputError for anything else."""
    if not (found := re.fullmatch(r"(D|DS|\+D)([1-9]\d*)", word)):
        raise InputError(
            f"'{word}' is not a delay; write D25 (one for each input, up to 25 steps), DS25 (one for each synapse) or "
            "+D25 (one for each input, which also arrives at once)"
        )
    return Delay("synapse" if found[1] == "DS" else "input", int(found[2]), is_extra=found[1] == "+D")


def parse(words: Iterable[str]) -> tuple[Conv | Pool | Full, ...]:
    """Parse words into layers. InputError names the first word that is not a layer, or a conv or pool after 512F."""
    layers: list[Conv | Pool | Full] = []
    for word in words:
        if re.search(r"\d{10}", word):
            raise InputError(f"layer '{word:.40}': a number of more than nine digits is too large for a layer")
        if found := re.fullmatch(r"([1-9]\d*)C([1-9]\d*)(?:S([1-9]\d*))?", word):
            channels, kernel, stride = (int(number or 1) for number in found.groups())
            if kernel % 2 == 0:
                raise InputError(f"layer '{word}': the kernel of a convolution must be odd")
            layer: Conv | Pool | Full = Conv(channels, kernel, stride)
        elif found := re.fullmatch(r"([PA])([1-9]\d*)", word):
            layer = Pool(int(found[2]), is_average=found[1] == "A")
        elif found := re.fullmatch(r"([1-9]\d*)([FR])(\+?DS?[1-9]\d*)?(?:DR([1-9]\d*))?", word):
            size, kind, delay, own = found.groups()
            if own and kind == "F":
                raise InputError(f"layer '{word}': DR{own} delays the spikes of a recurrent layer; write {size}R")
            layer = Full(int(size), kind == "R", parse_delay(delay) if delay else None, int(own) if own else None)
        else:
            raise InputError(f"layer '{word}' is not known; use words such as {WORDS}")
        if layers and isinstance(layers[-1], Full) and not isinstance(layer, Full):
            raise InputError(f"layer '{word}': only fully connected layers can follow a fully connected one")
        layers.append(layer)
    return tuple(layers)


def shapes(words: Sequence[str], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shape after each layer, (channels, height, width) or (neurons,), for an input of this shape.

    InputError names the first layer that does not fit.
    """
    result: list[tuple[int, ...]] = []
    for word, layer in zip(words, parse(words), strict=True):
        if isinstance(layer, Full):
            shape = (layer.size,)
        elif len(shape) != 3:
            raise InputError(f"layer '{word}' needs an image, but the input is {shape[0]} channels; set data.sensor")
        elif isinstance(layer, Conv):
            _, height, width = shape
            shape = (layer.channels, -(-height // layer.stride), -(-width // layer.stride))
        else:
            channels, height, width = (shape[0], *(size // layer.kernel for size in shape[1:]))
            if not height * width:
                raise InputError(f"layer '{word}' is too large a pool for the {shape[1]}x{shape[2]} that reach it")
            shape = (channels, height, width)
        result.append(shape)
    return result


def of_single_spikes(
    text: str, shape: tuple[int, ...], is_direct: bool
) -> list[tuple[Conv | Pool | Full, tuple[int, ...], tuple[int, ...]]]:
    """Return the layers of a network whose neurons spike once, each with the shapes before and after it.

    `text` is the name of a network or its words, with blanks, commas or dashes between them. If the encoder is direct,
    it takes the first layer. InputError names the first word that such a network cannot have.
    """
    words = re.split(r"[\s,-]+", NAMED.get(text, text).strip())
    layers = parse(words)
    for word, layer in zip(words, layers, strict=True):
        if isinstance(layer, Full) and layer.is_recurrent:
            raise InputError(f"layer '{word}': a neuron that spikes once has no recurrent layer; write {layer.size}F")
        if isinstance(layer, Full) and layer.delay:
            raise InputError(f"layer '{word}': delays are for first-spike networks; write {layer.size}F alone")
    around = pairwise([shape, *shapes(words, shape)])
    if is_direct and isinstance(layers[0], Pool):
        raise InputError(f"{text}: the direct encoder needs a first layer with weights")
    if all(isinstance(layer, Pool) for layer in layers[is_direct:]):
        raise InputError(
            f"{text}: the network needs a layer of neurons that spike, such as 400F or 16C3, besides pools and the "
            "layer that a direct encoder takes"
        )
    return [(layer, before, after) for layer, (before, after) in zip(layers, around, strict=True)]


def resized(words: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Return the words with fully connected layers of these sizes, recurrent or delayed as before; the rest stays."""
    full = [word for word, layer in zip(words, parse(words), strict=True) if isinstance(layer, Full)]
    kinds = [word.lstrip("0123456789") for word in full] or ["F"]
    kinds += kinds[-1:] * len(sizes)
    return [*words[: len(words) - len(full)], *(f"{size}{kind}" for size, kind in zip(sizes, kinds, strict=False))]
