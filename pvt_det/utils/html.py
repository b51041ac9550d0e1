"""Self-contained HTML pages for reports: one file with inline style and pictures, no script, no network.

Plain texts are escaped wherever they enter a page, since class and file names come from users; only `Html`, which the
functions here return, goes in as it is.
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
    """A piece of a page that is markup already."""

    __slots__ = ()


def escape(value: Any) -> Html:
    """`value` as markup: escaped, unless it is `Html`."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(*parts: Any) -> Html:
    """Pieces one after another, plain texts escaped."""
    return Html("\n".join(escape(part) for part in parts))


def page(title: str, sections: Iterable[tuple[str, Any]], *, lead: Any = "") -> str:
    """A whole page, light or dark as the reader's system is, readable down to a phone's width.

    Args:
        title: of the page.
        sections: heading and content of each.
        lead: what stands above the first section.
    """
    body = [Html(f"<h1>{escape(title)}</h1>"), paragraph(lead) if lead else Html("")]
    body += [Html(f"<section><h2>{escape(heading)}</h2>\n{escape(content)}</section>") for heading, content in sections]
    return _PAGE.format(title=escape(title), style=_STYLE, body=join(*body))


def paragraph(content: Any) -> Html:
    """A paragraph; line breaks of a plain text stay."""
    return Html(f"<p>{escape(content)}</p>")


def notice(content: Any, level: str) -> Html:
    """A paragraph that stands out.

    Args:
        content: what it says.
        level: "good", "warning" or "bad".
    """
    return Html(f'<p class="notice {escape(level)}">{escape(content)}</p>')


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """A table that scrolls sideways where it is too wide; numbers stand to the right."""
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
    """A bar chart: a labelled row for each value, 0 or greater."""
    most = max(values.values(), default=0) or 1
    rows = [
        f'<span>{escape(label)}</span><span class="bar" style="--share:{value / most:.4f}">{value:,}</span>'
        for label, value in values.items()
    ]
    return Html(f'<div class="bars">{"".join(rows)}</div>')


def picture(pixels: npt.NDArray[np.uint8], caption: Any = "", *, quality: int = 85) -> Html:
    """A picture with its caption, inside the page as JPEG.

    Args:
        pixels: `H×W×3` RGB, or `H×W` grey, uint8.
        caption: what stands below it.
        quality: of the JPEG, 1 … 95.
    """
    return Html(f"<figure>{_image(pixels, caption, quality)}<figcaption>{escape(caption)}</figcaption></figure>")


def pair(left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8], caption: Any = "", *, quality: int = 85) -> Html:
    """Two pictures with one caption, side by side, one below the other on a phone; as `picture`."""
    images = "".join(_image(pixels, caption, quality) for pixels in (left, right))
    return Html(f'<figure><div class="pair">{images}</div><figcaption>{escape(caption)}</figcaption></figure>')


def _image(pixels: npt.NDArray[np.uint8], caption: Any, quality: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    height, width = pixels.shape[:2]
    plain = "" if isinstance(caption, Html) else html.escape(str(caption), quote=True)
    return f'<img loading="lazy" width="{width}" height="{height}" alt="{plain}" src="data:image/jpeg;base64,{data}">'


def drawing(light: str, dark: str, caption: Any = "") -> Html:
    """A drawing with its caption, as wide as it fits.

    Args:
        light: SVG for readers whose system is light.
        dark: SVG for the others.
        caption: what stands below it.
    """
    light, dark = (base64.b64encode(svg.encode()).decode("ascii") for svg in (light, dark))
    kind = "data:image/svg+xml;base64"
    return Html(
        f'<figure class="drawing"><picture><source media="(prefers-color-scheme: dark)" srcset="{kind},{dark}">'
        f'<img alt="{html.escape(str(caption), quote=True)}" src="{kind},{light}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def drawings(parts: Iterable[Html]) -> Html:
    """Drawings side by side where two fit, one below another on a phone."""
    return Html(f'<div class="drawings">{"".join(parts)}</div>')


def gallery(pictures: Iterable[Html]) -> Html:
    """Pictures side by side, as many as fit."""
    return Html(f'<div class="gallery">{"".join(pictures)}</div>')


def code(text: str) -> Html:
    """Lines as they are; they scroll sideways where they are too long."""
    return Html(f"<pre>{html.escape(text)}</pre>")


def details(summary: Any, content: Any) -> Html:
    """Content that opens on a click."""
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
figure { margin: 0; } img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; margin-top: .2rem; }
summary { cursor: pointer; }
.drawings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem;
  align-items: start; } .drawing { max-width: 52rem; } .drawing img { width: 100%; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .25rem; }
.pair img { width: 100%; } figure:has(> .pair) { margin-bottom: 1.5rem; }
pre { overflow-x: auto; font-size: .8rem; background: var(--soft); padding: .5rem .8rem; overflow-wrap: normal; }
"""
