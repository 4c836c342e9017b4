"""The data set `planes`: four aircraft cross the view of an event camera. It is simulated; nothing is downloaded.

It stands in for DVSPlane (Afshar et al., Front. Neurosci. 13 (2019)), where model aircraft are dropped in front of an
ATIS camera of 304 x 240 pixels, and has its layout, classes and busy parts. Outlines are drawn by eye. A dark flat
silhouette falls over a bright, even background at constant speed, with random pose, size, contrast, place and spin.

The pixel is the usual one (Lichtsteiner, Posch, Delbruck, IEEE J. Solid-State Circuits 43 (2008) 566): it memorises the
logarithm of its light, sends an event when the light has moved from it by a threshold, is dead for a while, and then
memorises again. Thresholds differ from pixel to pixel. Noise events come at random times and places.
"""

from __future__ import annotations

import argparse
import math
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from datasets.prepare.dvsplane import CLASSES, HEIGHT, WIDTH, busy_part
from datasets.prepare.parallel import map_in_order
from datasets.prepare.writer import is_made, write_camera
from snn.compiling import inlined, kernel
from snn.errors import InputError

# The right halves of the outlines from nose to tail, (across, along) in units of the aircraft's length.
OUTLINES = {
    "F117": "0,.5 .33,-.3 .335,-.36 .13,-.2 .07,-.3 .12,-.47 .1,-.5 .04,-.38 0,-.34",
    "Mig31": "0,.5 .015,.45 .03,.35 .035,.25 .07,.22 .08,.06 .297,-.13 .297,-.21 .085,-.22 .085,-.3 .19,-.43 .19,-.49 "
    ".085,-.44 .075,-.5 .01,-.5 0,-.47",
    "Su24": "0,.5 .02,.43 .035,.3 .06,.25 .065,.12 .13,0 .39,-.08 .39,-.13 .14,-.14 .08,-.17 .075,-.28 .2,-.4 .2,-.47 "
    ".08,-.46 .06,-.5 0,-.5",
    "Su35": "0,.5 .02,.44 .03,.33 .05,.22 .09,.05 .11,.02 .34,-.19 .35,-.17 .35,-.27 .13,-.24 .13,-.3 .23,-.39 "
    ".23,-.46 .12,-.43 .1,-.47 .04,-.47 .03,-.4 .015,-.5 0,-.5",
}
TEST_SHARE = 0.2

# Flight: each of these is drawn evenly from its range.
LENGTH_PX = (75, 110)
CROSSING_S = (0.22, 0.26)  # from out of view above to out of view below
DIRECTION = (-0.35, 0.35)  # of the fall, rad from straight down
OFFSET_PX = (-70, 70)  # of the way from the middle of the view
HEADING = (-1.0, 1.0)  # of the nose, rad from the direction of the fall
SPIN_PER_S = (-2.0, 2.0)  # rad/s
FORESHORTENING = (0.75, 1.0)  # of length and of width, each
CONTRAST = (0.45, 0.8)  # ln(light of the ground / light of the aircraft)
QUIET_S = 0.05  # before and after

# Camera
STEP_US = 500.0  # light changes linearly within a step, in which an aircraft flies about 0.7 pixels
BLUR_PX = 1.0  # σ of the lens, at the mean length
THRESHOLD, MISMATCH = 0.25, 0.04  # of ln light, and σ of a pixel's own threshold in units of it
REFRACTORY_US = 1000.0
NOISE_HZ = 0.1  # of a pixel

TEXELS = 256  # of a side of a silhouette's picture, which is EXTENT lengths wide
EXTENT = 1.1

RECIPE = 1  # part of the provenance: raise it with every change that makes other files from the same parameters


class Flight(NamedTuple):
    """The path of an aircraft across the view. Angles are in rad; x to the right and y down, in pixels."""

    length_px: float
    x0: float  # of the middle of the aircraft, at the start
    y0: float
    vx_per_us: float
    vy_per_us: float
    heading: float  # of the nose from straight down, at the start
    spin_per_us: float
    along: float  # foreshortening of the length and of the width
    across: float
    contrast: float
    duration_us: float


