"""Turn a data set into indexed tar shards, which training and evaluation read from a disk or an object store."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from pvt_det.errors import ConfigError
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.text import counted

_MIB = 2**20
_EXAMPLES = """
examples:
  a data set in COCO's format:
    %(prog)s --json train.json --images train2017/ --output shards/train
    pvt-det train ... --train-json shards/train --train-images shards/train
  images with label maps, and with the objects of Panoptic FPN:
    %(prog)s --images images/ --labels labels/ --output shards/train
    %(prog)s --json train.json --images images/ --labels labels/ --output shards/train
  images in class folders, or ILSVRC2012 as downloaded:
    %(prog)s --classes imagenet/ --output shards/imagenet
    pvt-det train-cls ... --data shards/imagenet
  check a copy:
    %(prog)s --verify shards/train
    %(prog)s --verify s3://bucket/train

An interrupted command continues when it is started again. The same data gives the same bytes.

exit codes: 0 done, 2 configuration, 3 data: a file is missing, broken or damaged
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="annotations of the images in COCO's format")
    parser.add_argument("--images", type=Path, metavar="DIR", help="images of --json or --labels")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="label maps of the images, for segmentation")
    parser.add_argument("--classes", type=Path, metavar="DIR", help="data set of train-cls with train/ and val/")
    parser.add_argument(
        "--val-labels",
        type=Path,
        metavar="FILE",
        help="classes of the validation images of --classes, as for train-cls",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write the shards to")
    parser.add_argument(
        "--shard-size", type=int, default=256, metavar="MIB", help="size of a shard in MiB (default: 256)"
    )
    parser.add_argument(
        "--check-data",
        choices=("fast", "full"),
        default="fast",
        help="how to check the images: fast reads their headers, full decodes them (default: fast)",
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what to do with missing and broken images: stop, or skip: store broken ones unchanged, so that "
        "training treats them like those of a folder (default: stop)",
    )
    parser.add_argument(
        "--verify", metavar="DIR", help="check the SHA-256 of all files of a folder of shards, a path or URL"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Write shards, or verify them with `--verify`.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.

    Raises:
        ConfigError: The options do not fit together.
        DataError: The data cannot be used, or the shards are damaged.
    """
    _check_options(args)
    from pvt_det.data.sharding.run import shard_classes, shard_coco, shard_labels, verify
    from pvt_det.data.sharding.writer import Settings

    if args.verify:
        description = verify(args.verify)
        print(f"{args.verify}: {counted(len(description.files), 'file')} verified")
        return 0
    settings = Settings(args.shard_size * _MIB, args.check_data, args.on_error)
    if args.classes:
        folders = shard_classes(args.classes, args.output, settings, args.val_labels)
    elif args.labels:
        folders = shard_labels(args.images, args.labels, args.output, settings, args.json)
    else:
        folders = shard_coco(args.json, args.images, args.output, settings)
    for written in folders:
        print(f"{written.folder}: {counted(len(written.description.shards), 'shard')} of {written.description.content}")
        for problem in (written.description.unusable or {}).values():
            print(f"  stored, but not usable: {problem}")
    options = dict.fromkeys(shlex.join(written.options) for written in folders)
    print(f"use with {' '.join(options)}")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Check that the options describe one kind of data set."""
    given = [name for name in ("json", "images", "labels", "classes", "val_labels", "output") if getattr(args, name)]
    if args.verify:
        if given:
            raise ConfigError(f"--{given[0]} has no effect with --verify. Leave it out.")
        return
    needed = ["classes"] if args.classes else ["images", "labels" if args.labels else "json"]
    allowed = ["classes", "val_labels"] if args.classes else ["images", "labels", "json"]
    if missing := [name for name in (*needed, "output") if name not in given]:
        raise ConfigError(
            f"--{missing[0]} is missing. Expected --json and --images, --images and --labels, or --classes, with "
            "--output. See --help."
        )
    if others := [name for name in given if name not in (*allowed, "output")]:
        raise ConfigError(f"--{others[0].replace('_', '-')} does not belong to --{needed[0]}. Leave it out.")
    if args.shard_size < 1:
        raise ConfigError(f"--shard-size is {args.shard_size}. Expected a size in MiB of at least 1.")
