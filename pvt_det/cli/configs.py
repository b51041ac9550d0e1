"""List the recipes that come with this package, with their published results. Use their names as --config-file."""

from __future__ import annotations

import argparse

from pvt_det.utils.cli import ArgumentParser

_EXAMPLES = """
examples:
  %(prog)s
  %(prog)s mask_rcnn pvt
  pvt-det train --config-file retinanet_pvt_small
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only recipes whose name contains all of these")
    return parser


def run(args: argparse.Namespace) -> int:
    """List the recipes.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.

    Raises:
        ConfigError: If no recipe has such a name.
    """
    from pvt_det.errors import ConfigError
    from pvt_det.reports.recipe_table import recipe_rows
    from pvt_det.utils.console import Console
    from pvt_det.utils.tables import as_table

    rows = recipe_rows(args.words)
    if not rows:
        raise ConfigError(f"{' '.join(args.words)}: no recipe has such a name. Run pvt-det configs for all of them.")
    Console().print(as_table(rows))
    return 0
