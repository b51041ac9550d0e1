"""HTML pages escape strings of users, embed their images and load nothing from elsewhere."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from pvt_det.utils import html

_VOID = {"meta", "img", "br"}


class _Balance(HTMLParser):
    """Collects start tags and checks that each is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_self_contained():
    nasty = "<script>alert(\"x\")</script> & 'y'"
    text = html.page(
        nasty,
        [
            (nasty, html.table([nasty, "n"], [[nasty, 3], ["b", 4.5]])),
            ("plain", nasty),
            ("charts", html.join(html.bars({nasty: 4, "none": 0}), html.bars({}), html.notice(nasty, "bad"))),
            ("more", html.details(nasty, html.gallery([html.picture(np.zeros((4, 6, 3), np.uint8), nasty)]))),
        ],
        lead=nasty,
    )
    page = _Balance()
    page.feed(text)
    assert page.open == []
    tags = [tag for tag, _ in page.seen]
    assert "script" not in tags
    assert "link" not in tags
    assert text.count("&lt;script&gt;") >= 8
    assert all(a["src"].startswith("data:image/jpeg;base64,") for tag, a in page.seen if tag == "img")
    assert not re.search(r"https?://", text)
    assert ("td", {"class": "number"}) in page.seen


def test_picture_keeps_its_pixels():
    pixels = np.full((8, 16, 3), (200, 40, 90), np.uint8)
    markup = html.picture(pixels, "a red field")
    data = base64.b64decode(re.search(r"base64,([^\"]+)", markup)[1])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (16, 8)
        assert np.abs(np.asarray(image).astype(int) - pixels).max() < 6
    assert 'alt="a red field"' in markup


def test_bar_lengths_are_proportional():
    assert re.findall(r"--share:([\d.]+)", html.bars({"a": 10, "b": 5, "c": 0})) == ["1.0000", "0.5000", "0.0000"]
