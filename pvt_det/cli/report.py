"""Write a report page about a finished run: a single HTML file that works offline."""

from __future__ import annotations

import argparse
from pathlib import Path

from pvt_det.utils.cli import ArgumentParser

_EXAMPLES = """
examples:
  %(prog)s output/mine
  compared with another run on the same data:
    %(prog)s output/mine --against output/resnet18 --output mine.html
  after the validation images have moved:
    %(prog)s output/mine --val-images /data/val

The page shows metrics by class and size, F1 over the score threshold, precision and recall, kinds of errors (TIDE),
calibration, confusions, validation images with ground truth and detections, the worst images, training curves,
environment and configuration. It is made from the files of the run; no model is loaded.
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or exported file that was evaluated")
    parser.add_argument("--against", type=Path, metavar="RUN", help="run to compare with")
    parser.add_argument("--val-images", type=Path, metavar="DIR", help="validation images, if they have moved")
    parser.add_argument("--val-labels", type=Path, metavar="DIR", help="validation label maps, if they have moved")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the run folder")
    parser.add_argument(
        "--score-threshold",
        type=float,
        metavar="SCORE",
        help="minimum score of the detections that are drawn and counted, 0 to 1 (default: the one with the best F1)",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the report page.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    from pvt_det.api import write_page
    from pvt_det.run_folder import PAGE_NAME, results_path
    from pvt_det.utils.console import steps_shown

    results = results_path(args.run)
    output = args.output or (results if results.is_dir() else results.parent) / PAGE_NAME
    with steps_shown() as show:
        show("Writing the report …")
        write_page(
            results,
            output,
            args.against,
            images=args.val_images,
            labels=args.val_labels,
            score_threshold=args.score_threshold,
        )
    print(f"Open {output} in a browser.")
    return 0
