"""Make a folder to share of a finished run: model card, weights as safetensors, config; push it to Hugging Face.

A classifier's run gives its options and the names of its classes instead of a config.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pvt_det.classification import card as classification_card
from pvt_det.engine.results import CONFIG_NAME
from pvt_det.errors import ConfigError
from pvt_det.reports import card
from pvt_det.reports.card_page import NOT_STATED, Terms
from pvt_det.run_folder import OPTIONS_NAME
from pvt_det.utils.cli import ArgumentParser

_EXAMPLES = """
examples:
  %(prog)s output/mine --output share/mine --license cc-by-4.0 --authors "Ada Lovelace"
  to the Hugging Face hub, under your login (hf auth login):
    %(prog)s output/mine --output share/mine --license cc-by-4.0 --push ada/blood-cells --private

The config goes without the paths of this machine.
"""


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of a run of train or train-cls")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to make")
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the run's best")
    parser.add_argument("--license", default=NOT_STATED, metavar="SPDX", help="of the weights, such as cc-by-4.0")
    parser.add_argument("--data-license", default=NOT_STATED, metavar="SPDX", help="of the training data")
    parser.add_argument("--authors", default=NOT_STATED, metavar="NAMES", help="who trained it")
    parser.add_argument("--push", metavar="OWNER/NAME", help="put the folder into this repository of the hub")
    parser.add_argument("--private", action="store_true", help="make the repository visible to its owner alone")
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the folder, and push it where asked; gives the exit code."""
    if args.private and not args.push:
        raise ConfigError("--private is for --push.")
    of_detector = (args.run / CONFIG_NAME).is_file() or not (args.run / OPTIONS_NAME).is_file()
    kind = card if of_detector else classification_card
    kind.write_folder(args.run, args.output, Terms(args.license, args.data_license, args.authors), args.weights)
    print(f"{args.output}: {', '.join(sorted(path.name for path in args.output.iterdir()))}")
    if args.license == NOT_STATED:
        print("No licence is stated, so that nobody may use the weights: add --license.")
    if args.push:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            card.push(args.output, args.push, HfApi(), private=args.private)
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise ConfigError(f"--push {args.push}: {error}") from error
        print(f"Pushed to {args.push}.")
    return 0
