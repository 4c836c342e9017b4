"""The configurations of both kinds of networks: every option with its type, default and meaning.

An option is documented here, in `snn.schema` if all kinds have it, or in the file of its loss, and nowhere else.
`python -m snn.config` prints the list; `snn.settings` reads a YAML into these values.
"""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    field_validator,
    model_validator,
)

from snn import architecture
from snn.errors import InputError
from snn.losses import LossOptions
from snn.schema import AnyConfig, DataSet, Mark, NonNegativeInt, PositiveInt, Section, Share, Train

if TYPE_CHECKING:
    from torch import nn

NARROWS_BY = 0.01  # the factor by which the triangle of a delay narrows over a training
PRUNED_AFTER = 0.25  # of the epochs
WHOLE_AFTER = 0.8  # of the epochs, delays are whole, so that the rest of the network adapts to the rounding
Steps = Annotated[float, Field(ge=0.1)]  # a time constant τ; below this, exp(-1/τ) is practically 0

# (height, width) in pixels of the cameras behind a layout
SENSORS = {"dvsgesture": (128, 128), "dvsplane": (240, 304)}


class Sensor(Section):
    """An event camera. Its files hold units p·H·W + y·W + x at full resolution, polarity p = 0 or 1."""

    height: PositiveInt = Field(description="rows of the sensor (pixels)")
    width: PositiveInt = Field(description="columns of the sensor (pixels)")
    divide: PositiveInt = Field(1, description="an event at (x, y) counts for the pixel (x // divide, y // divide)")
    polarities: Literal[1, 2] = Field(2, description="2 keeps both polarities as two images; 1 merges them")

    @property
    def num_units(self) -> int:
        return 2 * self.height * self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (polarities, height, width) as the network sees them."""
        return self.polarities, -(-self.height // self.divide), -(-self.width // self.divide)


class Augment(Section):
    """Random changes of the events of a training recording."""

    stretch: Share = Field(0.0, description="a recording's times are multiplied by a factor of 1 ± stretch")
    time_jitter_ms: NonNegativeFloat = Field(
        0.0, description="σ of the change of each event's time; no time falls below 0 (ms)"
    )
    drop: Share = Field(0.0, description="share of the events left out")
    shift: NonNegativeInt = Field(
        0,
        description="a recording moves by up to this much, along x and y on a sensor; events that leave it are lost "
        "(channels or pixels, as the network sees them)",
    )
    flip: bool = Field(
        False, description="half of a sensor's recordings are mirrored left to right; for classes with mirror images"
    )
    zoom: Share = Field(
        0.0,
        description="the distance of all events of a recording from the middle of the channels or of the sensor is "
        "multiplied by a factor of 1 ± zoom; events that leave it are lost",
    )
    unit_jitter: NonNegativeInt = Field(
        0, description="each event moves by up to this much, independently of the others (channels or pixels)"
    )
    blend: Share = Field(
        0.0,
        description="share of the recordings that are blended with one of their class, drawn at random (now and then "
        "itself): the two move until their centres meet, and half of the events of each are kept",
    )
    mask: NonNegativeInt = Field(
        0, description="up to this many neighbouring channels (or columns) of a recording are silent"
    )
    mask_ms: NonNegativeFloat = Field(
        0.0,
        description="a recording is silent for up to this long (ms); with blend each of the two is, in its own time "
        "before they move together, so a blended recording as a whole need not be silent anywhere",
    )


class Data(DataSet):
    """Recordings of events."""

    layout: Annotated[str, Mark.MACHINE] = Field(
        "shd",
        description="layout of the files: shd, ntidigits, dvsgesture, dvsplane, or one added to datasets/layouts.py",
    )
    train_file: Annotated[str | None, Mark.TRAINING] = Field(None, description="default <dataset_name>_train.h5")
    validation_file: Annotated[str | None, Mark.TRAINING] = Field(
        None,
        description="recordings to choose the best model by; default <dataset_name>_validation.h5 if it exists, "
        "otherwise a share of the training file",
    )
    test_file: str | None = Field(
        None, description="default <dataset_name>_test.h5; only test.py reads its labels and events"
    )
    channels: PositiveInt | None = Field(None, description="channels in the files, if the input is not a sensor")
    pool: PositiveInt = Field(
        1, description="neighbouring channels become one input: an event of channel c counts for input c // pool"
    )
    sensor: Sensor | None = Field(None, description="event camera, instead of channels")
    dt_ms: PositiveFloat = Field(description="width of a time bin (ms)")
    T: PositiveInt = Field(description="number of bins; later events are dropped (steps)")
    T_empty: NonNegativeInt = Field(
        0, description="empty steps after the bins, in which a late first spike still counts (steps)"
    )
    test_T: PositiveInt | None = Field(None, description="T at test; default T (steps)")
    test_T_empty: NonNegativeInt | None = Field(None, description="T_empty at test; default T_empty (steps)")
    validation_by: Annotated[Literal["recording", "speaker"], Mark.TRAINING] = Field(
        "recording",
        description="hold out single recordings (with all windows of each), or whole speakers (the file must name "
        "them)",
    )
    test_by: Literal["recording", "speaker"] | None = Field(
        None,
        description="for a set without a test file: set aside test_share of the training file's recordings or of its "
        "speakers for test.py, the same for every seed; they are used neither for training nor for validation",
    )
    test_share: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share set aside by test_by")
    augment: Annotated[Augment, Mark.TRAINING] = Field(
        Augment(), description="random changes of the events, in training only; 0 is off"
    )
    in_memory: Annotated[bool | None, Mark.MACHINE] = Field(
        None,
        description="hold all events in memory, or read each batch from the file; default: hold them if they "
        "fill less than half of the available memory",
    )
    prepare: Annotated[str | None, Mark.MACHINE] = Field(
        None,
        description="options of `python -m datasets.prepare`, which makes the files of a set that it can make alone "
        "(digits, planes) if they are missing",
    )
    origin: Annotated[str | None, Mark.MACHINE] = Field(
        None, description="where to get the files; shown in the message about missing files"
    )

    @model_validator(mode="after")
    def _channels_or_sensor(self) -> "Data":
        if (self.channels is None) == (self.sensor is None):
            raise ValueError("give either channels, or sensor for an event camera")
        if self.sensor is not None and self.pool != 1:
            raise ValueError("pool is for channels; a sensor has divide")
        if self.sensor is None and self.augment.flip:
            raise ValueError("augment.flip is for a sensor; channels have no left and right")
        if self.layout in SENSORS and (
            self.sensor is None or (self.sensor.height, self.sensor.width) != SENSORS[self.layout]
        ):
            height, width = SENSORS[self.layout]
            raise ValueError(f"the layout {self.layout} needs a sensor of height {height} and width {width}")
        return self

    @model_validator(mode="after")
    def _one_source_of_a_test(self) -> "Data":
        if self.test_by and self.test_file:
            raise ValueError("give either test_file, or test_by for a set without a test file")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of an input step: (inputs,) or (polarities, height, width)."""
        return (-(-self.channels // self.pool),) if self.sensor is None else self.sensor.shape

    @property
    def num_units(self) -> int:
        """Return the number of channels in the files."""
        return self.channels if self.sensor is None else self.sensor.num_units

    @property
    def train_path(self) -> Path:
        return self.folder / (self.train_file or f"{self.dataset_name}_train.h5")

    @property
    def validation_path(self) -> Path | None:
        """Return the validation file, if one is named or exists."""
        path = self.folder / (self.validation_file or f"{self.dataset_name}_validation.h5")
        return path if self.validation_file or path.is_file() else None

    @property
    def test_path(self) -> Path:
        if self.test_by:
            return self.train_path
        return self.folder / (self.test_file or f"{self.dataset_name}_test.h5")


class NeuronParams(Section):
    tau_mem_steps: Steps = Field(
        description="τ_m, time constant of the membrane (steps); not read where the neuron's file has a range for it"
    )
    tau_syn_steps: Steps = Field(
        description="τ_s, time constant of the synaptic current (steps); read by neurons that have one"
    )
    theta: PositiveFloat = Field(description="θ, threshold")
    initial: dict[str, float] = Field(
        {}, description="other initial values of the neuron, by name; for a decay, its time constant (steps)"
    )


def _known_neuron(name: str) -> str:
    from snn.neurons import NEURONS  # imported here because they import torch

    if name not in NEURONS:
        raise ValueError(
            f"'{name}' is not known; choose from {', '.join(NEURONS)} (for one of your own, name its folder in the "
            "environment variable FIRST_SPIKE_NEURONS)"
        )
    return name


def _known_surrogate(name: str) -> str:
    from snn.ops.surrogate import Surrogate

    return Surrogate(name).name


NeuronName = Annotated[str, AfterValidator(_known_neuron)]


class Network(Section):
    layers: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        description=f"hidden layers, as words: {architecture.WORDS}"
    )
    neuron: NeuronName = Field(description="neuron of the hidden layers, a class of snn/neurons")
    output_neuron: NeuronName = Field("CuLIF", description="neuron of the output layer")
    neuron1: NeuronParams = Field(description="constants of the hidden layers")
    neuron2: NeuronParams = Field(
        description="constants of the output layer and, in a network with convolutions, of all fully connected layers"
    )
    tau_ada_steps: Steps = Field(
        100.0,
        description="τ_w, initial time constant of the adaptation (steps); not read where the neuron's file has a "
        "range for it",
    )
    reset: Literal["hard", "soft"] = Field("hard", description="reset to 0, or by θ")
    surrogate: Annotated[str, AfterValidator(_known_surrogate)] = Field(
        "superspike",
        description="derivative of a hidden neuron's spike: superspike, arctan, triangle, boxcar or slayer",
    )
    surrogate_slope: PositiveFloat | None = Field(None, description="slope k of the surrogate; default: as published")
    output_surrogate: Annotated[str, AfterValidator(_known_surrogate)] = Field(
        "superspike",
        description="derivative of an output neuron's spike, with the slope of its source; one of finite width "
        "(triangle, boxcar) passes no gradient far from the threshold",
    )
    values: Literal["neuron", "layer"] = Field(
        "neuron", description="one learned value per neuron (per channel of a convolution or pool) or per layer"
    )
    variant: Literal["spkjelly", "superspike"] = Field(
        "spkjelly",
        description="the published code to follow: spkjelly, which uses SpikingJelly; or superspike, plain "
        "autograd: the output is one step late, the threshold must be exceeded, and decays are clamped raw numbers",
    )
    batch_norm: bool = Field(
        True, description="BatchNorm over T·B (and an image's pixels) after each hidden linear map"
    )
    dropout: Share = Field(0.25, description="dropout after each hidden layer, with one mask per sequence")
    density: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="share of the weights of each fully connected hidden layer that stays; after a quarter of the "
        "epochs the others, which are the smallest, become 0 for good, and cost no synaptic operation",
    )
    output_delay: str | None = Field(
        None, description="learned delays of the output layer's inputs, D25, DS25 or +D25 as in layers"
    )
    delay_init_ms: Annotated[tuple[NonNegativeFloat, NonNegativeFloat], Field(strict=False)] | None = Field(
        None, description="initial delays are drawn between these two; default 0 to the longest (ms)"
    )
    delay_sigma_steps: NonNegativeFloat = Field(
        0.0,
        description="σ in the first epoch: a delay d reads step k with the weight max(0, s - |k - d|) / s², where s = "
        "1 + σ and σ falls exponentially to 0 over the epochs; 0 interpolates linearly from the start. In the "
        "last fifth of the epochs delays are whole. Those of a recurrent layer's own spikes always interpolate (steps)",
    )

    def scheduled(self, epoch: int, epochs: int) -> dict[str, float]:
        left = NARROWS_BY ** (epoch / max(1, epochs - 1))
        sigma_steps = self.delay_sigma_steps * (left - NARROWS_BY) / (1 - NARROWS_BY)
        are_whole = bool(self.delays) and epoch >= max(1, math.floor(WHOLE_AFTER * epochs))
        return {
            "delay_sigma_steps": 0.0 if are_whole else sigma_steps,
            "delays_are_whole": float(are_whole),
            "density": self.density if epoch >= min(PRUNED_AFTER * epochs, epochs - 1) else 1.0,
        }

    @property
    def delays(self) -> dict[str, architecture.Delay]:
        """Return the learned delays, by the field and word that ask for them."""
        layers = list(zip(self.layers, architecture.parse(self.layers), strict=True))
        delays = {f"layers: layer '{word}'": getattr(layer, "delay", None) for word, layer in layers}
        for word, layer in layers:
            if own := getattr(layer, "recurrent_delay_max_steps", None):
                delays[f"layers: layer '{word}', DR{own}"] = architecture.Delay("neuron", own)
        if self.output_delay is not None:
            delays["output_delay"] = architecture.parse_delay(self.output_delay)
        return {name: delay for name, delay in delays.items() if delay is not None}

    @field_validator("output_delay")
    @classmethod
    def _known_delay(cls, word: str | None) -> str | None:
        if word is not None:
            architecture.parse_delay(word)
        return word

    @field_validator("delay_init_ms")
    @classmethod
    def _rising(cls, span: tuple[float, float] | None) -> tuple[float, float] | None:
        if span is not None and span[0] > span[1]:
            raise ValueError(f"{list(span)} is not a range: the first must not be above the second")
        return span

    @field_validator("layers")
    @classmethod
    def _known_layers(cls, layers: tuple[str, ...]) -> tuple[str, ...]:
        architecture.parse(layers)
        return layers


