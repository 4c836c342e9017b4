"""Training reproduces the losses in tests/reference_losses.json, so a refactor does not change numbers unnoticed.

`python -m tests.test_reference_losses` stores them again. Do so only if numbers are meant to change, and say in
CHANGELOG.md which changed and why.

Training uses one thread, as BatchNorm sums in another order with more. The tolerance leaves room for another processor:
with the oldest instructions that torch and its libraries know, losses moved by 6e-7 at most.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ON_CPU, REPOSITORY, make_events, write_shd

STORED = Path(__file__).with_name("reference_losses.json")
COLUMNS = ("train_loss", "validation_loss")
TOLERANCE = 1e-5  # relative
EPOCHS = 5  # of seven or eight steps
EVENTS = f"{REPOSITORY}/configs/smoke.yaml --path_to_dataset . --T 20 --batch-size 8"
# In place of smoke.yaml's hidden layer: convolution and pool, learned delays and feedback, another neuron
CONV = (
    f"{EVENTS} --set data.channels=null --set data.sensor.height=10 --set data.sensor.width=35 --set "
    "network.layers=[4C3,P2,16FD3,12RDR2] --set network.neuron=CuAdLIF --neuron1 5 5 0.3 --neuron2 10 10 0.3 --lr 1e-3"
)
FIRST_TO_SPIKE = (
    f"{EVENTS} --loss_mode first_to_spike --set data.pool=5 --set network.layers=[32FD3] --set network.neuron=SEAdLIF "
    "--set data.augment.blend=0.5 --set data.augment.mask=9 --set data.augment.mask_ms=40 --neuron1 5 5 0.1 "
    "--neuron2 10 5 0.3"
)
IMAGES = (
    f"{REPOSITORY}/configs/ttfs_mnist_mlp.yaml --path_to_dataset . --dataset_name images --num_classes 4 "
    "--set data.layout=npz --set data.shape=[1,12,12] --lr 3e-3 --batch-size 8"
)
CASES = {
    "events, torch": f"{EVENTS} --set train.backend=torch",
    "events, cpu": f"{EVENTS} --set train.backend=cpu",
    "convolution, delays and feedback, torch": f"{CONV} --set train.backend=torch",
    "convolution, delays and feedback, cpu": f"{CONV} --set train.backend=cpu",
    "first to spike, cpu": f"{FIRST_TO_SPIKE} --set train.backend=cpu",
    "images, fully connected": IMAGES,
    "images, convolution": f"{IMAGES} --set ttfs.layers=4C3-P2-32F",
}


def write_data(folder: Path) -> None:
    """Write 80 recordings of 20 classes by 4 speakers on 700 channels, and 60 images: bright bands of 4 classes."""
    events = make_events(80, 20, 700, 0) | {"speakers": [r // 20 for r in range(80)]}
    write_shd(folder / "digits_train.h5", **events)
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 60, (60, 12, 12), np.uint8), np.arange(60) % 4
    for image, label in zip(pixels, labels, strict=True):
        image[3 * label : 3 * label + 3, 2:10] = 220
    np.savez(folder / "images.npz", x_train=pixels, y_train=labels)


def command(case: str) -> str:
    return f"train.py --path_to_yaml {CASES[case]} --epochs {EPOCHS} --seed 0 --save_name run {ON_CPU}"


def course(folder: Path) -> dict[str, list[float]]:
    """Return the losses of the run in this folder, one entry per epoch."""
    lines = (folder / "runs" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {column: [json.loads(line)[column] for line in lines] for column in COLUMNS}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("one_thread")
def test_training_takes_the_stored_course(program, tmp_path, case):
    write_data(tmp_path)
    result = program(command(case))
    assert result.returncode == 0, result.stderr
    stored = json.loads(STORED.read_text(encoding="utf-8"))[case]
    for column, losses in course(tmp_path).items():
        assert len(losses) == EPOCHS
        np.testing.assert_allclose(losses, stored[column], rtol=TOLERANCE, err_msg=column)


def main() -> None:
    courses = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder))
            script, *words = command(case).split()
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, REPOSITORY / script, *words], cwd=folder, env=environment, check=True)
            courses[case] = course(Path(folder))
    STORED.write_text(json.dumps(courses, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
