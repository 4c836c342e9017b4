"""Hear a word and decide at the first spike: python demo.py [some.wav] [--load_pt_file runs/<name>/best.pt]

The artificial cochlea turns the sound into events, and the network takes them as they come. The program says when the
network decides and draws audio, events, output potentials and spikes on one time axis. Without a file it takes a word
that a test voice of the set `digits` says; without a checkpoint it takes the newest run. With --udp or --stdin it takes
events that a camera, a cochlea or `python -m datasets.send` sends.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import snn  # comes first, because it says which packages are missing
from snn import cli

if __name__ == "__main__":
    cli.end_at_ctrl_c()
    snn.need("matplotlib", extra="report")

# isort: split
import numpy as np

from datasets import live
from datasets.binning import Bins, bin_events
from datasets.prepare import digits, speech
from datasets.prepare.cochlea import N_PLACES, cochlea
from datasets.prepare.wav import read_audio
from datasets.recordings import Recordings, as_inputs
from snn import arguments, checkpoint, config, pictures
from snn.errors import InputError
from snn.files import write_whole
from snn.lettering import why_numbers
from snn.network import Network
from snn.streaming import Stream


def main() -> None:
    args = read_command_line()
    path = arguments.find_checkpoint(args.load_pt_file or newest_run())
    network, cfg, content = checkpoint.load_network(path, "cpu")
    if not isinstance(network, Network):
        raise InputError(f"{path}: the network takes images, not events; choose another with --load_pt_file")
    data, names = cfg.data, content["class_names"]
    bins = Bins.of(data, "test")
    is_live = args.udp is not None or args.stdin
    if not is_live and data.channels != N_PLACES:
        shape = data.channels or "x".join(map(str, data.shape))
        raise InputError(f"{path}: the network takes {shape} channels, but the cochlea has {N_PLACES}; choose another")
    network = network.folded()
    if is_live:
        follow(args, network, data, bins, names)
        return

    if args.wav:
        audio, rate_hz = read_audio(args.wav)
        print(f"hearing {args.wav}")
    else:
        said = digits.plan(seed=0, voices=100, utterances=1)[1]
        if not 0 <= args.recording < len(said):
            raise InputError(f"--recording {args.recording}: choose 0 to {len(said) - 1}")
        ((audio, rate_hz),) = digits.speak([said[args.recording]])
        voice = speech.variants()[said[args.recording].voice]
        print(f"hearing '{digits.WORDS[said[args.recording].label][1]}', said by the voice '{voice}'")
    length_ms = 1000 * len(audio) / rate_hz
    heard = as_inputs(one_recording(*cochlea(audio, rate_hz, 0)), data)
    times_s, channels = heard.times, heard.channels

    stream = Stream(network, bins.dt_ms, bins.T, bins.T_empty)
    decision, ends = None, np.searchsorted(times_s, np.arange(0, length_ms, bins.dt_ms)[1:] / 1000)
    for few in np.split(np.arange(len(times_s)), ends):  # the events of one step
        if decision := stream.push(times_s[few], channels[few]):
            break
    decision = decision or stream.finish()
    work = stream.work
    if decision is None:
        raise InputError("nothing was heard within the window: no decision")
    name = pictures.class_name(decision.label, names)
    if decision.step is None:
        print(
            f"no output spike in {bins.dt_ms * (bins.T + bins.T_empty):g} ms; the highest potential decides for {name}"
        )
    else:
        print(f"at {decision.time_ms:g} ms of {length_ms:.0f}: {name}")
    print(f"{work.events:,} of {len(times_s):,} events, {work.synaptic_operations:,} synaptic operations")

    x_T1C = bin_events(heard, np.zeros(1, np.int64), bins)
    figure = pictures.draw_decision(network, x_T1C, bins.dt_ms, names=names, audio=(audio, rate_hz))
    write_whole(args.out, pictures.png(figure))
    print(f"picture in {args.out}")
    if why := why_numbers(names):
        print(f"warning: {why}", file=sys.stderr)


def one_recording(times_s: np.ndarray, units: np.ndarray) -> Recordings:
    return Recordings(np.array([0, len(times_s)]), times_s, 1.0, units, np.zeros(1, np.int64), None, "demo")


def follow(args: argparse.Namespace, network: Network, data: config.Data, bins: Bins, names: list[str] | None) -> None:
    """Decide on live events, recording by recording, until they end or Ctrl-C is pressed."""
    sensor = (data.sensor.height, data.sensor.width) if data.sensor else (1, data.channels)
    units = np.arange(data.num_units)
    channel_of_unit = as_inputs(one_recording(units, units), data).channels
    if not data.sensor:
        channel_of_unit = np.tile(channel_of_unit, 2)  # a cochlea has no polarities
    stream = Stream(network, bins.dt_ms, bins.T, bins.T_empty, ticks_per_second=1e6)
    stream.push([0], [0])  # compiles the kernels before the first event comes
    layout = args.layout or (live.PIPE_LAYOUT if args.stdin else live.UDP_LAYOUT)
    source = live.Source(sys.stdin.buffer if args.stdin else live.listen(args.udp, args.host), layout, sensor)
    where = "the standard input" if args.stdin else f"UDP port {args.udp} of {args.host}"
    print(f"waiting for events from {where} ({layout})", flush=True)
    try:
        longest_us = round(1000 * bins.dt_ms * (bins.T + bins.T_empty))
        for number, recording in enumerate(source.recordings(longest_us)):
            stream.reset()
            decision, arrived_s = None, 0.0
            for chunk in recording:
                arrived_s = chunk.arrived_s if len(chunk.units) else arrived_s
                if decision := stream.push(chunk.times_us, channel_of_unit[chunk.units]):
                    break
            if decision := decision or stream.finish():
                at = f"at {decision.time_ms:g} ms" if decision.step else "by the highest potential"
                latency_ms = 1000 * (time.perf_counter() - arrived_s)
                name = pictures.class_name(decision.label, names)
                print(f"recording {number}: {name} {at}, {latency_ms:.2f} ms after its last event came", flush=True)
    finally:
        print(", ".join(f"{value:,} {name}" for name, value in vars(source.counts).items()))


def read_command_line() -> argparse.Namespace:
    parser = cli.OneLineParser(description=__doc__)
    parser.add_argument("wav", type=Path, nargs="?", help="WAV, FLAC, OGG or MP3; without it, a word of `digits`")
    parser.add_argument("--load_pt_file", type=Path, metavar="PT", help="checkpoint, run folder or run name")
    parser.add_argument("--recording", type=int, help="which word of the test voices, 0 to 399 (0)")
    live_events = parser.add_mutually_exclusive_group()
    live_events.add_argument("--udp", type=int, metavar="PORT", help="decide on events that arrive there, until Ctrl-C")
    live_events.add_argument("--stdin", action="store_true", help="decide on events from the standard input")
    parser.add_argument("--host", help=f"where --udp listens ({live.HOST}, for this machine; 0.0.0.0: for all)")
    parser.add_argument("--layout", help=f"layout of live events ({live.UDP_LAYOUT}; with --stdin {live.PIPE_LAYOUT})")
    parser.add_argument("--out", type=Path, help="picture to write (demo.png)")
    args = parser.parse_args()
    is_live = args.udp is not None or args.stdin
    of_sounds = {"a sound": args.wav, "--recording": args.recording, "--out": args.out}
    if is_live and (given := [word for word, value in of_sounds.items() if value is not None]):
        parser.error(f"{given[0]} is not for live events (--udp, --stdin)")
    if not is_live and args.layout:
        parser.error("--layout is for live events (--udp, --stdin)")
    if args.udp is None and args.host:
        parser.error("--host is for --udp")
    if args.wav and args.recording is not None:
        parser.error("--recording chooses a word of `digits`; leave it or the sound out")
    if args.out and (args.out.is_dir() or not args.out.parent.is_dir() or not os.access(args.out.parent, os.W_OK)):
        raise InputError(f"{args.out}: cannot be written; choose another --out")
    args.recording, args.out, args.host = args.recording or 0, args.out or Path("demo.png"), args.host or live.HOST
    return args


def newest_run() -> Path:
    """Return the path of best.pt of the run that was trained last."""
    found = sorted(Path("runs").glob("*/best.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError("there is no runs/*/best.pt yet; train one with bash run.sh, or name one with --load_pt_file")
    return found[-1]


if __name__ == "__main__":
    cli.run(main)
