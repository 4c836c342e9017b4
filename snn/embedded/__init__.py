"""A trained network as C: a folder of C99 without libraries or allocation, for a microcontroller or anything else.

The C files of this folder are templates. Each `#if` on a name in capitals and each @WORD@ is resolved here, so the C
that is written has only what its network needs. Every sum is in the order of `snn.ops.stream`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn import checks
from snn.classes import name_of_each
from snn.delays import DelayedLinear
from snn.embedded.writing import Code, definition, number, quoted, resolved, size_of_struct, unsigned
from snn.errors import InputError
from snn.network import Layer, Network
from snn.ops import printer
from snn.ops.reference import Dynamics
from snn.quantise import as_int8, quantised, weights

HERE = Path(__file__).parent
FILES = ("network.h", "network.c", "main.c", "Makefile", "README.md")
BLOCK = 4  # neurons: a small processor keeps this many sums in registers, and few rows need padding
GAP = 2**8 - 1  # neurons: the longest step from one stored weight of an input to the next, kept in a byte
LARGEST = 2**16  # inputs and neurons are numbered with 16 bits


def code(
    network: Network,
    dt_ms: float,
    T: int,
    T_empty: int = 0,
    class_names: Sequence[str] | None = None,
    int8: bool = False,
    most_late: int = 2**8 - 1,
) -> Code:
    """Return C that decides as `snn.streaming.Stream` does on events whose times are whole microseconds.

    With `int8` the weights are those of `quantised(network)`, one byte each. Counts of channels whose events come late
    wait in memory: `most_late` is the largest count, and an event beyond it is refused. InputError for a network that
    this C cannot express.
    """
    if network.image is not None:
        raise InputError("the formats c and html take fully connected networks; this one has convolutions or pools")
    step_us = round(1000 * dt_ms)
    if step_us < 1 or not math.isclose(step_us, 1000 * dt_ms, rel_tol=1e-12):
        raise InputError(
            f"the formats c and html count time in microseconds, but dt_ms {dt_ms:g} is not a whole number of them"
        )
    if (T + T_empty) * step_us >= 2**32:
        raise InputError(
            f"the formats c and html count microseconds in 32 bits, but the window has {(T + T_empty) * step_us:,}"
        )
    checks.weights("the network", network.output.linear.weight)
    if network.output.linear.weight.dtype != torch.float32:
        raise InputError("the formats c and html take float32 networks; convert this one with network.float()")
    network.check_values("the network")
    network = (quantised if int8 else Network.folded)(network)
    sizes = [network.num_channels, *(layer.linear.out_features for layer in network.layers)]
    arriving = [len(layer.linear.weight.T) for layer in network.layers]  # an input may arrive several times
    if (most := max(*sizes, *arriving)) > LARGEST:
        raise InputError(f"the formats c and html number inputs and neurons with 16 bits, but a layer has {most:,}")
    most_events = most_late if getattr(network.layers[0].linear, "per", None) == "input" else 2**16 - 1
    if int8:
        most_events = min(most_events, (2**31 - 1) // (127 * arriving[0]))
    types = {
        "SUM": "int32_t" if int8 else "float",
        "WEIGHT": "int8_t" if int8 else "float",
        "CHANNEL": unsigned(sizes[0] - 1),
        "COUNT": unsigned(most_events),
        "START": unsigned(max(int(each.count_nonzero()) + each.numel() // GAP for each in weights(network))),
    }
    layers = [_printed(k, layer, layer is network.output, types) for k, layer in enumerate(network.layers, 1)]
    neurons = {layer.neuron.name: printer.c(layer.neuron) for layer in layers}
    arrays = [array for layer in layers for array in layer.arrays]
    names = name_of_each(class_names, sizes[-1])
    functions = ("TAKES_BITS", "SUMS_ROWS", "SUMS_NONZEROS")
    flags = {function: any(layer.flags[function] for layer in layers) for function in functions}
    flags |= {"INT8": int8, "ADDS_PRODUCTS": not int8 and (flags["SUMS_ROWS"] or flags["SUMS_NONZEROS"])}
    words = types | {
        "TITLE": f"A first-spike network {'-'.join(map(str, sizes))} with {'int8' if int8 else 'float32'} weights.",
        "CHANNELS": sizes[0],
        "CLASSES": sizes[-1],
        "CLASS_NAMES": ", ".join(map(quoted, names)),
        "STEP_US": step_us,
        "STEPS": T,
        "EMPTY_STEPS": T_empty,
        "LAYERS": len(layers),
        "NEURONS": ", ".join(map(str, sizes[1:])),
        "WIDEST": max(sizes[1:]),
        "ARRIVING": arriving[0],
        "MOST_ARRIVING": max([*sizes[1:], *arriving[1:]]),
        "WIDEST_ROW": _filled(max(sizes[1:])),
        "BLOCK": BLOCK,
        "MOST_EVENTS": most_events,
        "STATES": "\n".join(struct for struct, _, _ in neurons.values()),
        "MEMORY": "".join(_template("layer.h", layer) for layer in layers).rstrip(),
        "NEURON_STEPS": "\n\n".join(function for _, function, _ in neurons.values()),
        "LAYER_STEPS": "\n".join(_template("layer.c", layer) for layer in layers).rstrip(),
        "CALLS": "\n".join(f"    run_layer_{k}(net);" for k in range(1, len(layers) + 1)),
    }
    files = {name: resolved((HERE / name).read_text(encoding="utf-8"), flags, words) for name in FILES[:-1]}
    said = "\n   ".join(line for layer in layers for line in layer.stored)
    files["weights.h"] = "".join([f"/* {said} */\n#include <stdint.h>\n", *map(definition, arrays)])
    constants_bytes, state_bytes = sum(array.nbytes for _, array in arrays), size_of_struct(files["network.h"])
    words |= {"CONSTANTS": f"{constants_bytes:,}", "STATE": f"{state_bytes:,}"}
    files["README.md"] = resolved((HERE / "README.md").read_text(encoding="utf-8"), flags, words)
    return Code(files, constants_bytes, state_bytes)


class Printed(NamedTuple):
    """A layer for the templates `layer.h` and `layer.c`."""

    neuron: Dynamics
    flags: dict[str, bool]
    words: dict[str, object]
    arrays: list[tuple[str, np.ndarray]]
    stored: list[str]  # a line about each matrix of weights


def _printed(k: int, layer: Layer, is_output: bool, types: Mapping[str, str]) -> Printed:
    """Print layer k, counted from 1."""
    linear, module = layer.linear, layer.neurons
    neuron, feedback = module.dynamics, module.feedback
    (N, C), int8, arrays, stored = linear.weight.shape, types["WEIGHT"] == "int8_t", [], []

    def add(name: str, array: Tensor | np.ndarray) -> None:
        array = array.detach().numpy() if isinstance(array, Tensor) else array
        arrays.append((f"{name}_{k}", np.ascontiguousarray(array)))

    def add_weights(prefix: str, weight_NC: Tensor, whole_NC: Tensor | None = None) -> bool:
        """Add a matrix, with the delays of its synapses if they have any; return whether its zeros are left out."""
        if int8:
            weight_NC, scale_N = as_int8(weight_NC)
            add(f"{prefix}scales", scale_N)
        parts = _stored(weight_NC.detach().T.numpy(), None if whole_NC is None else _delays(whole_NC.T), types)
        for name, array in parts.items():
            add(f"{prefix}{name}", array)
        is_sparse, size_bytes = "starts" in parts, sum(array.nbytes for array in parts.values())
        few = f"the {np.count_nonzero(parts['weights']):,} that are not 0 of " if is_sparse else ""
        stored.append(f"{prefix}weights_{k}: {few}{weight_NC.shape[1]} * {N}; {size_bytes:,} bytes")
        return is_sparse

    words = dict(types) | {"K": k, "INDEX": k - 1, "BEFORE": k - 2, "NEURON": neuron.name}
    words |= {
        "INPUTS": C,
        "SENT": linear.in_features,
        "FIRST_LATE": C - linear.in_features,
        "N": N,
        "ROW": _filled(N),
        "INPUT_BYTES": -(-C // 8),
        "BYTES": -(-N // 8),
    }
    words["COUNTS"] = "net->counts" if k == 1 else "NULL"
    per, whole = None, None
    if isinstance(linear, DelayedLinear):
        per, (whole, _) = linear.per, linear.taps()
        words["D"] = int(whole.max()) + 1
    is_sparse = add_weights("", linear.weight, whole if per == "synapse" else None)
    summed = [] if per == "synapse" else [is_sparse]  # for each matrix whose rows are summed: are zeros left out?
    if per == "input":
        add("input_delays", _delays(whole))
    if linear.bias is not None:
        add("biases", linear.bias)
    if feedback is not None:
        summed.append(add_weights("recurrent_", feedback.V_NN))
    delays = feedback is not None and feedback.delay_N is not None
    if delays:
        words["RETURN_D"] = int(feedback.delay_N.max()) + 1
        add("recurrent_delays", _delays(feedback.delay_N))
    values = module.values()
    said = []
    for name in printer.c(neuron)[2]:
        if len(values[name].unique()) == 1:
            said.append(number(values[name].detach().numpy().flat[0]))
        else:
            add(f"{neuron.name}_{name}", values[name])
            said.append(f"{neuron.name}_{name}_{k}[n]")
    words["VALUES"] = "".join(f", {word}" for word in said)
    flags = {
        "INPUT": k == 1,
        "OUTPUT": is_output,
        "INT8": int8,
        "BIAS": linear.bias is not None,
        "AXONAL": per == "input",
        "TWICE": linear.in_features < C,
        "SYNAPTIC": per == "synapse",
        "RECURRENT": feedback is not None,
        "RECURRENT_DELAYS": delays,
        "SPIKE_FIRST": neuron.spike_first,
        "SPARSE": is_sparse,
        "RECURRENT_SPARSE": feedback is not None and summed[-1],
        "TAKES_BITS": delays or (per == "input" and k > 1),
        "SUMS_ROWS": False in summed,
        "SUMS_NONZEROS": True in summed,
    }
    return Printed(neuron, flags, words, arrays, stored)


def _stored(weight_CN: np.ndarray, late_CN: np.ndarray | None, types: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return weights and delays of synapses as arrays by name: all, or only those that are not 0 if that is smaller.

    In the second case, input c has weights[starts[c]] to weights[starts[c + 1] - 1]. `gaps` holds the number of the
    neuron of the first weight, and for each other one the distance to its neuron from that of the weight before. Zeros
    bridge gaps of more than GAP.
    """
    C, N = weight_CN.shape
    if late_CN is None:  # sums of whole blocks
        everything = {"weights": np.pad(weight_CN, ((0, 0), (0, _filled(N) - N)))}
    else:
        everything = {"weights": weight_CN, "synapse_delays": late_CN}
    is_kept_CN = weight_CN != 0
    is_kept_CN[:, GAP : N - 1 : GAP] = True
    inputs, targets = is_kept_CN.nonzero()
    starts = inputs.searchsorted(np.arange(C + 1))
    is_first = np.isin(np.arange(len(inputs)), starts)
    gaps = np.where(is_first, targets, np.diff(targets, prepend=0))
    few = {
        "weights": weight_CN[inputs, targets],
        "gaps": gaps.astype(np.uint8),
        "starts": starts.astype(types["START"].removesuffix("_t")),
    }
    if late_CN is not None:
        few["synapse_delays"] = late_CN[inputs, targets]
    sizes = [sum(array.nbytes for array in parts.values()) for parts in (few, everything)]
    return few if len(inputs) and sizes[0] < sizes[1] else everything


def _filled(width: int) -> int:
    """Round up to a whole number of blocks."""
    return -(-width // BLOCK) * BLOCK


def _delays(whole: Tensor) -> np.ndarray:
    """Return delays in steps, in the smallest type that holds them."""
    return whole.detach().numpy().astype(np.min_scalar_type(int(whole.max())))


def _template(name: str, layer: Printed) -> str:
    return resolved((HERE / name).read_text(encoding="utf-8"), layer.flags, layer.words)
