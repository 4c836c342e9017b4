"""An ablation adds and leaves out one ingredient at a time, on held-out recordings, and continues where it stopped."""

import json

import pytest

from benchmarks import ablation
from snn import settings
from snn.errors import InputError
from tests.conftest import ON_CPU, REPOSITORY, TINY

TINY_WORDS = TINY.replace("--T 20", "--T 30").replace("--neuron2 20 20 1", "")
PLAIN, RECIPE = (REPOSITORY / "configs" / f"{name}.yaml" for name in ("adlif_shd", "speech"))


def changed(one, other) -> set[str]:
    return set(settings.differences(one, other))


def test_each_variant_differs_by_its_ingredient():
    plain, recipe = settings.load(PLAIN), settings.load(RECIPE)
    found = {(ingredient, which): cfg for ingredient, which, cfg in ablation.variants(plain, recipe)}
    assert found["", "recipe"] == recipe
    rest = changed(found["", "plain"], plain)  # fields of no ingredient are those of the recipe
    assert {"data.dataset_name", "data.T", "data.validation_by"} <= rest
    assert not any(ingredient == "spike budget" for ingredient, _ in found)  # neither has one
    for ingredient, fields in ablation.INGREDIENTS.items():
        if ingredient == "spike budget":
            continue
        alone, without = found[ingredient, "alone"], found[ingredient, "left out"]
        for one, base, other in ((alone, found["", "plain"], recipe), (without, recipe, plain)):
            assert (names := changed(one, base))
            assert all(any(name == field or name.startswith(f"{field}.") for field in fields) for name in names)
            values, there = one.model_dump(mode="json"), other.model_dump(mode="json")
            assert all(ablation.value_of(values, field) == ablation.value_of(there, field) for field in fields)


def test_an_ingredient_that_both_have_is_no_row():
    recipe = settings.load(RECIPE)
    values = settings.read_yaml(RECIPE)
    values["data"]["augment"]["blend"] = 0.25
    rows = [(ingredient, which) for ingredient, which, _ in ablation.variants(recipe, settings.build(values, ""))]
    assert rows == [("", "plain"), ("", "recipe"), ("blend", "alone"), ("blend", "left out")]


@pytest.fixture
def run(program, shd_folder, monkeypatch):
    """Return a function that runs the program with two ingredients and returns the names of the runs it trains."""
    trained = []

    def run_here(*command: str) -> None:
        trained.append(command[command.index("--save_name") + 1])
        result = program(*command)
        assert result.returncode == 0, result.stderr

    monkeypatch.chdir(shd_folder.parent)
    monkeypatch.setattr(ablation, "run", run_here)
    monkeypatch.setattr(ablation, "RESULTS", shd_folder.parent / "results")
    kept = {name: ablation.INGREDIENTS[name] for name in ("loss", "blend")}
    monkeypatch.setattr(ablation, "INGREDIENTS", kept)

    def ablate(words: str = "") -> list[str]:
        trained.clear()
        data = f"--dataset_name shd --path_to_dataset shd {TINY_WORDS} --epochs 1 {ON_CPU}"
        monkeypatch.setattr(
            "sys.argv", ["ablation", str(PLAIN), str(RECIPE), "--seeds", "0", *data.split(), *words.split()]
        )
        ablation.main()
        return list(trained)

    return ablate


@pytest.mark.slow
def test_rows_are_stored_and_what_is_there_is_not_trained_again(run, shd_folder):
    (shd_folder / "shd_test.h5").unlink()
    names = ["plain", "recipe", "loss_alone", "loss_left_out", "blend_alone", "blend_left_out"]
    assert run() == [f"ablation_{name}_seed0" for name in names]
    path = shd_folder.parent / "results" / "ablation" / "speech.json"
    result = json.loads(path.read_text())
    assert [(row["ingredient"], row["which"]) for row in result["rows"]][2:4] == [
        ("loss", "alone"),
        ("loss", "left out"),
    ]
    assert all(set(row["seeds"]["0"]) == {"epoch", *ablation.KEPT} for row in result["rows"])
    assert "--path_to_dataset DIR" in result["command"]
    result["rows"] = result["rows"][:-1]
    path.write_text(json.dumps(result))
    assert run() == ["ablation_blend_left_out_seed0"]
    with pytest.raises(InputError, match="is a result with another command"):
        run("--set train.lr=0.1")
    path.write_text("[]")
    with pytest.raises(InputError, match="is not such a result"):
        run()
