"""Data sets that a config gives by paths: one or several, and what does not belong together."""

import pytest

from pvt_det.config import get_config, load_config
from pvt_det.config.given_data import GivenData, given_data
from pvt_det.errors import ConfigError


def given(json_files="", images="", labels=""):
    cfg = get_config()
    cfg.DATASETS.TRAIN_JSON, cfg.DATASETS.TRAIN_IMAGES, cfg.DATASETS.TRAIN_LABELS = json_files, images, labels
    return given_data(cfg, "TRAIN")


def test_data_sets_have_their_own_images_or_share_them():
    assert given() == given(images="a") == []
    assert given("a.json", "a") == given(["a.json"], ["a"]) == [GivenData("a.json", "", "a")]
    assert given("a.json") == [GivenData("a.json", "", "")]
    assert given(["a.json", "b.json"], ["a", "b"]) == [GivenData("a.json", "", "a"), GivenData("b.json", "", "b")]
    assert given(["a.json", "b.json"], "all") == [GivenData("a.json", "", "all"), GivenData("b.json", "", "all")]
    assert given(["a.json", "b.json"], "all", ["c", "d"])[1] == GivenData("b.json", "d", "all")
    assert given(labels=["c", "d"], images=["a", "b"]) == [GivenData("", "c", "a"), GivenData("", "d", "b")]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((["a.json", "b.json"], ["a", "b", "c"]), "TRAIN_IMAGES has 3 paths, but TRAIN_JSON has 2. Give the folder of"),
        (("a.json", ["a", "b"]), "TRAIN_IMAGES has 2 paths, but TRAIN_JSON has 1"),
        ((["a.json", "b.json"], "a", "labels"), "TRAIN_JSON has 2 paths, but TRAIN_LABELS has 1"),
        ((["a.json", "a.json"], "a"), r"TRAIN_JSON names a\.json twice.*set DATASETS\.TRAIN_WEIGHTS"),
    ],
)
def test_paths_that_do_not_belong_together(paths, message):
    with pytest.raises(ConfigError, match=message):
        given(*paths)


@pytest.mark.parametrize("written", [["a.json", "b.json"], "['a.json', 'b.json']"])
def test_lists_of_paths_in_a_config(tmp_path, written):
    file = tmp_path / "mine.yaml"
    file.write_text("DATASETS: {TRAIN_IMAGES: [a, b], TRAIN_WEIGHTS: [0.7, 0.3]}")
    cfg = load_config(file, ["DATASETS.TRAIN_JSON", written])
    assert [data.images for data in given_data(cfg, "TRAIN")] == ["a", "b"]
    assert cfg.DATASETS.TRAIN_WEIGHTS == (0.7, 0.3)
    (tmp_path / "saved.yaml").write_text(cfg.dump())
    assert load_config(tmp_path / "saved.yaml") == cfg


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TRAIN_JSON", "[1, 2]", r"expected a string"),
        ("TRAIN_JSON", "[]", r"expected a string, or a list of 1 or more strings that are not empty"),
        ("VAL_JSON", ["a.json", "b.json"], "expected a string"),
        (
            "TRAIN_WEIGHTS",
            "(0.5, -0.5)",
            "numbers, above 0 and at most 100,000. A data set without a share",
        ),
        ("TRAIN_WEIGHTS", "(1, 0)", "above 0"),
        ("TRAIN_WEIGHTS", [0.5, float("nan")], "finite"),
        ("TRAIN_WEIGHTS", "half", "expected a list"),
    ],
)
def test_invalid_values(key, value, message):
    with pytest.raises(ConfigError, match=message):
        load_config("retinanet_pvt_tiny", [f"DATASETS.{key}", value])


def test_sampler_by_classes_needs_a_threshold_and_objects():
    repeat = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"]
    with pytest.raises(ConfigError, match=r"REPEAT_THRESHOLD = 0\.0: expected a share above 0.*no class is rare"):
        load_config("retinanet_pvt_tiny", repeat)
    repeat += ["DATALOADER.REPEAT_THRESHOLD", "0.01"]
    assert load_config("retinanet_pvt_tiny", repeat).DATALOADER.REPEAT_THRESHOLD == 0.01
    with pytest.raises(ConfigError, match=r"SAMPLER_TRAIN = .*expected TrainingSampler.*SemanticSegmentor"):
        load_config("retinanet_pvt_tiny", [*repeat, "MODEL.META_ARCHITECTURE", "SemanticSegmentor"])
