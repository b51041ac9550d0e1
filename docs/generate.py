"""Generate the reference pages and the tutorial page of the documentation site, as a MkDocs hook.

The pages come from their sources each time the site is built: the configuration reference from the table of keys in
`pvt_det/config/table.py`, the command-line reference from the parsers, the tutorial from its notebook.
"""

from __future__ import annotations

import argparse
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from pvt_det.cli.main import COMMANDS
from pvt_det.cli.start import load
from pvt_det.config import get_config
from pvt_det.config.rows import Row
from pvt_det.config.table import SECTIONS, get_value

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages. MkDocs calls this once it has listed the pages of `docs/`.

    Args:
        files: The files of the site.
        config: The configuration of the site.

    Returns:
        `files` with the generated pages.
    """
    pages = {"reference/config.md": config_page, "reference/cli.md": cli_page, "tutorial.md": tutorial_page}
    for path, build in pages.items():
        files.append(File.generated(config, path, content=build()))
    return files


def config_page() -> str:
    """Return the configuration reference as Markdown."""
    cfg = get_config()
    lines = [
        "# Configuration reference",
        "The first sections list the keys that are added to [Detectron2's](https://detectron2.readthedocs.io/en/latest/"
        "modules/config.html#config-references), the others those of Detectron2's keys that have an effect here. Set "
        "them in a YAML file, or on the command line as `KEY VALUE` or `KEY=VALUE`. An unknown key or an invalid value "
        "is an error that names the key and what was expected.",
    ]
    for section, rows in SECTIONS.items():
        lines += ["", f"## {section}", "", "| key and default | values | meaning |", "|---|---|---|"]
        for row in rows:
            default = _code(_shown(get_value(cfg, row.key)))
            lines.append(f"| {_code(row.key)}<br>{default} | {_marked(_values(row))} | {_marked(row.meaning)} |")
    return "\n".join(lines) + "\n"


def _values(row: Row) -> str:
    """Return the description of a key's valid values, with the limit that another key sets."""
    return row.rule.expected + (f"; {row.limit.expected} {row.limit.key}" if row.limit else "")


def _marked(text: str) -> str:
    """Return a sentence with the names of keys and strings as code."""
    words = re.split(r'("[^"]*"|\b[A-Z][A-Z0-9]*(?:[._][A-Z0-9]+)+\b)', text)
    return "".join(_code(word) if i % 2 else _cell(word) for i, word in enumerate(words))


def _shown(value: object) -> str:
    """Return a value in the form that YAML and the command line use."""
    return json.dumps(value) if isinstance(value, str) else str(value)


def cli_page() -> str:
    """Return the command-line reference as Markdown."""
    lines = [
        "# Command-line reference",
        "`pvt-det COMMAND --help` prints the same text. Every command ends with one of these exit codes:",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 2 | configuration: a key, value or option, or a folder that cannot be written |",
        "| 3 | data: an annotation file, an image or a data set |",
        "| 4 | checkpoint: a weight file |",
        "| 5 | numeric: NaN or infinity |",
        "| 75 | interrupted and saved: resume with the same command and `--resume` |",
        "| 130 | stopped at once by Ctrl-C |",
        "| 1 and others | a bug; please report it with its traceback |",
    ]
    for name in COMMANDS:
        parser = load(name).build_parser()
        parser.prog = f"pvt-det {name}"
        lines += ["", f"## pvt-det {name}", *_command(parser)]
    return "\n".join(lines) + "\n"


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the lines of one command: its description, arguments, examples."""
    yield from ["", *_prose(parser.description or "", parser.prog), "", "| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS:
            meaning = (action.help or "") % {**vars(action), "prog": parser.prog}
            yield f"| {_code(_usage(action))} | {_cell(meaning)} |"
    yield from ["", *_prose(parser.epilog or "", parser.prog)]


def _usage(action: argparse.Action) -> str:
    """Return how an argument is written: its flags and the placeholder of its value."""
    placeholder = str(action.metavar or action.dest.upper())
    if action.choices is not None:
        placeholder = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return placeholder
    flags = ", ".join(action.option_strings)
    return (
        flags if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction) else f"{flags} {placeholder}"
    )


def _prose(text: str, prog: str) -> list[str]:
    """Return a parser's description or epilog: paragraphs as text, examples and tables as code."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", (text % {"prog": prog}).strip("\n")):
        if not paragraph.strip():
            continue
        code = any(line.startswith("  ") for line in paragraph.splitlines())
        lines += ["", *(["```", paragraph.strip("\n"), "```"] if code else [html.escape(paragraph, quote=False)])]
    return lines


def _code(text: str) -> str:
    """Return text as code in a cell of a table, with places where a long name may break."""
    return f"<code>{re.sub(r'(?<=[._,|])', '<wbr>', _cell(text)).replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    """Return text for a cell of a table, with everything escaped that Markdown or HTML would interpret."""
    return re.sub(r"[*_`|]", lambda match: f"&#{ord(match[0])};", html.escape(text, quote=False))


def tutorial_page() -> str:
    """Return the tutorial notebook as Markdown: its text and its code, without output."""
    notebook = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))
    lines: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        lines += [source, ""] if cell["cell_type"] == "markdown" else ["```python", source, "```", ""]
    return "\n".join(lines)
