"""Create a folder to share a trained model (model card, safetensors weights, config), and push it to Hugging Face.

For a classifier, the folder has its options and class names instead of a config.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pvt_det.errors import ConfigError
from pvt_det.reports.defaults import NOT_STATED
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.signing import FolderSigner

_EXAMPLES = """
examples:
  %(prog)s output/mine --output share/mine --license cc-by-4.0 --authors "Ada Lovelace"
  push it to the Hugging Face Hub (log in with hf auth login):
    %(prog)s output/mine --output share/mine --license cc-by-4.0 --push ada/blood-cells --private
  sign it, so that others can verify it with your public key:
    openssl ecparam -name prime256v1 -genkey -noout -out private.pem
    openssl ec -in private.pem -pubout -out public.pem
    %(prog)s output/mine --output share/mine --license cc-by-4.0 --sign private.pem
    pvt-det predict photo.jpg --config-file share/mine --weights share/mine/model.safetensors --public-key public.pem

The config is written without the paths of this machine. The card lists the SHA-256 of every file in the folder, also of
exported models that are already in it.
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of train or train-cls")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the run's best checkpoint")
    parser.add_argument(
        "--license", default=NOT_STATED, metavar="SPDX", help="license of the weights, such as cc-by-4.0"
    )
    parser.add_argument("--data-license", default=NOT_STATED, metavar="SPDX", help="license of the training data")
    parser.add_argument("--authors", default=NOT_STATED, metavar="NAMES", help="who trained the model")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign the folder with this private key (PEM)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="push the folder to this repository of the hub")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the folder, sign it with `--sign`, and push it with `--push`.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    from pvt_det.classification import card as classification_card
    from pvt_det.reports import card
    from pvt_det.reports.card_page import Terms
    from pvt_det.run_folder import CONFIG_NAME, OPTIONS_NAME

    if args.private and not args.push:
        raise ConfigError("--private has no effect without --push. Add --push OWNER/NAME, or leave --private out.")
    signer = FolderSigner(args.sign) if args.sign else None
    is_detector = (args.run / CONFIG_NAME).is_file() or not (args.run / OPTIONS_NAME).is_file()
    kind = card if is_detector else classification_card
    kind.write_folder(args.run, args.output, Terms(args.license, args.data_license, args.authors), args.weights)
    if signer:
        signer.sign(args.output)
    print(f"{args.output}: {', '.join(sorted(path.name for path in args.output.iterdir()))}")
    if args.license == NOT_STATED:
        print("No license is stated, so nobody may use the weights. Add --license.")
    if args.push:
        from huggingface_hub import HfApi

        try:
            card.push(args.output, args.push, HfApi(), private=args.private)
        except Exception as error:
            # A failed push is not a bug of this package, and the errors of HTTP libraries have no common class.
            raise ConfigError(f"--push {args.push}: {error}") from error
        print(f"Pushed to {args.push}.")
    return 0
