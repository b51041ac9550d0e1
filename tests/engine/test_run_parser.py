"""Commands that take a config accept it as the first argument, overrides as KEY=VALUE, and sizes as two words."""

from __future__ import annotations

import pytest

from pvt_det.engine.options import default_argument_parser
from pvt_det.engine.run_config import config_from_args
from pvt_det.engine.run_parser import RunParser, image_size
from pvt_det.errors import ConfigError
from pvt_det.utils.cli import split_assignments


@pytest.fixture
def parse():
    parser = RunParser(prog="pvt-det train")
    parser.add_argument("--config-file", default="")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--image-size", type=image_size)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_words


@pytest.mark.parametrize(
    ("words", "config", "overrides"),
    [
        (["a.yaml"], "a.yaml", []),
        (["a.yml", "A", "1"], "a.yml", ["A", "1"]),
        (["output/mine", "A.B=1"], "output/mine", ["A.B", "1"]),
        (["--resume", "a.yaml", "A", "1", "--image-size", "640", "B=2"], "a.yaml", ["A", "1", "B", "2"]),
        (["A=1", "B", "2", "a.yaml", "C=3"], "a.yaml", ["A", "1", "B", "2", "C", "3"]),
        (["--config-file", "a.yaml", "A", "b.yaml"], "a.yaml", ["A", "b.yaml"]),
        (["--config-file", "a.yaml", "DATA.JSON=b.yaml"], "a.yaml", ["DATA.JSON", "b.yaml"]),
    ],
)
def test_config_and_overrides(parse, words, config, overrides):
    args = parse(words)
    assert (args.config_file, args.overrides) == (config, overrides)


def test_folder_in_the_working_directory_is_a_config(parse, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse(["run"]).config_file == "run"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no config is given. Expected one as the first argument"),
        (["A", "1"], "no config is given"),
        (["a.yaml", "b.json"], "repeat the option: --train-json FILE --train-json b.json"),
        (["a.yaml", "--config-file", "b.yaml"], "two configs are given: --config-file b.yaml and a.yaml"),
        (["a.yaml", "--image-size", "big"], "big: expected one or two numbers of pixels"),
        (["a.yaml", "--image-size", "640", "480"], "640 480: expected the short side before the longest side"),
    ],
)
def test_errors(parse, words, message):
    with pytest.raises(ConfigError) as error:
        parse(words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "sides"),
    [
        (["a.yaml", "--image-size", "640"], (640,)),
        (["a.yaml", "--image-size", "480", "640"], (480, 640)),
        (["--image-size", "480", "640", "a.yaml"], (480, 640)),
        (["--image-s", "480", "640", "a.yaml", "A=1"], (480, 640)),
        (["--image-size", "640", "a.yaml", "A", "1"], (640,)),
    ],
)
def test_image_size_takes_one_or_two_numbers(parse, words, sides):
    args = parse(words)
    assert (args.image_size, args.config_file) == (sides, "a.yaml")


def test_only_keys_are_split():
    assert split_assignments(["A=1", "B", "x=y", "C.D=", "E"]) == ["A", "1", "B", "x=y", "C.D", "", "E"]
    assert split_assignments(["A.B", "1"]) == ["A.B", "1"]


@pytest.mark.parametrize(
    ("words", "loggers"),
    [
        ("--logger tensorboard mlflow retinanet_pvt_tiny SEED=3", "['tensorboard', 'mlflow']"),
        ("retinanet_pvt_tiny --logger mlflow SEED 3", "['mlflow']"),
        ("retinanet_pvt_tiny SEED 3 --log a,b", "['a', 'b']"),
        ("retinanet_pvt_tiny SEED=3 --logger none", "[]"),
    ],
)
def test_loggers_are_one_option(words, loggers):
    args = default_argument_parser().parse_words(words.split())
    assert (args.config_file, args.logger, args.overrides) == ("retinanet_pvt_tiny", loggers, ["SEED", "3"])


@pytest.mark.parametrize(
    ("words", "message"),
    [("--logger none mlflow", "none mlflow: expected none alone"), ("--logger MLflow", "'MLflow': expected names of")],
)
def test_wrong_loggers_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        default_argument_parser().parse_words(["retinanet_pvt_tiny", *words.split()])


def test_options_that_are_repeated_are_lists():
    words = ["retinanet_pvt_tiny", "--train-json", "a.json", "--train-json", "b.json", "--train-images", "both"]
    data = config_from_args(default_argument_parser().parse_words(words)).DATASETS
    assert (data.TRAIN_JSON, data.TRAIN_IMAGES) == (["a.json", "b.json"], "both")
    words += ["DATASETS.TRAIN_JSON", "a.json"]
    with pytest.raises(ConfigError, match=r"--train-json sets DATASETS\.TRAIN_JSON to \['a\.json', 'b\.json'\], but"):
        config_from_args(default_argument_parser().parse_words(words))
