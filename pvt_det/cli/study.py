"""Train and evaluate many configs, data sets and seeds with one command, and compare them in one table.

A study is a YAML file. What is finished is kept, what was interrupted is resumed, and a run that fails does not stop
the others. The table is printed and written to study.md, study.csv and study.html in the study's folder.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvt_det.errors import ConfigError
from pvt_det.recipes import list_studies
from pvt_det.reports.defaults import BOOTSTRAP, TOLERANCE
from pvt_det.utils.cli import ArgumentParser, split_assignments

if TYPE_CHECKING:
    from pvt_det.studies.run import Plan, StudyResults

CLUSTERS = ("slurm", "local")
_EXAMPLES = f"""
examples:
  what it would do, with GPU-hours and disk space:
    %(prog)s paper_retinanet --dry-run
  a table of the paper, one run per GPU at a time:
    %(prog)s paper_retinanet --gpus 0,1,2,3
  on your own data, with other values of config keys:
    %(prog)s mine.yaml --data cells=train.json,images/,val.json,images/ SOLVER.MAX_ITER=1000
  without a GPU, two runs at a time:
    %(prog)s mine.yaml --jobs 2
  as Slurm arrays of jobs with 8 GPUs each, and the table when they have ended:
    %(prog)s paper_retinanet --submit --gpus-per-run 8 --slurm slurm_partition=gpu --slurm timeout_min=1440
    %(prog)s paper_retinanet --table-only
  continue after an interruption, or after failed runs:
    the same command again

shipped studies: {", ".join(list_studies())}
exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric, 6 lost process, 75 stopped and resumable; if runs
failed, the exit code of the first one
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("study", metavar="FILE", help="the .yaml file of a study, or the name of one that comes with this package")
    add("--output", type=Path, metavar="DIR", help="folder of the runs and the table (output/studies/NAME)")
    add(
        "--data",
        action="append",
        default=[],
        metavar="NAME=PATHS",
        help="paths of a data set of the study, separated by commas: TRAIN_JSON,TRAIN_IMAGES,VAL_JSON,VAL_IMAGES, or "
        "VAL_JSON,VAL_IMAGES for an evaluation, or the folder of the images for pretraining; may be repeated",
    )
    add("--only", action="append", default=[], metavar="PATTERN", help="only runs with such a name, as in '*/seed0'")
    add("--gpus", type=_gpus, metavar="LIST", help="GPUs to use, such as 0,1,2,3; each runs one run at a time")
    add(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="without GPUs: runs at a time, which share the cores (%(default)s)",
    )
    add("--gpus-per-run", type=int, default=1, metavar="N", help="number of GPUs of each run (%(default)s)")
    add("--submit", action="store_true", help="submit the runs as Slurm arrays and exit; needs pip install submitit")
    add(
        "--cluster",
        choices=CLUSTERS,
        default="slurm",
        help="with --submit: slurm, or local to try it on this machine (%(default)s)",
    )
    add(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --submit: a parameter of submitit, such as slurm_partition=gpu, timeout_min=600 or "
        "cpus_per_task=8 (default: per GPU, the data loader workers + 1); may be repeated",
    )
    add("--dry-run", action="store_true", help="print the runs and what they take, and write nothing")
    add("--benchmark", type=Path, metavar="FILE", help="with --dry-run: speeds that pvt-det benchmark --json wrote")
    add("--table-only", action="store_true", help="write the table of what is finished, and run nothing")
    add("--bootstrap", type=int, default=BOOTSTRAP, metavar="N", help="bootstrap samples per interval (%(default)s)")
    add(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="POINTS",
        help="largest difference from the published number that counts as reproduced (%(default)s)",
    )
    add(
        "--pretrain",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of train-cls for every pretraining, such as epochs=1; may be repeated",
    )
    add("overrides", nargs="*", metavar="KEY VALUE", help="config keys for all runs, as KEY VALUE or KEY=VALUE")
    # The command that continues a study is the same.
    parser.set_defaults(resume=True)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the study, or print what it would do.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    _check_options(args)
    from pvt_det.studies.run import plan_study, run_study
    from pvt_det.studies.study import load_study

    study = load_study(
        args.study,
        output=args.output,
        data=args.data,
        overrides=_pairs(args.overrides, "KEY VALUE"),
        pretrain={name.replace("-", "_"): value for name, value in _pairs(args.pretrain, "--pretrain").items()},
    )
    if args.dry_run:
        _print_plan(plan_study(study, args.only), args.benchmark)
        return 0
    if args.submit:
        from pvt_det.studies.submit import submit_study

        submitted = submit_study(
            study,
            only=args.only,
            cluster=args.cluster,
            processes=args.gpus_per_run,
            parameters=_pairs(args.slurm, "--slurm"),
        )
        print(f"Submitted {len(submitted)} runs. When they have ended: pvt-det study {args.study} --table-only")
        return 0
    devices = [""] * args.jobs if args.gpus is None else _groups(args.gpus, args.gpus_per_run)
    results = run_study(
        study,
        only=args.only,
        devices=devices,
        processes=args.gpus_per_run,
        train=not args.table_only,
        samples=args.bootstrap,
        tolerance=args.tolerance,
        resume_command=args.resume_command,
    )
    _print_results(results)
    return results.exit_code


