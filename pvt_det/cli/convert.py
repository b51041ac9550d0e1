"""Convert weights between layouts: another code base's detector for one of our configs, or ours for others."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from pvt_det.errors import ConfigError
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.paths import make_parent_folder
from pvt_det.weights import load_pretrained, read_checkpoint, rename, save_checkpoint, save_safetensors

_EXAMPLES = """
examples:
  a detector of MMDetection or of the published PVT code, for our config; then evaluate it:
    %(prog)s retinanet_pvt-t_fpn_1x_coco --config-file configs/retinanet_pvt_tiny.yaml \\
        --output retinanet_pvt_tiny.pth
    pvt-det eval --config-file configs/retinanet_pvt_tiny.yaml \\
        MODEL.WEIGHTS retinanet_pvt_tiny.pth
  the trunk of our detector, for others' code:
    %(prog)s output/model_final.pth --to published --output trunk.pth
  a safetensors file of anything:
    %(prog)s pvt://pvt_small --to safetensors --output pvt_small.safetensors

exit codes: 0 done, 2 configuration, 4 checkpoint
"""


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a file, or anything else that MODEL.WEIGHTS takes")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--config-file", metavar="FILE", help="write the whole detector that this config describes")
    target.add_argument(
        "--to",
        choices=("published", "safetensors"),
        help="published: the trunk or classifier alone, with the published names, as .pth; safetensors: everything, "
        "with this package's names, as .safetensors",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=".pth or .safetensors")
    return parser


def for_config(source: str, config_file: str) -> dict[str, Tensor]:
    """Fit a detector's weights to the model of a config, and print the coverage.

    Raises:
        CheckpointError: If the file does not give every weight of the model, as a classifier does not.
        ConfigError: If the config is at fault.
    """
    # Imported here, so that the other conversions work without Detectron2.
    from detectron2.modeling import build_model

    from pvt_det.config import load_config

    model = build_model(load_config(config_file, ["MODEL.DEVICE", "cpu"]))
    report = load_pretrained(model, source)
    print(report)
    report.require_whole()
    state = model.state_dict()
    return {name: state[name] for name in report.loaded}


def run(args: argparse.Namespace) -> int:
    """Convert one file; gives the exit code."""
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
    print(f"{args.output}: {len(tensors)} tensors written")
    return 0
