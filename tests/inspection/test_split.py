"""Tests of splitting a data set: which images stay together, how many are chosen, and what is written."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hotcoco import COCO
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pvt_det.config import load_config
from pvt_det.inspection.files import FileFacts
from pvt_det.inspection.inspect import find_leakage, inspect_dataset
from pvt_det.inspection.split import choose_validation, group_images
from pvt_det.utils.cli import run_cli
from tests.command_line import run_command


def main(*words):
    return run_cli(lambda: run_command("inspect", [str(word) for word in words]))


@st.composite
def data_sets(draw):
    """Groups of image ids, file names, and class names of the objects in each image."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=40))
    ids = iter(range(sum(sizes)))
    groups = [[next(ids) for _ in range(size)] for size in sizes]
    names = {image: f"{(image * 7919) % 10007}.jpg" for image in range(sum(sizes))}
    classes = {image: draw(st.sets(st.sampled_from("abcd"))) for image in names}
    return groups, names, classes


@given(data=data_sets(), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9), shuffle=st.randoms())
@settings(deadline=None, max_examples=50)
def test_choice_keeps_groups_meets_the_target_and_ignores_order(data, fraction, seed, shuffle: random.Random):
    groups, names, classes = data
    chosen = choose_validation(groups, names, classes, fraction, seed)
    assert all(set(group) <= chosen or not set(group) & chosen for group in groups)
    assert chosen <= names.keys()
    largest = max(map(len, groups))
    assert abs(len(chosen) - fraction * len(names)) <= largest / 2 + 1e-6
    # The share is also right for the groups of each rarest class.
    images_of = Counter(name for of_image in classes.values() for name in of_image)
    strata: dict[str, list[int]] = {}
    for group in groups:
        of_group = sorted({name for image in group for name in classes[image]}, key=lambda c: (images_of[c], c))
        strata.setdefault(of_group[0] if of_group else "", []).extend(group)
    for images in strata.values():
        assert abs(len(chosen & set(images)) - fraction * len(images)) <= largest + 1e-6
    # Other ids and another order give the same images.
    new_ids = dict(zip(names, shuffle.sample(range(1000), len(names)), strict=True))
    moved = [[new_ids[image] for image in group] for group in groups]
    for items in (moved, *moved):
        shuffle.shuffle(items)
    again = choose_validation(
        moved,
        {new_ids[image]: name for image, name in names.items()},
        {new_ids[image]: of_image for image, of_image in classes.items()},
        fraction,
        seed,
    )
    assert {new_ids[image] for image in chosen} == again


def test_seeds_choose_different_images():
    names = {image: f"{image}.jpg" for image in range(100)}
    groups = [[image] for image in names]
    choices = [choose_validation(groups, names, {}, 0.2, seed) for seed in (0, 0, 1)]
    assert choices[0] == choices[1] != choices[2]
    assert [len(choice) for choice in choices] == [20, 20, 20]


def test_images_are_grouped_by_content_looks_and_roboflow_name():
    def facts(digest: str, bits: int = 0, start: int = 0) -> FileFacts:
        """Return facts whose hash has `bits` ones from bit `start`."""
        return FileFacts(digest, False, (((1 << bits) - 1) << start).to_bytes(32, "little"))

    names = {
        **{1: "same.jpg", 2: "a/same_again.jpg"},
        **{3: "chain1.jpg", 4: "chain2.jpg", 5: "chain3.jpg"},
        **{6: "x_jpg.rf.12ab.jpg", 7: "b\\x_jpg.rf.34cd.jpg", 8: "x_jpg.jpg", 9: "y_jpg.rf.12ab.jpg"},
        10: "unreadable.jpg",
    }
    hashes = {1: (200, 0), 2: (1, 250), 3: (10, 20), 4: (20, 20), 5: (30, 20), 6: (60, 0), 7: (90, 0), 8: (120, 0)}
    found = {image: facts(str(image), *bits) for image, bits in hashes.items()}
    found[9] = facts("9", 61 + 10, 0)  # 11 bits differ from 6: not similar
    found[2] = FileFacts("1", False, found[2].perceptual_hash)
    groups = {frozenset(group) for group in group_images(names, found)}
    assert groups == {frozenset(each) for each in ([1, 2], [3, 4, 5], [6, 7], [8], [9], [10])}


