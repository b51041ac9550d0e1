"""Convert weights: a detector of another code base for a config of this package, or this package's for others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pvt_det.errors import ConfigError
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.paths import make_parent_folder
from pvt_det.utils.text import counted

if TYPE_CHECKING:
    from torch import Tensor

_EXAMPLES = """
examples:
  convert a detector of MMDetection or of the published PVT code, then evaluate it:
    %(prog)s retinanet_pvt-t_fpn_1x_coco --config-file configs/retinanet_pvt_tiny.yaml \\
        --output retinanet_pvt_tiny.pth
    pvt-det eval --config-file configs/retinanet_pvt_tiny.yaml \\
        MODEL.WEIGHTS retinanet_pvt_tiny.pth
  the trunk of a detector of this package, for other code:
    %(prog)s output/model_final.pth --to published --output trunk.pth
  any weights as a safetensors file:
    %(prog)s pvt://pvt_small --to safetensors --output pvt_small.safetensors

exit codes: 0 done, 2 configuration, 4 checkpoint
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="checkpoint file, or any other value of MODEL.WEIGHTS")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--config-file", metavar="FILE", help="convert to the complete detector of this config")
    target.add_argument(
        "--to",
        choices=("published", "safetensors"),
        help="published: only the trunk or classifier, with the published names, as .pth; safetensors: all weights, "
        "with this package's names, as .safetensors",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=".pth or .safetensors")
    return parser


def for_config(source: str, config_file: str) -> dict[str, Tensor]:
    """Load a detector's weights into the model of a config, and print how many tensors match.

    Args:
        source: Checkpoint file, or any other value of `MODEL.WEIGHTS`.
        config_file: Config of the detector.

    Returns:
        The loaded tensors by name.

    Raises:
        CheckpointError: The file does not have all weights of the model, as with a classifier's weights.
        ConfigError: The config is invalid.
    """
    from detectron2.modeling import build_model

    from pvt_det.config import load_config
    from pvt_det.weights import load_pretrained

    model = build_model(load_config(config_file, ["MODEL.DEVICE", "cpu"], training=False))
    report = load_pretrained(model, source)
    print(report)
    report.require_whole()
    state = model.state_dict()
    return {name: state[name] for name in report.loaded}


def run(args: argparse.Namespace) -> int:
    """Convert one file.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    from pvt_det.weights import read_checkpoint, rename, save_checkpoint, save_safetensors

    suffix = ".safetensors" if args.to == "safetensors" else ".pth" if args.to else args.output.suffix
    if args.output.suffix != suffix or suffix not in (".pth", ".safetensors"):
        raise ConfigError(
            f"--output {args.output}: expected a name that ends in {suffix if args.to else '.pth or .safetensors'}"
        )
    make_parent_folder(args.output)
    if args.config_file:
        tensors = for_config(args.source, args.config_file)
    else:
        tensors = rename(read_checkpoint(args.source), args.source, published=args.to == "published")
    if suffix == ".safetensors":
        save_safetensors(
            args.output, tensors, {"format": "pt", "source": args.source, "config": args.config_file or ""}
        )
    else:
        save_checkpoint(args.output, tensors if args.to else {"model": tensors})
    print(f"{args.output}: {counted(len(tensors), 'tensor')} written")
    return 0
