"""Files of arrays: they are mapped into memory, and any damage is noticed."""

import mmap

import numpy as np
import pytest

from pvt_det.utils.arrays import DamagedFileError, map_arrays, write_arrays

ARRAYS = {
    "boxes": np.arange(12, dtype=np.float64).reshape(3, 4) / 8,
    "ids": np.array([7, -3], dtype=np.int64),
    "flags": np.array([True, False, True]),
    "empty": np.zeros((0, 4)),
    "text": np.frombuffer("über".encode(), dtype=np.uint8),
}
FACTS = {"format": "test", "names": ["a", "ü", "\ud800"]}


def test_arrays_and_facts_come_back_and_are_read_only(tmp_path):
    write_arrays(tmp_path / "file", ARRAYS, FACTS)
    arrays, facts = map_arrays(tmp_path / "file")
    assert facts == FACTS
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert array.dtype == ARRAYS[name].dtype
        assert not array.flags.writeable
    base = arrays["ids"]
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base.obj, mmap.mmap)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    # Other users may read it, as any other file.
    (tmp_path / "other").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("place", [0, 3, 8, 40, 200, -1, -40])
def test_a_changed_byte_is_noticed(tmp_path, place):
    path = tmp_path / "file"
    write_arrays(path, ARRAYS, FACTS)
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"file is damaged"):
        map_arrays(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04]\x94.", b"{}" * 40, b"\0" * 100])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError):
        map_arrays(path)
    write_arrays(path, ARRAYS, FACTS)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DamagedFileError):
        map_arrays(path)
