"""An ablation adds and leaves out one ingredient at a time, on held-out samples, and continues where it stopped."""

import json

import numpy as np
import pytest

from benchmarks import ablation
from snn import config, settings
from snn.errors import InputError
from tests.conftest import ON_CPU, REPOSITORY, TINY, assert_one_line

TINY_WORDS = TINY.replace("--T 20", "--T 30").replace("--neuron2 20 20 1", "")
EVENTS = f"--seeds 0 --dataset_name shd --path_to_dataset shd {TINY_WORDS} --epochs 1 {ON_CPU}".split()
IMAGES = f"--seeds 0 --set data.layout=npz --path_to_dataset images --epochs 1 {ON_CPU}".split()
PLAIN, RECIPE, PHOTOS, DIGITS = (
    REPOSITORY / "configs" / f"{name}.yaml" for name in ("adlif_shd", "speech", "ttfs_cifar10_small", "ttfs_mnist_mlp")
)


def changed(one, other) -> set[str]:
    return set(settings.differences(one, other))


def check_variants(found: dict, plain, recipe, of_neither: set[str]) -> None:
    """Check that each variant has the fields of its ingredient, and only these, from the other side."""
    assert found["", "recipe"] == recipe
    ingredients, parts = ablation.ABLATIONS[type(recipe)].ingredients, ablation.ABLATIONS[type(recipe)].parts
    for ingredient, fields in ingredients.items():
        if ingredient in of_neither:
            assert not any(ingredient == name for name, _ in found)
            continue
        alone, without = found[ingredient, "alone"], found[ingredient, "left out"]
        for one, base, other in ((alone, found["", "plain"], recipe), (without, recipe, plain)):
            assert (names := changed(one, base))
            assert all(any(name == field or name.startswith(f"{field}.") for field in fields) for name in names)
            values, there = one.model_dump(mode="json"), other.model_dump(mode="json")
            whole = [field for field in fields if field not in parts]
            assert all(ablation.value_of(values, field) == ablation.value_of(there, field) for field in whole)


def by_place(plain, recipe) -> dict:
    return {(ingredient, which): cfg for ingredient, which, cfg in ablation.variants(plain, recipe)}


def test_each_variant_differs_by_its_ingredient():
    plain, recipe = settings.load(PLAIN), settings.load(RECIPE)
    found = by_place(plain, recipe)
    check_variants(found, plain, recipe, {"spike budget"})
    rest = changed(found["", "plain"], plain)  # fields of no ingredient are those of the recipe
    assert {"data.dataset_name", "data.T", "data.validation_by"} <= rest
    layers = {place: cfg.network.layers for place, cfg in found.items()}
    assert layers["", "plain"] == layers["loss", "alone"] == ("256F", "256F")
    assert layers["delays", "alone"] == ("256F+D25", "256F+D25")  # neither changes the sizes
    assert layers["delays", "left out"] == ("312F", "312F")


@pytest.mark.parametrize(
    ("words", "others", "expected"),
    [
        ("64C3 P2 128F 64RDS5", "9FD3", "64C3 P2 128FD3 64RD3"),
        ("9RD3DR4 8F+D5", "16C3 7R 6FD2 5F", "9R 8FD2"),
        ("9FD3 8F", "64C3 P2", "9F 8F"),
        ("8F 9R", "9RD3DR4", "8FD3 9RD3DR4"),
    ],
)
def test_delays_move_between_layers_of_any_sizes(words, others, expected):
    assert ablation.with_delays_of(words.split(), others.split()) == expected.split()


def test_the_plain_counterpart_of_a_recipe_has_defaults_and_maximum_pools():
    recipe = settings.load(PHOTOS)
    plain = ablation.without_ingredients(recipe, "")
    assert plain.ttfs == config.TTFS(layers="32C3 - P2 - 64C3 - P2 - 128C3 - P2 - 256F")
    assert plain.train == config.TTFSTrain(epochs=60, patience=60)
    assert plain.data == recipe.data.model_copy(update={"augment": ()})
    found = by_place(plain, recipe)
    assert found["", "plain"] == plain
    check_variants(found, plain, recipe, {"bias"})
    with pytest.raises(InputError, match=r"^x without its ingredients .*: network.layers is missing"):
        ablation.without_ingredients(settings.load(RECIPE), "x")


def test_an_ingredient_that_both_have_is_no_row():
    """Layers of other sizes with the same delays are none, either."""
    recipe = settings.load(RECIPE)
    values = settings.read_yaml(RECIPE)
    values["data"]["augment"]["blend"] = 0.25
    values["network"]["layers"] = ["64F+D25", "64F+D25"]
    rows = [(ingredient, which) for ingredient, which, _ in ablation.variants(recipe, settings.build(values, ""))]
    assert rows == [("", "plain"), ("", "recipe"), ("blend", "alone"), ("blend", "left out")]


@pytest.fixture
def ablate(program, tmp_path, monkeypatch):
    """Return a function that runs the program with some ingredients and returns the names of the runs it trains."""
    trained = []

    def run_here(*command: str) -> None:
        trained.append(command[command.index("--save_name") + 1])
        result = program(*command)
        assert result.returncode == 0, result.stderr

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "run", run_here)
    monkeypatch.setattr(ablation, "RESULTS", tmp_path / "results")
    kept = {"loss", "blend", "augmentation", "drive for silent neurons"}
    few = {
        kind: of._replace(ingredients={name: fields for name, fields in of.ingredients.items() if name in kept})
        for kind, of in ablation.ABLATIONS.items()
    }
    monkeypatch.setattr(ablation, "ABLATIONS", few)

    def run(*words: object) -> list[str]:
        trained.clear()
        monkeypatch.setattr("sys.argv", ["ablation", *map(str, words)])
        ablation.main()
        return list(trained)

    return run