class FirstSpikeTrain(Train):
    delay_lr: PositiveFloat = Field(
        0.1, description="learning rate of Adam for delays, which have no weight decay (steps)"
    )
    sync_batch_norm: bool = Field(
        True,
        description="with several processes, BatchNorm sees the whole batch, as in one process, and not only a share "
        "of it",
    )
    backend: Annotated[Literal["auto", "torch", "cpu", "cupy"], Mark.MACHINE] = Field(
        "auto", description="implementation that runs the neurons"
    )


class Config(AnyConfig, section="network", title="A first-spike network"):
    """Configuration of a first-spike network on recordings of events."""

    data: Data
    network: Network
    loss: LossOptions
    train: FirstSpikeTrain

    @model_validator(mode="after")
    def _layers_fit_the_input(self) -> "Config":
        try:
            architecture.shapes(self.network.layers, self.data.shape)
        except InputError as error:
            raise InputError(f"network.layers: {error}") from None
        return self

    @model_validator(mode="after")
    def _delays_fit_the_window(self) -> "Config":
        data, (_, highest_ms) = self.data, self.network.delay_init_ms or (0, 0)
        for name, delay in self.network.delays.items():
            if delay.max_steps >= data.T + data.T_empty:
                raise InputError(
                    f"network.{name}: a delay of {delay.max_steps} steps is longer than the window of "
                    f"{data.T + data.T_empty} (data.T + data.T_empty)"
                )
            if highest_ms > delay.max_steps * data.dt_ms:
                raise InputError(
                    f"network.delay_init_ms: {highest_ms:g} ms exceeds the {delay.max_steps * data.dt_ms:g} ms of "
                    f"network.{name}"
                )
        return self

    @property
    def run_name(self) -> str:
        """Return <dataset>_<code of the loss>_tau<τ_m of neuron2>_<neuron>, the published form."""
        tau, neuron = self.network.neuron2.tau_mem_steps, self.network.neuron.lower()
        return f"{self.data.run_word}_{self.loss.chosen.code}_tau{tau:g}_{neuron}"

    @property
    def settles(self) -> int:
        """Return the epoch, counted from 0, from which on weights are pruned and delays are whole, if they ever are."""
        schedules = [self.schedule(epoch) for epoch in range(self.train.epochs)]
        forms = [(now["density"], now["delays_are_whole"]) for now in schedules]
        return forms.index(forms[-1])

    def new_network(self, backend: str | None = None) -> "nn.Module":
        from snn import network  # imported here so that reading a configuration does not import torch

        data = self.data
        return network.Network(self.network, data.shape, data.num_classes, backend or self.train.backend, data.dt_ms)