def scene(generator: np.random.Generator) -> Image.Image:
    return Image.fromarray(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((64, 48))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """30 scenes. Two have a darker copy, two have Roboflow's copies, and two are stored twice. A cat in every third."""
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    images, annotations = [], []

    def add(name: str, picture: Image.Image, has_cat: bool) -> None:
        picture.save(folder / name)
        image = {"id": 900 - len(images), "file_name": name, "width": 64, "height": 48, "license": 7, "camera": "x"}
        images.append(image)
        for category in (40, 20) if has_cat else (20,):
            box = {"bbox": [4, 6, 12, 20], "area": 240, "iscrowd": 0, "note": name}
            annotations.append({"id": 5000 + len(annotations), "image_id": image["id"], "category_id": category, **box})

    for number in range(30):
        picture, has_cat = scene(generator), number % 3 == 0
        is_copied = number in (2, 3)
        add(f"s{number}_jpg.rf.aa.png" if is_copied else f"s{number}.png", picture, has_cat)
        if number < 2:
            add(f"dark{number}.png", picture.point(lambda value: value * 0.8), has_cat)
        elif is_copied:
            add(f"s{number}_jpg.rf.bb.png", picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), has_cat)
        elif number < 6:
            add(f"again{number}.png", picture, has_cat)
    content = {
        "info": {"year": 2026, "note": "ä"},
        "licenses": [{"id": 7, "name": "CC"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 20, "name": "dog"}, {"id": 40, "name": "cat"}],
        "videos": [1, 2],
    }
    (folder / "all.json").write_text(json.dumps(content))
    return folder


def names_in(file: Path) -> set[str]:
    return {image["file_name"] for image in json.loads(file.read_text())["images"]}