def make_planes(out_dir: Path, seed: int, recordings: int, processes: int | None) -> None:
    """Make out_dir/planes-train.hdf5 and planes-test.hdf5, unless they were made with the same parameters already.

    recordings: the number in both files together, equal for all classes; a fifth of them are in the test file;
    processes: None for one for each core; the files do not depend on it.
    Raises InputError if a parameter is out of range or the folder cannot be written.
    """
    if recordings < 20 or recordings % 20:
        raise InputError(
            f"recordings is {recordings}: choose a multiple of 20: 4 classes, with a fifth in the test file"
        )
    if seed < 0:
        raise InputError(f"seed is {seed}: choose 0 or more")
    provenance = {"made_by": "planes", "recipe": RECIPE, "seed": seed, "recordings": recordings}
    paths = [out_dir / f"planes-{split}.hdf5" for split in ("train", "test")]
    if all(is_made(path, provenance) for path in paths):
        return
    n_test = round(TEST_SHARE * recordings)
    seen = map_in_order(partial(_record, seed), range(recordings), processes, "planes")
    for path, number in zip(paths, (recordings - n_test, n_test), strict=True):
        write_camera(path, "", (next(seen) for _ in range(number)), np.uint16, provenance)


def _record(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Make recording number `index`: times in µs from its first event, x y polarity, label."""
    label = index % len(CLASSES)
    random = np.random.default_rng((seed, index))
    flight = draw_flight(random)
    times_us, data = camera(silhouette(CLASSES[label]), flight, thresholds(seed), random)
    part = busy_part(times_us)
    return times_us[part] - times_us[part.start], data[part], label


def draw_flight(random: np.random.Generator) -> Flight:
    """Draw a flight from above the view to below it."""
    length_px = random.uniform(*LENGTH_PX)
    direction = random.uniform(*DIRECTION)
    crossing_us = 1e6 * random.uniform(*CROSSING_S)
    way_y = HEIGHT + length_px
    speed_y = way_y / crossing_us
    speed_x = speed_y * math.tan(direction)
    duration_us = crossing_us + 2e6 * QUIET_S
    return Flight(
        length_px,
        x0=WIDTH / 2 + random.uniform(*OFFSET_PX) - speed_x * duration_us / 2,
        y0=HEIGHT / 2 - speed_y * duration_us / 2,
        vx_per_us=speed_x,
        vy_per_us=speed_y,
        heading=direction + random.uniform(*HEADING),
        spin_per_us=1e-6 * random.uniform(*SPIN_PER_S),
        along=random.uniform(*FORESHORTENING),
        across=random.uniform(*FORESHORTENING),
        contrast=random.uniform(*CONTRAST),
        duration_us=duration_us,
    )


@cache
def silhouette(name: str) -> np.ndarray:
    """Draw the aircraft's picture [TEXELS, TEXELS], float32: 1 inside and 0 outside, blurred; nose towards row 0."""
    half = np.array([point.split(",") for point in OUTLINES[name].split()], np.float64)
    outline = np.concatenate([half, half[::-1] * (-1, 1)])
    middles = (np.arange(TEXELS) + 0.5) / TEXELS * EXTENT - EXTENT / 2
    inside = _inside(outline, middles)
    mean_length_px = sum(LENGTH_PX) / 2
    return gaussian_filter(inside.astype(np.float32), BLUR_PX / mean_length_px * TEXELS / EXTENT)


@kernel
def _inside(outline, middles):
    """Return where a ray to the right crosses the outline an odd number of times. Row 0 has the largest `along`."""
    inside = np.zeros((len(middles), len(middles)), np.bool_)
    for row in range(len(middles)):
        y = -middles[row]
        for column in range(len(middles)):
            for k in range(len(outline)):
                (x0, y0), (x1, y1) = outline[k - 1], outline[k]
                if (y0 > y) != (y1 > y) and middles[column] < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
                    inside[row, column] ^= True
    return inside


@cache
def thresholds(seed: int) -> np.ndarray:
    """Draw the threshold of each pixel of the camera [HEIGHT, WIDTH], in ln light."""
    random = np.random.default_rng((seed, 0, 1))  # a stream that no recording has
    return (THRESHOLD * (1 + MISMATCH * random.standard_normal((HEIGHT, WIDTH)))).astype(np.float32)


def camera(
    picture: np.ndarray, flight: Flight, threshold: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the events of a flight by time: times in µs, int64 [events]; x y polarity, uint16 [events, 3]."""
    times_us, data = _watch(picture, flight, threshold)
    noise = random.poisson(NOISE_HZ * 1e-6 * flight.duration_us * HEIGHT * WIDTH)
    times_us = np.concatenate([times_us, random.uniform(0, flight.duration_us, noise)]).astype(np.int64)
    data = np.concatenate([data, random.integers(0, (WIDTH, HEIGHT, 2), (noise, 3), np.uint16)])
    order = np.argsort(times_us, kind="stable")
    return times_us[order], data[order]


@kernel
def _watch(picture, flight, threshold):
    """Return every pixel's events, step by step: times in µs, float64 [events]; x y polarity, uint16 [events, 3]."""
    light = np.zeros((HEIGHT, WIDTH), np.float32)  # ln light of each pixel at the last step, from that of the ground
    memory = np.zeros((HEIGHT, WIDTH), np.float32)  # ln light that it memorised
    ready_us = np.zeros((HEIGHT, WIDTH), np.float64)  # when its dead time ends
    times_us, data, n = np.empty(1 << 15, np.float64), np.empty((1 << 15, 3), np.uint16), 0
    reach = EXTENT / math.sqrt(2) * flight.length_px + 2  # of the picture from its middle, and of a step
    for step in range(1, int(flight.duration_us / STEP_US) + 1):
        now_us = step * STEP_US
        x_middle, y_middle = flight.x0 + now_us * flight.vx_per_us, flight.y0 + now_us * flight.vy_per_us
        angle = flight.heading + now_us * flight.spin_per_us
        scale = TEXELS / EXTENT / flight.length_px
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        for y in range(max(0, int(y_middle - reach)), min(HEIGHT, int(y_middle + reach))):
            for x in range(max(0, int(x_middle - reach)), min(WIDTH, int(x_middle + reach))):
                dx, dy = x - x_middle, y - y_middle
                # the nose, at row 0, points down the view at angle 0
                row = TEXELS / 2 - 0.5 - (dx * sin + dy * cos) / flight.along
                column = TEXELS / 2 - 0.5 + (dx * cos - dy * sin) / flight.across
                before, after = light[y, x], np.float32(-flight.contrast * _between_texels(picture, row, column))
                if before == after == memory[y, x]:
                    continue
                light[y, x] = after
                t_us = now_us - STEP_US
                if ready_us[y, x] > t_us:
                    t_us = ready_us[y, x]
                    if t_us > now_us:
                        continue
                    memory[y, x] = after + (before - after) * (now_us - t_us) / STEP_US
                slope = (after - before) / STEP_US
                while True:  # one event after another, until the light stays within the threshold up to this step
                    rise = after - memory[y, x]
                    if abs(rise) < threshold[y, x]:
                        break
                    crossed_us = now_us - (abs(rise) - threshold[y, x]) / abs(slope)
                    t_us = max(t_us, crossed_us)
                    if n == len(times_us):
                        times_us = np.append(times_us, np.empty_like(times_us))
                        data = np.concatenate((data, np.empty_like(data)))
                    times_us[n] = t_us
                    data[n, 0], data[n, 1], data[n, 2] = x, y, rise > 0
                    n += 1
                    t_us += REFRACTORY_US
                    ready_us[y, x] = t_us
                    if t_us > now_us:
                        break
                    memory[y, x] = after - slope * (now_us - t_us)
    return times_us[:n], data[:n]


@inlined
def _between_texels(picture, row, column):
    """Interpolate the picture linearly between its texels; 0 outside."""
    if not (0 <= row < TEXELS - 1 and 0 <= column < TEXELS - 1):
        return np.float32(0)
    i, j = int(row), int(column)
    r, c = np.float32(row - i), np.float32(column - j)
    above = picture[i, j] + c * (picture[i, j + 1] - picture[i, j])
    below = picture[i + 1, j] + c * (picture[i + 1, j + 1] - picture[i + 1, j])
    return above + r * (below - above)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `planes`."""
    parser = subparsers.add_parser(
        "planes",
        help="four aircraft before a simulated event camera: nothing to download",
        description="Make planes-train.hdf5 and planes-test.hdf5 in the layout of DVSPlane: silhouettes of F117, "
        "Mig31, Su24 and Su35 (labels 0-3) cross the view of an event camera of 304 x 240 pixels. One recording in "
        "five is in the test file. Files made with the same options are kept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("data/planes"), help="folder for the two files")
    parser.add_argument("--recordings", type=int, default=800, help="number of recordings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the flights, the pixels' thresholds and the noise")
    parser.add_argument("--processes", type=int, help="worker processes; without it, one for each core")
    parser.set_defaults(run=lambda args: make_planes(args.out, args.seed, args.recordings, args.processes))
