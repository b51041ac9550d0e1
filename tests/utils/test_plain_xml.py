"""XML files from users are read without document types, and broken ones are named."""

from __future__ import annotations

import pytest

from pvt_det.errors import DataError
from pvt_det.utils.plain_xml import line_of, read_plain_xml


def test_text_entities_and_lines(tmp_path):
    path = tmp_path / "a.xml"
    path.write_bytes(b'\xef\xbb\xbf<?xml version="1.0"?>\n<a>\n  <b x="1">Dog &amp; c\xc3\xa4t</b>\n</a>')
    root = read_plain_xml(path, DataError)
    (child,) = root
    assert (root.tag, child.text, child.get("x")) == ("a", "Dog & cät", "1")
    assert (line_of(root), line_of(child)) == (2, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no element found"),
        (b"<a><b></a>", "mismatched tag"),
        (b"<a>", "broken or cut short"),
        (b'<?xml version="1.0" encoding="klingon"?><a/>', "unknown encoding"),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', "line 1: <!DOCTYPE is refused"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "<!DOCTYPE is refused"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "a.xml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_plain_xml(path, DataError)
    assert str(path) in str(caught.value)