def test_written_parts_are_complete_and_a_config_uses_both(data, tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    options = ("--val-fraction", 0.25, "--seed", 3, "--weights", "none", "--device", "cpu")
    assert main(data / "all.json", data, *options, "--write-config", config) == 0
    whole = json.loads((data / "all.json").read_text())
    files = [tmp_path / "mine_train.json", tmp_path / "mine_val.json"]
    train, val = (json.loads(file.read_text()) for file in files)
    assert len(val["images"]) in (8, 9, 10)  # a quarter of 36, in groups of at most 2
    for key in ("images", "annotations"):
        assert sorted([*train[key], *val[key]], key=lambda each: each["id"]) == sorted(
            whole[key], key=lambda each: each["id"]
        )
    for part in (train, val):
        assert list(part) == list(whole)
        assert all(part[key] == whole[key] for key in ("info", "licenses", "categories", "videos"))
        assert {a["image_id"] for a in part["annotations"]} == {image["id"] for image in part["images"]}
    inspected = [inspect_dataset(file, data, tmp_path / "unused", perceptual_hashes=True) for file in files]
    assert find_leakage(*inspected) == []
    stems = [{name.partition(".rf.")[0] for name in names_in(file)} for file in files]
    assert not stems[0] & stems[1]
    cats = [found.statistics.classes[1].images for found in inspected]
    assert cats[1] in (2, 3, 4)  # a quarter of 12
    cfg = load_config(config)
    assert [str(file.resolve()) for file in files] == [cfg.DATASETS.TRAIN_JSON, cfg.DATASETS.VAL_JSON]
    assert cfg.DATASETS.TRAIN_IMAGES == cfg.DATASETS.VAL_IMAGES == str(data.resolve())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cat", *map(str, (cats[0], cats[0], cats[1], cats[1]))] in lines
    assert ["all", *(str(len(part[key])) for part in (train, val) for key in ("images", "annotations"))] in lines


def test_same_seed_gives_the_same_parts_in_any_order_and_files_are_kept(data, tmp_path, capsys):
    content = json.loads((data / "all.json").read_text())
    content["images"].reverse()
    random.Random(1).shuffle(content["annotations"])
    (tmp_path / "shuffled.json").write_text(json.dumps(content))
    for source, output in ((data / "all.json", "a.json"), (tmp_path / "shuffled.json", "b.json")):
        assert main(source, data, "--val-fraction", 0.3, "--write-json", tmp_path / output) == 0
    assert names_in(tmp_path / "a_val.json") == names_in(tmp_path / "b_val.json")
    before = (tmp_path / "a_val.json").read_bytes()
    (tmp_path / "a.json").unlink()
    assert main(data / "all.json", data, "--val-fraction", 0.3, "--write-json", tmp_path / "a.json") == 2
    assert f"{tmp_path / 'a_val.json'} already exists" in capsys.readouterr().err
    assert (tmp_path / "a_val.json").read_bytes() == before
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("name", ["YOLO", "Pascal VOC", "CVAT"])
def test_other_formats_are_converted_and_split_alike(name, data, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    coco = COCO(str(data / "all.json"))
    {"YOLO": coco.to_yolo, "Pascal VOC": coco.to_voc, "CVAT": lambda path: coco.to_cvat(f"{path}/a.xml")}[name](
        str(folder)
    )
    source = folder / "a.xml" if name == "CVAT" else folder
    for annotations, output in ((data / "all.json", "coco.json"), (source, "other.json")):
        assert main(annotations, data, "--val-fraction", 0.2, "--write-json", tmp_path / output) == 0
    for part in ("", "_val"):
        assert names_in(tmp_path / f"coco{part}.json") == names_in(tmp_path / f"other{part}.json")


def with_images(data: Path, folder: Path, *numbers: int, **first_box) -> Path:
    """Write the annotations of some images only, with changes of the first object."""
    content = json.loads((data / "all.json").read_text())
    content["images"] = [content["images"][number] for number in numbers]
    ids = [image["id"] for image in content["images"]]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    content["annotations"][0].update(first_box)
    file = folder / "some.json"
    file.write_text(json.dumps(content))
    return file


def test_class_of_one_part_is_reported_and_refused_when_strict(data, tmp_path, capsys):
    source = with_images(data, tmp_path, 12, 13, 14, 16, 17, 19, 20)  # only the first has a cat
    words = ["--val-fraction", 0.4, "--write-json"]
    assert main(source, data, *words, tmp_path / "x.json") == 0
    assert "look at: 1 x classes without objects in the validation part" in capsys.readouterr().out.replace("\n", " ")
    assert main(source, data, *words, tmp_path / "y.json", "--strict") == 3
    assert not (tmp_path / "y.json").exists()


def test_broken_parts_stay_in_the_training_part(data, tmp_path):
    source = with_images(data, tmp_path, *range(20), bbox=[999, 2, 3, 4])
    content = json.loads(source.read_text())
    content["images"].append({"id": 1, "file_name": "missing.png", "width": 64, "height": 48})
    source.write_text(json.dumps(content))
    options = ("--val-fraction", 0.3, "--write-json", tmp_path / "x.json")
    assert main(source, data, *options) == 3
    assert not (tmp_path / "x.json").exists()
    assert main(source, data, *options, "--on-error", "skip") == 0
    train, val = (json.loads((tmp_path / name).read_text()) for name in ("x.json", "x_val.json"))
    assert "missing.png" in names_in(tmp_path / "x.json")
    assert len(train["annotations"]) + len(val["annotations"]) == len(content["annotations"])


def test_data_that_cannot_be_divided_is_refused(data, tmp_path, capsys):
    source = with_images(data, tmp_path, 0, 1)  # an image and its darker copy
    assert main(source, data, "--val-fraction", 0.5, "--write-json", tmp_path / "x.json") == 3
    error = capsys.readouterr().err
    assert "no object for the validation part" in error or "no object for the training part" in error
    assert "2 images in 1 group of near duplicates, the largest with 2 images" in error
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--val-fraction 0", "--val-fraction 0.0: expected a number between 0 and 1"),
        ("--val-fraction 1", "expected a number between 0 and 1"),
        ("--val-fraction nan", "expected a number between 0 and 1"),
        ("--val-fraction 0.2 --val-json {all} --write-json x.json", "--val-json both define the validation data"),
        ("--val-fraction 0.2", "--val-fraction needs the name of a file to write"),
        ("--seed 1", "--seed has no effect without --val-fraction"),
        ("--val-fraction 0.2 --task semantic --write-config x.yaml", "--val-fraction has no effect on label maps"),
    ],
)
def test_options_that_do_not_fit_are_refused(data, capsys, words, message):
    assert main(data / "all.json", data, *words.format(all=data / "all.json").split()) == 2
    assert message in capsys.readouterr().err


def test_data_set_with_validation_data_is_refused(data, tmp_path, capsys):
    (tmp_path / "annotations").mkdir()
    for part in ("train", "val"):
        (tmp_path / f"annotations/{part}.json").write_bytes((data / "all.json").read_bytes())
        (tmp_path / part).symlink_to(data)
    assert main(tmp_path, "--val-fraction", 0.2, "--write-json", tmp_path / "x.json") == 2
    assert f"has validation data already, {tmp_path / 'val/all.json'}" in capsys.readouterr().err