class Images(DataSet):
    layout: Annotated[str, Mark.MACHINE] = Field(
        "torchvision",
        description="torchvision: mnist, fmnist, cifar10 or cifar100; npz: x_train, y_train, x_test, y_test and, "
        "optionally, class_names in <dataset_name>.npz; a layout of events, such as shd: the first event of each pixel "
        "counts",
    )
    shape: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Field(strict=False)] = Field(
        description="channels, height, width"
    )
    window_ms: PositiveFloat | None = Field(None, description="span of the events that becomes the window T (ms)")
    augment: Annotated[
        tuple[Literal["crop", "flip", "autoaugment", "cutout"], ...], Field(strict=False), Mark.TRAINING
    ] = Field(
        (),
        description="changes of training images, in this order: crop after padding, flip, AutoAugment's policy for "
        "CIFAR-10, a hole of half the height",
    )
    crop_pad: Annotated[PositiveInt, Mark.TRAINING] = Field(4, description="padding before the crop (pixels)")


class TTFS(Section):
    layers: str = Field(min_length=1, description="layer words such as 64C3 - P2 - 512F, or vgg7, vgg11")
    T: PositiveFloat = Field(1.0, description="window of a layer; its spike times lie in 0 to T")
    encoder: Literal["unit", "direct"] = Field(
        "unit", description="unit: pixels become spike times; direct: the first layer takes real numbers"
    )
    bias: bool = Field(False, description="give each neuron, or map, a learned drive from T on, when it may fire")
    standardised: bool = Field(False, description="give each neuron's weights a mean just below 0, and a learned gain")
    zero_drive_fires: bool = Field(False, description="a neuron without any drive fires at T, as published")
    grad_clip: PositiveFloat | None = Field(
        None, description="bound of the inner gradients; 1 as published; none leaves them exact"
    )


