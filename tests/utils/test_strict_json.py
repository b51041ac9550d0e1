"""JSON as Python's own parser reads it, except that no key is dropped silently."""

import gc
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvt_det.utils import strict_json


@pytest.fixture
def slow(monkeypatch):
    """Return the list of texts that were left to Python's parser."""
    read, texts = json.loads, []
    monkeypatch.setattr(strict_json.json, "loads", lambda text, **options: texts.append(text) or read(text, **options))
    return texts


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.booleans())
def test_values_are_those_of_python(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", errors="surrogatepass")
    try:
        expected = json.loads(text)
    except ValueError:  # a lone surrogate
        return
    assert repr(strict_json.loads(text)) == repr(expected)


def test_usual_files_are_read_fast(slow):
    usual = {
        "info": {"url": "http://x.org:80", "by": ["http://y.org", "z"]},
        "images": [{"id": 1, "file_name": "a:b.jpg", "url": "http://c"}],
        "annotations": [{"id": 1, "bbox": [1, 2.5, 3, 4], "segmentation": {"counts": "0:1:", "size": [3, 4]}}],
    }
    assert strict_json.loads(json.dumps(usual).encode()) == usual
    assert slow == []


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [{"id": 1, "id": 2}]}',
        '{"a": [{"b": {"id": 1.0, "id": 2.0}}]}',
        '{"a": {"id": "\\u003a", "id": 2}}',
        '{"a": [[{"id": 1, "id": 2}]]}',
        '{"a": {"id": {"x": ":"}, "id": {}}}',
    ],
)
def test_conflicting_keys_are_refused(text):
    with pytest.raises(ValueError, match="key 'id' appears twice in one object with different values"):
        strict_json.loads(text.encode())


def test_unusual_texts_are_left_to_python(slow):
    assert strict_json.loads(b'{"a": 1, "a": 1}') == {"a": 1}
    assert math.isnan(strict_json.loads(b'{"a": NaN}')["a"])
    assert strict_json.loads('{"a": "ü"}'.encode("utf-16-le")) == {"a": "ü"}
    assert len(slow) == 3
    for broken in (b"", b"{", b'{"a": "\xff"}', b"[" * 100_000):
        with pytest.raises((ValueError, RecursionError)):
            strict_json.loads(broken)
    assert gc.isenabled()
