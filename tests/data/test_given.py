"""Annotations in other formats are refused by `train` and `eval` with the command that converts them."""

from __future__ import annotations

import re
import shlex

import pytest
from PIL import Image

from pvt_det.cli.inspect import build_parser
from pvt_det.errors import DataError
from tests.command_line import run_command

VOC = "<annotation><filename>a.png</filename><object><name>c</name></object></annotation>"


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "my photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "my photos/a.png")
    for name, text in {
        "voc/a.xml": VOC,
        "labels/a.txt": "0 .5 .5 .5 .5",
        "data.yaml": "train: my photos\nnames: [a]",
        "cvat.xml": "<annotations/>",
        "set.json": "{}",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "mine.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(command, *words, config):
    with pytest.raises(DataError) as caught:
        run_command(command, ["--config-file", str(config), *words])
    return str(caught.value)


def converting_command(message):
    words = shlex.split(re.search(r"\n  (pvt-det inspect .*)", message)[1])
    return build_parser().parse_words(words[2:])


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("voc", "a folder of annotations in the format of Pascal VOC"),
        ("labels", "a folder of annotations in the format of YOLO"),
        ("cvat.xml", "annotations in the format of CVAT"),
        ("data.yaml", "a YAML file, as YOLO data sets have it"),
        (".", "a folder, which contains labels/, my photos/, voc/, 2 .yaml files, 1 .json file, 1 .xml file"),
    ],
)
def test_train_names_the_command_that_converts(root, repo_root, source, what):
    words = ["--train-json", source, "--train-images", "my photos", "--val-json", "set.json", "--val-images", "photos"]
    message = refused("train", *words, config=repo_root / "configs/retinanet_pvt_tiny.yaml")
    assert f"DATASETS.TRAIN_JSON (--train-json) is {source}, {what}. Expected COCO JSON." in message
    args = converting_command(message)
    assert (str(args.annotations), str(args.val_json), str(args.val_images)) == (source, "set.json", "photos")
    assert str(args.images) == ("None" if source == "data.yaml" else "my photos")
    # Another name than that of the existing file.
    assert str(args.write_config) == "mine2.yaml"
    assert "train --config-file mine2.yaml" in message


def test_eval_keeps_the_classes_of_the_run(root, untrained_run):
    message = refused("eval", "--val-json", "voc", "--val-images", "my photos", config=untrained_run)
    args = converting_command(message)
    assert (str(args.annotations), str(args.images)) == ("voc", "my photos")
    assert args.classes_of == str(untrained_run / "config.yaml")
    assert f"Then give --val-json {args.write_json}, or converted_val.json if it writes that too" in message


def test_swapped_arguments(root, repo_root):
    words = ["--train-json", "my photos", "--train-images", "set.json"]
    message = refused("train", *words, config=repo_root / "configs/retinanet_pvt_tiny.yaml")
    assert message.endswith("they are swapped. Give --train-json set.json --train-images 'my photos'")


def test_image_folder_that_does_not_exist_is_left_out_of_the_command(root, repo_root):
    words = ["--train-json", "voc", "--train-images", "moved"]
    args = converting_command(refused("train", *words, config=repo_root / "configs/retinanet_pvt_tiny.yaml"))
    assert (str(args.annotations), args.images) == ("voc", None)