def _check_options(args: argparse.Namespace) -> None:
    if args.bootstrap < 1:
        raise ConfigError(f"--bootstrap {args.bootstrap}: expected 1 or more.")
    if not args.tolerance >= 0:
        raise ConfigError(f"--tolerance {args.tolerance:g}: expected 0 points or more.")
    if args.gpus_per_run < 1:
        raise ConfigError(f"--gpus-per-run {args.gpus_per_run}: expected 1 or more.")
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: expected 1 or more.")
    if args.jobs > 1 and (args.gpus or args.submit):
        raise ConfigError("--jobs is for runs on the CPU of this machine. Leave it out with --gpus and --submit.")
    if args.benchmark and not args.dry_run:
        raise ConfigError("--benchmark has no effect without --dry-run. Add it, or leave out --benchmark.")
    if (args.slurm or args.cluster != "slurm") and not args.submit:
        raise ConfigError("--slurm and --cluster have no effect without --submit. Add it, or leave them out.")
    if args.gpus and args.submit:
        raise ConfigError("--gpus is for runs on this machine. With --submit, give --gpus-per-run.")
    chosen = [f"--{name}" for name in ("dry-run", "submit", "table-only") if getattr(args, name.replace("-", "_"))]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} exclude each other. Leave one out.")


def _gpus(text: str) -> list[str]:
    words = text.split(",")
    if not all(re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", word) for word in words) or len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(f"{text}: expected different GPUs, separated by commas, such as 0,1")
    return words


def _groups(gpus: list[str], size: int) -> list[str]:
    if len(gpus) % size:
        raise ConfigError(f"--gpus {','.join(gpus)}: {len(gpus)} GPUs cannot be split into runs of {size} GPUs each.")
    return [",".join(gpus[start : start + size]) for start in range(0, len(gpus), size)]


def _pairs(words: list[str], what: str) -> dict[str, Any]:
    pairs = split_assignments(words)
    if len(pairs) % 2:
        raise ConfigError(f"{what}: {pairs[-1]} has no value. Expected KEY=VALUE.")
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def _print_plan(plan: Plan, benchmark: Path | None) -> None:
    from pvt_det.studies.plan_table import as_plan
    from pvt_det.utils.console import Console

    Console().print(as_plan(plan, plan.estimates(benchmark)))


def _print_results(results: StudyResults) -> None:
    from pvt_det.studies.run import TABLE_NAMES
    from pvt_det.studies.table import as_terminal
    from pvt_det.utils.console import Console

    Console().print(as_terminal(results.rows))
    print(f"{results.finished} of {results.planned} runs are finished.")
    for failure in results.failed:
        print(f"failed: {failure.name}: {failure.reason}\n  alone: {failure.command}", file=sys.stderr)
    print(f"The table is in {', '.join(str(results.output / name) for name in TABLE_NAMES)}.")
