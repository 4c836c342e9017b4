"""Small networks with their inputs, for event vectors and for images."""

import math

import torch
import torch.nn.functional as F

from snn import config, settings
from snn.network import Network
from snn.ttfs.network import TTFSNetwork
from tests.conftest import REPOSITORY, toy_images

IMAGE = (2, 7, 5)  # polarities, height, width of the images


def read(name: str) -> config.Config:
    return settings.load(REPOSITORY / "configs" / f"{name}.yaml")


def build(cfg: config.Config) -> Network:
    torch.manual_seed(0)
    return Network(cfg.network, cfg.data.shape, cfg.data.num_classes, "torch")


def small(**changes) -> config.Config:
    cfg = read("adlif_shd")
    network = cfg.network.model_copy(
        update={
            "layers": ("16F", "12F"),
            "neuron1": config.NeuronParams(tau_mem_steps=5.0, tau_syn_steps=5.0, theta=0.2),
            "neuron2": config.NeuronParams(tau_mem_steps=5.0, tau_syn_steps=5.0, theta=0.02),
        }
        | changes
    )
    data = cfg.data.model_copy(update={"channels": 30, "num_classes": 4})
    return cfg.model_copy(update={"network": network, "data": data})


def events(T: int = 25, B: int = 6) -> torch.Tensor:
    return torch.poisson(torch.full((T, B, 30), 0.3), generator=torch.Generator().manual_seed(3))


def conv_layers(pool: str) -> tuple[str, ...]:
    """Return layers with images of 6x7x5, 6x3x2 and 4x3x2, then fully connected ones, one of them recurrent."""
    return ("6C3", f"{pool}2", "4C3", "9R", "8F")


def small_conv(pool: str = "P", **changes) -> config.Config:
    plain = {"batch_norm": False, "dropout": 0.0, "neuron": "CuLIF", "layers": conv_layers(pool)}
    cfg = small(**(plain | changes))
    sensor = config.Sensor(height=IMAGE[1], width=IMAGE[2])
    return cfg.model_copy(update={"data": cfg.data.model_copy(update={"channels": None, "sensor": sensor})})


def image_events(T: int = 25, B: int = 6, rate: float = 0.3) -> torch.Tensor:
    return torch.poisson(torch.full((T, B, math.prod(IMAGE)), rate), generator=torch.Generator().manual_seed(3))


def toy_config(seed: int = 0, **network) -> config.Config:
    """Return the configuration of a small network for data/toy_*.h5."""
    values = settings.read_yaml(REPOSITORY / "configs" / "adlif_shd.yaml")
    values["data"] |= {"dataset_name": "toy", "path": "data", "channels": 40, "num_classes": 3, "T": 20}
    values["network"] |= {"layers": ["16F", "12R"], "neuron1": {"tau_mem_steps": 5, "tau_syn_steps": 5, "theta": 0.2}}
    values["network"] |= {"neuron2": {"tau_mem_steps": 5, "tau_syn_steps": 5, "theta": 0.02}} | network
    values["train"]["seed"] = seed
    return settings.build(values, "test")


SMALL_TTFS = "6C3 - P2 - 8C3S2 - A2 - 20F"


def build_ttfs(words: str = SMALL_TTFS, shape: tuple = (2, 12, 10), classes: int = 4, **options) -> TTFSNetwork:
    """Return a network, its biases, if it has any, other than 0."""
    torch.manual_seed(0)
    network = TTFSNetwork(config.TTFS(layers=words, **options), shape, classes)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return network


def random_images(n: int = 30, shape: tuple = (2, 12, 10), seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.rand((n, *shape), generator=random)
    return x * (torch.rand(x.shape, generator=random) < 0.7)


def trained_ttfs(words: str, **options) -> TTFSNetwork:
    """Return a network that has learned `toy_images`."""
    network = build_ttfs(words, (1, 12, 12), 3, **options)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    pixels, labels = map(torch.from_numpy, toy_images(90, 0))
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(network(pixels[:, None] / 255).V_BN, labels).backward()
        optimizer.step()
    return network.eval()