@pytest.mark.slow
def test_rows_are_stored_and_what_is_there_is_not_trained_again(ablate, shd_folder):
    (shd_folder / "shd_test.h5").unlink()
    names = ["plain", "recipe", "loss_alone", "loss_left_out", "blend_alone", "blend_left_out"]
    assert ablate(PLAIN, RECIPE, *EVENTS) == [f"ablation_speech_{name}_seed0" for name in names]
    path = shd_folder.parent / "results" / "ablation" / "speech.json"
    result = json.loads(path.read_text())
    assert [(row["ingredient"], row["which"]) for row in result["rows"]][2:4] == [
        ("loss", "alone"),
        ("loss", "left out"),
    ]
    kept = ablation.ABLATIONS[config.Config].kept
    assert all(set(row["seeds"]["0"]) == {"epoch", *kept} for row in result["rows"])
    command = "python -m benchmarks.ablation configs/adlif_shd.yaml configs/speech.yaml --seeds 0 --dataset_name shd"
    assert result["command"].startswith(f"{command} --path_to_dataset DIR --set ")
    result["rows"] = result["rows"][:-1]
    path.write_text(json.dumps(result))
    assert ablate(PLAIN, RECIPE, *EVENTS) == ["ablation_speech_blend_left_out_seed0"]
    with pytest.raises(InputError, match="is a result with another command"):
        ablate(PLAIN, RECIPE, *EVENTS, "--set", "train.lr=0.1")
    edited = {key: value for key, value in result.items() if key != "recipe"}  # as if the YAML had been changed since
    path.write_text(json.dumps(edited))
    with pytest.raises(InputError, match="is a result with another recipe"):
        ablate(PLAIN, RECIPE, *EVENTS)
    path.write_text("[]")
    with pytest.raises(InputError, match="is not such a result"):
        ablate(PLAIN, RECIPE, *EVENTS)


@pytest.fixture
def digits(tmp_path):
    """Write small images without a test split into `images`, the folder that IMAGES names."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8)
    (tmp_path / "images").mkdir()
    np.savez(tmp_path / "images" / "mnist.npz", x_train=pixels, y_train=np.arange(60) % 10)


@pytest.mark.usefixtures("digits")
def test_one_recipe_of_a_ttfs_network_is_enough(ablate, tmp_path):
    names = ["plain", "recipe"] + [
        f"{name}_{which}" for name in ("augmentation", "drive_for_silent_neurons") for which in ("alone", "left_out")
    ]
    assert ablate(DIGITS, *IMAGES) == [f"ablation_ttfs_mnist_mlp_{name}_seed0" for name in names]
    path = tmp_path / "results" / "ablation" / "ttfs_mnist_mlp.json"
    result = json.loads(path.read_text())
    kept = {"epoch", "accuracy", "spikes_per_neuron", "synaptic_operations_per_image"}
    assert all(set(row["seeds"]["0"]) == kept for row in result["rows"])
    assert result["command"].startswith("python -m benchmarks.ablation configs/ttfs_mnist_mlp.yaml --seeds 0 --set ")
    trained = settings.load(tmp_path / "runs" / "ablation_ttfs_mnist_mlp_plain_seed0" / "config.yaml")
    assert (trained.data.augment, trained.train.silent_drive, trained.train.epochs) == ((), 0, 1)
    assert ablate(DIGITS, *IMAGES) == []


@pytest.mark.usefixtures("digits")
def test_a_run_with_another_configuration_is_not_continued(ablate, tmp_path):
    """A schedule over one epoch that went on to the second would not be that of two epochs."""
    words = [*IMAGES, "--set", "train.silent_drive=0", "--set", "data.augment=[]"]  # no ingredient is left
    assert len(ablate(DIGITS, *words)) == 2
    (tmp_path / "results" / "ablation" / "ttfs_mnist_mlp.json").unlink()
    assert len(ablate(DIGITS, *words, "--epochs", "2")) == 2
    runs = tmp_path / "runs"
    log, before = (runs / f"ablation_ttfs_mnist_mlp_recipe_seed0{end}" / "metrics.jsonl" for end in ("", ".1"))
    assert len(log.read_text().splitlines()) == 2
    assert len(before.read_text().splitlines()) == 1
    (tmp_path / "results" / "ablation" / "ttfs_mnist_mlp.json").unlink()
    assert len(ablate(DIGITS, *words, "--epochs", "2")) == 2
    assert not log.parent.with_name(f"{log.parent.name}.2").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([PLAIN, DIGITS], "must describe the same kind of network"),
        ([PLAIN, RECIPE, DIGITS], "give one recipe, and before it at most one plain configuration"),
        ([RECIPE], "without its ingredients (give a plain YAML before it): network.layers is missing"),
        ([DIGITS, "--set", "ttfs.T=0"], "ttfs.T = 0: input should be greater than 0"),
        ([DIGITS, "--rsume"], "unrecognized arguments: --rsume"),
    ],
)
def test_a_wrong_command_is_one_line(program, words, message):
    assert_one_line(program("-m benchmarks.ablation", *words), message)


@pytest.mark.usefixtures("digits")
def test_without_held_out_samples_nothing_is_stored(ablate, tmp_path):
    with pytest.raises(InputError, match="nothing was held out to compare ingredients on"):
        ablate(DIGITS, *IMAGES, "--set", "data.validation_share=0")
    assert not list((tmp_path / "results").rglob("*.json"))
