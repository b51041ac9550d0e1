"""Build self-contained HTML pages for reports: one file with inline styles and images, no scripts.

Strings are escaped when they are inserted into a page, since class and file names come from users. Only `Html`, which
the functions of this module return, is inserted unchanged.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


class Html(str):
    """A string that already is markup and is not escaped."""

    __slots__ = ()


def escape(value: Any) -> Html:
    """Convert a value to markup, escaping it unless it is `Html`.

    Args:
        value: Any value. It is converted to a string.
    """
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(*parts: Any) -> Html:
    """Concatenate pieces of a page, separated by line breaks.

    Args:
        parts: The pieces. They are escaped unless they are `Html`.
    """
    return Html("\n".join(escape(part) for part in parts))


def page(title: str, sections: Iterable[tuple[str, Any]], *, lead: Any = "") -> str:
    """Build a whole page, which follows the reader's light or dark color scheme and fits small screens.

    Args:
        title: Title of the page, which is also its heading.
        sections: Heading and content of each section.
        lead: Introduction above the first section.
    """
    body = [Html(f"<h1>{escape(title)}</h1>"), paragraph(lead) if lead else Html("")]
    body += [Html(f"<section><h2>{escape(heading)}</h2>\n{escape(content)}</section>") for heading, content in sections]
    return _PAGE.format(title=escape(title), style=_STYLE, body=join(*body))


def paragraph(content: Any) -> Html:
    """Build a paragraph. Line breaks in the content are kept.

    Args:
        content: Content of the paragraph, escaped unless it is `Html`.
    """
    return Html(f"<p>{escape(content)}</p>")


def notice(content: Any, level: str) -> Html:
    """Build a highlighted paragraph.

    Args:
        content: Content of the paragraph, escaped unless it is `Html`.
        level: Color of the highlight: "good", "warning" or "bad".
    """
    return Html(f'<p class="notice {escape(level)}">{escape(content)}</p>')


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """Build a table that scrolls horizontally if it is too wide. Numbers are aligned to the right.

    Args:
        header: Headings of the columns.
        rows: Cells of each row, as many as there are columns. They are escaped unless they are `Html`.
    """
    rows = [list(row) for row in rows]
    numeric = [any(_is_number(row[column]) for row in rows) for column in range(len(header))]
    head = "".join(
        f'<th class="number">{escape(cell)}</th>' if right else f"<th>{escape(cell)}</th>"
        for cell, right in zip(header, numeric, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return Html(f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>')


def _cell(value: Any) -> str:
    return f'<td class="number">{escape(value)}</td>' if _is_number(value) else f"<td>{escape(value)}</td>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def bars(values: Mapping[str, float]) -> Html:
    """Build a bar chart with a labeled row for each value.

    Args:
        values: Label → value, 0 or greater.
    """
    most = max(values.values(), default=0) or 1
    rows = [
        f'<span>{escape(label)}</span><span class="bar" style="--share:{value / most:.4f}">{value:,}</span>'
        for label, value in values.items()
    ]
    return Html(f'<div class="bars">{"".join(rows)}</div>')


def picture(pixels: npt.NDArray[np.uint8], caption: Any = "", *, quality: int = 85) -> Html:
    """Embed an image in the page as JPEG, with a caption.

    Args:
        pixels: The image, uint8, `H×W×3` RGB or `H×W` grayscale.
        caption: Caption below the image.
        quality: JPEG quality, 1 to 95.
    """
    return Html(f"<figure>{_image(pixels, caption, quality)}<figcaption>{escape(caption)}</figcaption></figure>")


def pair(left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8], caption: Any = "", *, quality: int = 85) -> Html:
    """Embed two images with one caption, side by side, or one below the other on small screens.

    Args:
        left: The left image, uint8, `H×W×3` RGB or `H×W` grayscale.
        right: The right image, in the same format.
        caption: Caption below the images.
        quality: JPEG quality, 1 to 95.
    """
    images = "".join(_image(pixels, caption, quality) for pixels in (left, right))
    return Html(f'<figure><div class="pair">{images}</div><figcaption>{escape(caption)}</figcaption></figure>')


def swatch(color: Sequence[int] | None) -> Html:
    """Build a small colored square.

    Args:
        color: Red, green and blue, 0 to 255. None for gray stripes.
    """
    style = "" if color is None else f' style="background:rgb({",".join(str(int(value)) for value in color)})"'
    return Html(f'<span class="swatch"{style}></span>')


def legend(entries: Iterable[tuple[Any, Sequence[int] | None]]) -> Html:
    """Build a line of colored squares with their names, in as many rows as needed.

    Args:
        entries: Name and color of each entry, see `swatch`.
    """
    items = "".join(f"<span>{swatch(color)}{escape(name)}</span>" for name, color in entries)
    return Html(f'<div class="legend">{items}</div>')


def row(pictures: Iterable[tuple[Any, npt.NDArray[np.uint8]]], caption: Any = "", *, quality: int = 85) -> Html:
    """Embed images with one caption, side by side, or in several rows on small screens.

    Args:
        pictures: Title and pixels of each image, uint8, `H×W×3` RGB or `H×W` grayscale.
        caption: Caption below the images.
        quality: JPEG quality, 1 to 95.
    """
    images = "".join(
        f"<div>{_image(pixels, f'{title}: {caption}', quality)}<small>{escape(title)}</small></div>"
        for title, pixels in pictures
    )
    return Html(f'<figure><div class="pair row">{images}</div><figcaption>{escape(caption)}</figcaption></figure>')


def heat_table(names: Sequence[Any], values: npt.NDArray[np.floating]) -> Html:
    """Build a square table of percentages in which higher values have a stronger background.

    Args:
        names: Names of the rows, which are also those of the columns.
        values: Percentages from 0 to 100, `N×N`. Values that round to 0 are left out.
    """
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    lines = []
    for name, line in zip(names, values, strict=True):
        cells = "".join(
            f'<td style="--heat:{value:.0f}%">{f"{value:.0f}" if value >= 0.5 else ""}</td>' for value in line
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    table = f"<table><thead><tr><td></td>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table>"
    return Html(f'<div class="wide heat">{table}</div>')


def _image(pixels: npt.NDArray[np.uint8], caption: Any, quality: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    height, width = pixels.shape[:2]
    plain = "" if isinstance(caption, Html) else html.escape(str(caption), quote=True)
    return f'<img loading="lazy" width="{width}" height="{height}" alt="{plain}" src="data:image/jpeg;base64,{data}">'


def drawing(light: str, dark: str, caption: Any = "") -> Html:
    """Embed an SVG drawing at the available width, with a caption.

    Args:
        light: SVG for the light color scheme.
        dark: SVG for the dark color scheme.
        caption: Caption below the drawing.
    """
    light, dark = (base64.b64encode(svg.encode()).decode("ascii") for svg in (light, dark))
    kind = "data:image/svg+xml;base64"
    return Html(
        f'<figure class="drawing"><picture><source media="(prefers-color-scheme: dark)" srcset="{kind},{dark}">'
        f'<img alt="{html.escape(str(caption), quote=True)}" src="{kind},{light}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def drawings(parts: Iterable[Html]) -> Html:
    """Arrange drawings side by side if two fit, or one below the other on small screens.

    Args:
        parts: The drawings, as `drawing` returns them.
    """
    return Html(f'<div class="drawings">{"".join(parts)}</div>')


def mosaic(pictures: Iterable[Html]) -> Html:
    """Arrange small images closely, four in a row, or two on small screens.

    Args:
        pictures: The images, as `picture` returns them.
    """
    return Html(f'<div class="mosaic">{"".join(pictures)}</div>')


def gallery(pictures: Iterable[Html]) -> Html:
    """Arrange images in rows of as many as fit.

    Args:
        pictures: The images, as `picture` returns them.
    """
    return Html(f'<div class="gallery">{"".join(pictures)}</div>')


def code(text: str) -> Html:
    """Build a block of preformatted lines, which scrolls horizontally if they are too long.

    Args:
        text: The lines. They are escaped.
    """
    return Html(f"<pre>{html.escape(text)}</pre>")


def details(summary: Any, content: Any) -> Html:
    """Build a section that is collapsed until it is clicked.

    Args:
        summary: The line that is always shown.
        content: The content that is shown after a click, escaped unless it is `Html`.
    """
    return Html(f"<details><summary>{escape(summary)}</summary>\n{escape(content)}</details>")


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --back: #fff; --line: #d8dce0; --soft: #f3f5f7; --mark: #2f6fbd;
  --good: #1a7f4b; --warning: #9a6700; --bad: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ea; --back: #15181b; --line: #3a4046; --soft: #1f2428;
  --mark: #6aa5ee; --good: #4cc38a; --warning: #e0b03d; --bad: #ff7b6b; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0 auto;
  max-width: 72rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
p { white-space: pre-line; margin: .5rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; }
th.number, .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.notice { border-left: 4px solid; background: var(--soft); padding: .5rem .8rem; }
.good { border-color: var(--good); } .warning { border-color: var(--warning); } .bad { border-color: var(--bad); }
.bars { display: grid; grid-template-columns: minmax(4rem, max-content) 1fr; gap: .2rem .7rem; font-size: .9rem; }
.bar::before { content: ""; display: inline-block; vertical-align: middle; height: .9em; margin-right: .4em;
  width: calc(var(--share) * (100% - 6rem)); background: var(--mark); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); gap: 1rem; }
.mosaic { display: grid; grid-template-columns: repeat(auto-fill, minmax(max(9rem, 24%), 1fr)); gap: .4rem; }
.mosaic img { width: 100%; }
figure { margin: 0; } img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; margin-top: .2rem; }
summary { cursor: pointer; }
.drawings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem;
  align-items: start; margin-top: .8rem; } .drawing { max-width: 52rem; } .drawing img { width: 100%; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .25rem; }
.pair img { width: 100%; } figure:has(> .pair) { margin-bottom: 1.5rem; }
.swatch { display: inline-block; width: .85em; height: .85em; margin-right: .4em; vertical-align: -.05em;
  background: repeating-linear-gradient(135deg, #464646 0 2px, #c8c8c8 2px 4px); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .85rem; margin: .5rem 0 1rem; }
.pair.row { grid-template-columns: repeat(auto-fit, minmax(min(45%, 15rem), 1fr)); } .pair small { display: block; }
.heat td, .heat th { padding: .2rem .35rem; border: 0; } .heat td { text-align: right; font-size: .8rem;
  min-width: 1.6rem; background: color-mix(in srgb, var(--mark) calc(var(--heat) * .75), var(--soft)); }
.heat thead td { background: none; } .heat thead th { vertical-align: bottom; } .heat tbody th { white-space: nowrap; }
.heat thead th span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; max-height: 9rem;
  overflow: hidden; text-overflow: ellipsis; } .heat tbody th { max-width: min(12rem, 30vw); overflow: hidden;
  text-overflow: ellipsis; }
.heat th { font-weight: normal; }
pre { overflow-x: auto; font-size: .8rem; background: var(--soft); padding: .5rem .8rem; overflow-wrap: normal; }
"""
