"""Cache of annotation files: each file is parsed once per process, large ones once per machine, and when it changes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from pvt_det.data.coco import annotations, cache
from pvt_det.data.coco.cache import forget_annotations, load_annotations, open_annotations
from pvt_det.data.coco.packed import open_packed, write_packed
from pvt_det.errors import DataError
from pvt_det.utils.arrays import write_arrays
from pvt_det.utils.digest import file_digest

CONTENT = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 10, "height": 10}],
    "categories": [{"id": 1, "name": "cup"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25}],
}


@pytest.fixture
def reads(monkeypatch):
    """Return the list of parsed files, in order."""
    read, files = annotations.read_json, []

    def counted(file):
        files.append(str(file))
        return read(file)

    monkeypatch.setattr(annotations, "read_json", counted)
    return files


def test_unchanged_file_is_parsed_once_and_problems_are_returned_each_time(tmp_path, reads):
    file = tmp_path / "train.json"
    file.write_text(json.dumps(CONTENT))
    (first, problems), (second, again) = load_annotations(file), load_annotations(file)
    assert second is first
    assert reads == [str(file)]
    assert problems.problems.keys() == again.problems.keys() == {"annotation without iscrowd"}
    problems.add("another", "image 1")
    assert "another" not in load_annotations(file)[1].problems


def test_changed_or_removed_file_is_parsed_again(tmp_path, reads):
    file = tmp_path / "train.json"
    file.write_text(json.dumps(CONTENT))
    load_annotations(file)
    file.write_text(json.dumps(CONTENT | {"categories": [{"id": 1, "name": "mug cup"}]}))
    assert load_annotations(file)[0].class_names == ["mug cup"]
    forget_annotations(file)
    load_annotations(file)
    assert len(reads) == 3


def test_missing_file_raises_each_time(tmp_path):
    for _ in range(2):
        with pytest.raises(DataError, match="does not exist"):
            load_annotations(tmp_path / "nowhere.json")


def test_without_drops_images_and_their_annotations(tmp_path):
    file = tmp_path / "train.json"
    more = {"id": 2, "file_name": "2.jpg", "width": 10, "height": 10}
    file.write_text(json.dumps(CONTENT | {"images": [*CONTENT["images"], more]}))
    data, _ = load_annotations(file)
    kept = data.without({1})
    assert ([image["id"] for image in kept.images], kept.annotations, kept.categories) == ([2], [], data.categories)
    assert data.without(frozenset()) is data


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Write even small files to the cache folder, and return its folder of annotations."""
    monkeypatch.setenv("PVT_DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_LARGE", 0)
    return tmp_path / "cache/annotations"


def new_process():
    """Forget everything that is in memory."""
    cache._opened.clear()
    cache._unpacked.clear()


@pytest.fixture
def file(tmp_path):
    """Write an annotation file that was last changed long ago."""
    path = tmp_path / "train.json"
    path.write_text(json.dumps(CONTENT))
    os.utime(path, (1e9, 1e9))
    return path


def packed_files(folder):
    return sorted(folder.glob("*.safetensors"))


def test_other_processes_map_the_result_of_the_first(folder, file, reads):
    first = open_annotations(file)
    (stored,) = packed_files(folder)
    assert first.path == stored
    new_process()
    # Neither its name nor its place matters, only its content.
    moved = file.rename(file.with_name("moved.json"))
    again = open_annotations(moved)
    assert again.path == stored
    assert again.unpack() == first.unpack()
    assert repr(again.findings.problems) == repr(first.findings.problems)
    assert len(reads) == 1


def test_digest_is_remembered_for_an_unchanged_file(folder, file, reads, monkeypatch):
    open_annotations(file)
    new_process()
    digests = []
    monkeypatch.setattr(cache, "file_digest", lambda path: digests.append(path) or file_digest(path))
    assert open_annotations(file).sha256 == file_digest(file)
    assert file not in digests
    # Another content of the same size, with another time of modification.
    file.write_text(file.read_text().replace("cup", "mug"))
    assert open_annotations(file).class_names == ["mug"]
    assert file in digests
    assert len(packed_files(folder)) == len(reads) == 2


def test_a_file_that_has_just_changed_is_not_trusted_by_its_time(folder, file):
    os.utime(file)
    open_annotations(file)
    assert list(folder.glob("*.sha256")) == []


def test_options_and_the_version_of_the_check_have_results_of_their_own(folder, file, reads, monkeypatch):
    open_annotations(file)
    open_annotations(file, allow_outside=True)
    new_process()
    monkeypatch.setattr(cache, "_checker", lambda: "another version")
    open_annotations(file)
    assert len(packed_files(folder)) == len(reads) == 3


def other(path):
    write_packed(path, replace(open_packed(path), sha256="0" * 64))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(path.read_bytes()[:-9] + b"12345678\n"),
        lambda path: path.write_bytes(pickle.dumps({"annotations": []})),
        lambda path: path.write_bytes(b""),
        lambda path: write_arrays(path, {}, {"format": "other"}),
        other,
    ],
    ids=["truncated", "changed", "pickle", "empty", "format", "other"],
)
def test_damaged_and_foreign_results_are_written_again(folder, file, reads, damage, caplog):
    expected = open_annotations(file).unpack()
    (stored,) = packed_files(folder)
    good = stored.read_bytes()
    new_process()
    damage(stored)
    assert open_annotations(file).unpack() == expected
    assert f"{stored}" in caplog.text
    assert "It is written again." in caplog.text
    assert stored.read_bytes() == good
    assert len(reads) == 2


def test_a_folder_that_cannot_be_written_costs_only_time(folder, file, reads, caplog):
    folder.parent.write_text("a file is in the way")
    assert open_annotations(file).objects == 1
    assert "Set the environment variable PVT_DET_CACHE" in caplog.text
    assert len(reads) == 1


def test_processes_that_start_together_read_the_file_once(folder, file, tmp_path):
    """The second process waits for the first, and maps its result."""
    program = (
        "import sys; from pvt_det.data.coco import annotations, cache; cache._LARGE = 0; read = annotations.read_json\n"
        "annotations.read_json = lambda file: (print('read'), __import__('time').sleep(0.5), read(file))[2]\n"
        "print(cache.open_annotations(sys.argv[1]).path)"
    )
    command = [sys.executable, "-c", program, str(file)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for process in started for line in process.communicate(timeout=120)[0].split()]
    (stored,) = packed_files(folder)
    assert sorted(lines) == sorted(["read", str(stored), str(stored)])


def test_results_that_nobody_uses_are_removed(folder, file):
    folder.mkdir(parents=True)
    old, recent = folder / "old.safetensors", folder / "recent.safetensors"
    for path in (old, recent):
        path.write_bytes(b"")
    os.utime(old, (1e9, 1e9))
    open_annotations(file)
    assert not old.exists()
    assert recent.exists()