class TTFSTrain(Train):
    test_batch_size: PositiveInt = Field(500, description="batch size in validation and test")
    clip_norm: NonNegativeFloat = Field(0.0, description="largest norm of the gradient; 0 does not clip")
    lr_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        0.999, description="factor of the learning rate after each epoch"
    )
    silent_drive: NonNegativeFloat = Field(
        0.0, description="weight of the term that wakes neurons which no image of a batch made fire"
    )
    patience: Annotated[PositiveInt, Mark.RESUME] = Field(
        25,
        description="epochs without a better validation accuracy before training ends; has no effect if "
        "nothing is held out",
    )

    def scheduled(self, epoch: int, epochs: int) -> dict[str, float]:
        return {"lr": super().scheduled(epoch, epochs)["lr"] * self.lr_factor**epoch}


class TTFSConfig(AnyConfig, section="ttfs", title="A TTFS network"):
    """Configuration of a network on images whose neurons spike at most once."""

    data: Images
    ttfs: TTFS
    train: TTFSTrain

    @model_validator(mode="after")
    def _layers_fit_the_input(self) -> "TTFSConfig":
        try:
            architecture.of_single_spikes(self.ttfs.layers, self.data.shape, self.ttfs.encoder == "direct")
        except InputError as error:
            raise InputError(f"ttfs.layers: {error}") from None
        return self

    @property
    def run_name(self) -> str:
        """Return <dataset>_ttfs_<layers>."""
        return f"{self.data.run_word}_ttfs_{re.sub(r'[^A-Za-z0-9]+', '-', self.ttfs.layers).strip('-')}"

    def new_network(self, backend: str | None = None) -> "nn.Module":
        from snn.ttfs import network

        return network.TTFSNetwork(self.ttfs, self.data.shape, self.data.num_classes)


if __name__ == "__main__":
    from snn import cli, manual  # imported here because manual imports this module

    cli.run(manual.main)
