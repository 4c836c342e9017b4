"""Configuration: values that are read or refused, and the published options, each of which sets its field."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from snn import arguments, config, manual, schema, settings, yaml12
from snn.errors import InputError
from snn.losses.first_time import FirstTime, SilentTarget
from snn.machine import find_device
from snn.schema import Mark
from tests.conftest import CONFIGURATIONS

REPOSITORY = Path(__file__).resolve().parent.parent
YAML = REPOSITORY / "configs" / "adlif_shd.yaml"


def parse(words: str, table: dict = arguments.TRAIN) -> config.Config:
    parser = arguments.Parser("", table)
    args = parser.parse_args(["--path_to_yaml", str(YAML), *words.split()])
    return parser.override(settings.read_yaml(args.path_to_yaml), args)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_every_yaml_is_valid(path):
    settings.load(path)


def test_numbers_with_exponents_are_numbers():
    assert yaml12.parse("[1e-3, 1E+2, -.5e1, 1.0e-3, 3e5]", "") == [1e-3, 100.0, -5.0, 1e-3, 3e5]
    assert yaml12.parse("[a1e-3, e5, 1e, '1e-3']", "") == ["a1e-3", "e5", "1e", "1e-3"]
    # only YAML 1.1 reads these as numbers and dates
    assert yaml12.parse("[1:30, 010, 1_000, 2020-13-45]", "") == ["1:30", "010", "1_000", "2020-13-45"]
    assert yaml12.parse("[0, -3, 12, 1., -.5]", "") == [0, -3, 12, 1.0, -0.5]
    assert settings.load(YAML).train.lr == 1e-3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.lrr", 1, "train.lrr is not known; choose from epochs, batch_size"),
        ("network.neuron1.tau", 1, "network.neuron1.tau is not known; choose from tau_mem_steps"),
        ("train.lr", "fast", "train.lr = 'fast': input should be a valid number"),
        ("train.lr", -1.0, "train.lr = -1.0: input should be greater than 0"),
        ("train.lr", float("nan"), "train.lr = nan: input should be a finite number"),
        ("train.epochs", 2.5, "train.epochs = 2.5: input should be a valid integer"),
        ("data.T", 10**11, "data.T = 100000000000: input should be less than or equal to 2147483647"),
        ("network.layers", ["99999999999F"], "network.layers: layer '99999999999F': a number of more than nine digits"),
        ("network.layers", ["16F" + 5000 * "9"], "network.layers: layer '16F99999"),
        ("train.epochs", True, "train.epochs = True: input should be a valid integer"),
        ("network.neuron", "IF", "network.neuron: 'IF' is not known; choose from AdLIF, BRF, CuAdLIF, CuLIF"),
        ("network.dropout", 1.0, "network.dropout = 1.0: input should be less than 1"),
        ("network.layers", ["256F", 256], "network.layers.1 = 256: input should be a valid string"),
        ("network.layers", ["256F", "12G"], "network.layers: layer '12G' is not known; use words such as 64C3"),
        ("network.layers", ["64C3", "256F"], "network.layers: layer '64C3' needs an image, but the input is 700"),
        ("network.hidden_size", [256], "network.hidden_size is not known; choose from layers, neuron"),
        ("data", None, "data = None: input should be a section of fields"),
        ("network.layers", "16F", "network.layers = '16F': input should be a list"),
        ("data.sensor", {"height": 5, "width": 5}, "data: give either channels, or sensor for an event camera"),
        ("network.neuron1.tau_mem_steps", 1e-3, "network.neuron1.tau_mem_steps = 0.001: input should be greater than"),
        ("train.seed", 2**64, f"train.seed = {2**64}: input should be less than"),
    ],
)
def test_refusals_name_the_field_and_what_is_allowed(field, value, message):
    values = settings.read_yaml(YAML)
    *sections, name = field.split(".")
    target = values
    for section in sections:
        target = target[section]
    target[name] = value
    with pytest.raises(InputError) as refusal:
        settings.build(values, "x.yaml")
    assert str(refusal.value).startswith(f"x.yaml: {message}")
    assert "\n" not in str(refusal.value)


def test_the_fields_of_a_section_are_listed_once():
    values = settings.read_yaml(YAML)
    values["data"] |= {"x": 1, "y": 2}
    values["train"]["z"] = 3
    with pytest.raises(InputError) as refusal:
        settings.build(values, "x.yaml")
    said = str(refusal.value).split("; ")
    assert [words.split(",")[0] for words in said] == [
        "x.yaml: data.x is not known",
        "choose from dataset_name",
        "data.y is not known",
        "train.z is not known",
        "choose from epochs",
    ]


def test_missing_fields_are_named():
    values = settings.read_yaml(YAML)
    del values["data"]["T"]
    with pytest.raises(InputError, match=r"data\.T is missing"):
        settings.build(values, "x.yaml")


@pytest.mark.parametrize("text", ["a: [1", "a: 1\na: 2", "- 1", "3"])
def test_files_that_are_no_configuration(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml"):
        settings.load(path)


def test_unreadable_files(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.yaml", "binary.yaml", "."):
        with pytest.raises(InputError, match="cannot be read"):
            settings.read_yaml(tmp_path / name)


def test_configuration_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        parse("").train.lr = 1.0


WORDS = {
    "--path_to_dataset /d": ("data.path", "/d"),
    "--dataset_name x": ("data.dataset_name", "x"),
    "--num_classes 7": ("data.num_classes", 7),
    "--dt 2": ("data.dt_ms", 2.0),
    "--T 33": ("data.T", 33),
    "--T_empty 0": ("data.T_empty", 0),
    "--hidden_size 8 9 10": ("network.layers", ("8F", "9F", "10F")),
    "--neuron1 1. 2. 0.5": ("network.neuron1", config.NeuronParams(tau_mem_steps=1.0, tau_syn_steps=2.0, theta=0.5)),
    "--neuron2 60 60 10": ("network.neuron2", config.NeuronParams(tau_mem_steps=60.0, tau_syn_steps=60.0, theta=10.0)),
    "--loss_mode firing_rate": ("loss.mode", "firing_rate"),
    "--FS 0.3": ("loss.fs", FirstTime(alpha=0.3, D=16.0, A=200.0)),
    "--FS 0.3 4 ": ("loss.fs", FirstTime(alpha=0.3, D=4.0, A=200.0)),
    "--FS 0.3 4 300": ("loss.fs", FirstTime(alpha=0.3, D=4.0, A=300.0)),
    "--FR 15": ("loss.fr.alpha", 15.0),
    "--treg 0 0.03": ("loss.treg", SilentTarget(weight=0.0, beta=0.03)),
    "--seed 0": ("train.seed", 0),
    "--batch-size 3": ("train.batch_size", 3),
    "--test-batch-size 4": ("train.test_batch_size", 4),
    "--epochs 5": ("train.epochs", 5),
    "--lr 2e-3": ("train.lr", 2e-3),
    "--weight_decay 0": ("train.weight_decay", 0.0),
    "--lr_decay": ("train.lr_decay", True),
    "--clip_norm 0": ("train.clip_norm", 0.0),
    "--log-interval 9": ("train.log_interval", 9),
    "--set train.lr=1e-2": ("train.lr", 1e-2),
    "--set network.batch_norm=false": ("network.batch_norm", False),
    "--set network.layers=[5R]": ("network.layers", ("5R",)),
    "--set loss.fs.D_final=50": ("loss.fs.D_final", 50.0),
}


@pytest.mark.parametrize("words", WORDS)
def test_words_set_their_field_and_nothing_else(words):
    field, expected = WORDS[words]
    changed, before = parse(words), parse("--set train.seed=3 --T_empty 4")  # so that an explicit 0 shows
    value = changed
    for name in field.split("."):
        value = getattr(value, name)
    assert value == expected
    allowed = {"train.seed", "data.T_empty"}
    assert all(name.startswith(field) or name in allowed for name in settings.differences(changed, before))


@pytest.mark.parametrize("name", ["1e3", "12E-1", "1:30", "0x1f", "010", "yes", "null", "1_000", "2026-11-28", "süd"])
def test_a_configuration_written_as_yaml_is_read_back(name, tmp_path):
    cfg = parse(f"--dataset_name {name} --lr 1e-7")
    path = tmp_path / "config.yaml"
    path.write_text(settings.as_yaml(cfg), encoding="utf-8")
    assert settings.load(path) == cfg
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == cfg.model_dump(mode="json")


def test_explicit_zero_and_false_win_over_yaml(tmp_path):
    values = yaml.safe_load(YAML.read_text())
    values["data"]["T_empty"] = 20
    values["train"]["lr_decay"] = True
    values["train"]["lr"] = 0.001
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(values))
    parser = arguments.Parser("", arguments.TRAIN)
    args = parser.parse_args(["--path_to_yaml", str(path), "--T_empty", "0", "--set", "train.lr_decay=false"])
    cfg = parser.override(settings.read_yaml(path), args)
    assert (cfg.data.T_empty, cfg.train.lr_decay) == (0, False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--set lr=1", "lr is not known; the configuration has data, network, loss, train"),
        ("--set train.speed=1", "train.speed is not known; train has epochs"),
        ("--set train.lr.x=1", "train.lr.x is not known; train.lr has no fields"),
        ("--set train.lr", "write section.field=value"),
        ("--FS 1 2 3 4", "--FS takes at most 3"),
        ("--epochs many", "invalid int value: 'many'"),
        ("--epoch 3", "unrecognized arguments: --epoch"),
        ("--neuron1 5 5", "expected 3 arguments"),
        ("--T 0", "data.T = 0: input should be greater than 0"),
    ],
)
def test_wrong_words_are_one_clear_line(words, message):
    with pytest.raises(InputError) as refusal:
        parse(words)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_hidden_size_leaves_convolutions_and_recurrence():
    values = {"network": {"layers": ["8C3", "P2", "16R", "9F"]}}
    for sizes, expected in (
        ("5", ["8C3", "P2", "5R"]),
        ("5 6", ["8C3", "P2", "5R", "6F"]),
        ("5 6 7", ["8C3", "P2", "5R", "6F", "7F"]),
    ):
        given = settings.read_yaml(YAML.parent / "nmnist.yaml")
        given["network"]["layers"] = values["network"]["layers"]
        parser = arguments.Parser("", arguments.TRAIN)
        cfg = parser.override(given, parser.parse_args(["--hidden_size", *sizes.split()]))
        assert list(cfg.network.layers) == expected


def test_a_sensor_is_a_section_that_may_be_left_out():
    parser = arguments.Parser("", arguments.TRAIN)

    def camera(words: str) -> config.Config:
        values = settings.read_yaml(YAML.parent / "nmnist.yaml")
        return parser.override(values, parser.parse_args(words.split()))

    assert camera("--set data.sensor.divide=4").data.shape == (2, 9, 9)
    assert camera("--set data.sensor.polarities=1").data.shape == (1, 34, 34)
    assert list(settings.differences(camera(""), camera("--set data.sensor.divide=4"))) == ["data.sensor.divide"]
    for words, message in (
        ("--set data.sensor.size=4", "data.sensor.size is not known; data.sensor has height, width, divide"),
        ("--set data.sensor.divide=0", "data.sensor.divide = 0: input should be greater than 0"),
        ("--set data.sensor.polarities=3", "data.sensor.polarities = 3: input should be 1 or 2"),
        ("--set data.sensor=null", "data: give either channels, or sensor for an event camera"),
    ):
        with pytest.raises(InputError) as refusal:
            camera(words)
        assert message in str(refusal.value)


def test_the_published_commands_parse(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    parser = arguments.Parser("", arguments.TRAIN)
    args = parser.parse_args(
        "--path_to_yaml ../configs/adlif_shd.yaml --log-interval 5 --lr 1e-3 --batch-size 128 --test-batch-size 256 "
        "--epochs 80 --loss_mode first_time --T 100 --T_empty 0 --dt 10 --hidden_size 256 256 --FS 0.2 16 200 "
        "--neuron1 5. 5. 0.5 --neuron2 60. 60. 10 --treg 0.01 0.02".split()
    )
    assert arguments.find_yaml(args.path_to_yaml) == YAML
    assert parser.override(settings.read_yaml(YAML), args) == settings.load(YAML)
    test_parser = arguments.Parser("", arguments.TEST)
    test_parser.take_checkpoints()
    args = test_parser.parse_args(
        "--path_to_yaml configs/adlif_shd.yaml --test-batch-size 256 --T 100 --T_empty 0 --load_pt_file x.pt "
        "--best_model".split()
    )
    cfg = test_parser.override(settings.read_yaml(YAML), args)
    assert (cfg.data.test_T, cfg.data.test_T_empty, args.best_model) == (100, 0, True)


@pytest.mark.parametrize("words", ["--FS 0.1", "--FR 20", "--treg 5 0.02"])
def test_options_of_another_loss_are_refused(words):
    for mode in ("first_time", "firing_rate"):  # published commands set all of them
        parse(f"{words} --loss_mode {mode}")
    with pytest.raises(InputError, match=f"{words[:4]}.* has no effect with the loss first_to_spike"):
        parse(f"{words} --loss_mode first_to_spike")


def test_wrong_words_are_refused_with_the_configuration():
    """A search checks its choices so, before anything begins."""
    values = settings.read_yaml(REPOSITORY / "configs" / "ttfs_mnist.yaml")
    for layers, said in (("16C4 - 64F", "'16C4': the kernel"), ("8FD3", "'8FD3': delays")):
        with pytest.raises(InputError, match=f"ttfs.layers: layer {said}"):
            settings.build(values | {"ttfs": {"layers": layers}}, "x")


def test_the_home_of_nobody():
    cfg = settings.build(settings.read_yaml(REPOSITORY / "configs" / "ttfs_mnist.yaml"), "x")
    with pytest.raises(InputError, match=r"data\.path = ~nobody-here/x: there is no such home folder"):
        assert cfg.data.model_copy(update={"path": "~nobody-here/x"}).folder


def test_the_best_model_of_a_run_is_best_pt(tmp_path):
    for name in ("best.pt", "last.pt"):
        (tmp_path / name).touch()
    for path in (tmp_path, tmp_path / "best.pt"):
        assert arguments.find_checkpoint(path, is_best=True) == tmp_path / "best.pt"
    assert arguments.find_checkpoint(tmp_path / "last.pt") == tmp_path / "last.pt"
    with pytest.raises(InputError, match=r"--best_model is for best.pt, but --load_pt_file names .*last\.pt"):
        arguments.find_checkpoint(tmp_path / "last.pt", is_best=True)
    (tmp_path / "best.pt").rename(tmp_path / "shd.pt")  # a checkpoint that was published alone
    assert arguments.find_checkpoint(tmp_path / "shd.pt", is_best=True) == tmp_path / "shd.pt"


def test_every_published_word_is_known(program):
    common = (
        "path_to_yaml distributed path_to_dataset dataset_name num_classes dt T T_empty hidden_size neuron1 neuron2 "
        "loss_mode FS FR seed best_model load_pt_file test-batch-size"
    )
    train = "treg batch-size epochs lr weight_decay lr_decay clip_norm log-interval save_name add_name"
    for script, words in (("train.py", f"{common} {train}"), ("test.py", f"{common} test_single_delay show")):
        text = program(f"{script} --help").stdout
        for word in words.split():
            assert re.search(rf"--{word}\b", text), f"{script} --{word}"


def test_without_a_yaml_the_set_chooses():
    assert arguments.default_yaml([]).name == "adlif_digits.yaml"
    assert arguments.default_yaml("--epochs 3 --dataset_name ntidigits".split()).name == "adlif_ntidigits.yaml"
    assert arguments.default_yaml("--dataset_name mine --lr 1".split()).name == "adlif_shd.yaml"


def test_an_unknown_neuron_names_the_folder_of_ones_own():
    with pytest.raises(InputError, match=r"'Own' is not known; .*own, name its folder in .* FIRST_SPIKE_NEURONS\)$"):
        parse("--set network.neuron=Own")


def test_run_name_is_the_published_one():
    assert parse("").run_name == "shd_fs0.2_tau60_adlif"
    assert parse("--loss_mode firing_rate --neuron2 40 40 2").run_name == "shd_fr20_tau40_adlif"
    assert parse("--loss_mode first_to_spike").run_name == "shd_fts10_tau60_adlif"
    values = settings.read_yaml(YAML)
    settings.override(values, "data.dataset_name", "my set, 右手")
    assert settings.build(values, "").run_name == "my_set__右手_fs0.2_tau60_adlif"


def test_marks_say_which_fields_a_comparison_leaves_out():
    events, images = schema.KINDS["network"], schema.KINDS["ttfs"]
    places = {"data.path", "data.layout", "train.device", "train.log_interval", "train.cuda_graphs"}
    of_events = {"data.in_memory", "data.origin", "data.prepare", "train.backend"}
    assert settings.marked(events, Mark.MACHINE) == places | of_events
    assert settings.marked(images, Mark.MACHINE) == places
    assert settings.marked(events, Mark.RESUME) == {"data.strict", "train.epochs"}
    assert settings.marked(images, Mark.RESUME) == {"data.strict", "train.epochs", "train.patience"}
    training = {"augment", "validation_share"}
    assert settings.marked(config.Images, Mark.TRAINING) == training | {"crop_pad"}
    of_files = {"train_file", "validation_file", "validation_by"}
    assert settings.marked(config.Data, Mark.TRAINING) == training | of_files


def test_the_manual_leaves_the_kinds_as_they_are(program):
    """It defines the classes of a file that this process may have imported a second time."""
    before = dict(schema.KINDS)
    assert program("-m snn.config").returncode == 0
    assert schema.KINDS == before == {"network": config.Config, "ttfs": config.TTFSConfig}


@pytest.mark.parametrize("table", [arguments.TRAIN, arguments.TEST], ids=["train", "test"])
def test_published_words_are_fields(table):
    """Every option sets a field of a first-spike network."""
    fields = {option.name for option in manual.options(config.Config)}
    for target, *_ in table.values():
        names = [target] if isinstance(target, str) else [f"{target[0]}.{name}" for name in target[1]]
        assert set(names) <= fields


def test_the_command_line_does_not_wait_for_torch():
    """--help of train.py ends before the import of torch, which takes seconds, and so do unknown options."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', *sys.argv[1:]]\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    for words, end in (("--help", "0 False"), ("--epoch 3", "2 False")):
        command = [sys.executable, "-c", code, *words.split()]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert result.stdout.splitlines()[-1] == end, result.stderr


def test_device_that_is_not_there():
    with pytest.raises(InputError, match=r"train\.device = tpu9"):
        find_device("tpu9")
