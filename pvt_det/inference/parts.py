"""Divide a prediction into parts, which processes on several machines work on, and which are merged at the end.

`parts/plan.json` in the output folder says which images belong to which part, and what the predictions depend on. A
finished part is the folder `parts/003-of-100`: the tables of a prediction of its images, and `part.json`. Drawings,
label maps and the like are in the output folder itself, with the names that they have in an undivided prediction.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeAlias

from pvt_det import __version__
from pvt_det.errors import ConfigError, DataError, PvtDetError
from pvt_det.inference.journal import JOURNAL_NAME
from pvt_det.inference.sources import Source
from pvt_det.inference.tables import read_table
from pvt_det.run_folder import IMAGES_NAME, PARTS_FOLDER, PLAN_NAME
from pvt_det.utils.claims import CLAIM_NAME, Claim, ClaimLost, Claims, Holder, create_folder
from pvt_det.utils.digest import file_digest
from pvt_det.utils.files import write_atomically
from pvt_det.utils.text import counted, listed

PART_NAME = "part.json"
_VERSION = 1
# Predicts on the images of a part, writes the tables to a folder, and returns what could not be read, and what was
# found in a few words. It calls the function before each batch, which raises an error if the part was taken over.
PredictPart: TypeAlias = Callable[[Path, Sequence[Source], Callable[[], None]], tuple[list[str], str]]


@dataclass(frozen=True)
class Plan:
    """How a prediction is divided, and what it depends on.

    Attributes:
        output: The output folder of the prediction.
        settings: What the predictions depend on, as JSON values by name.
        parts: Names of the images of each part, in the order of the prediction.
    """

    output: Path
    settings: dict[str, Any]
    parts: list[list[str]]

    @property
    def folder(self) -> Path:
        """The folder of the parts."""
        return self.output / PARTS_FOLDER

    @property
    def file(self) -> Path:
        """The file of the plan."""
        return self.folder / PLAN_NAME

    @property
    def count(self) -> int:
        """Number of parts."""
        return len(self.parts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file of the plan."""
        return file_digest(self.file)

    def name(self, number: int) -> str:
        """Return the name of a part, such as "003-of-100".

        Args:
            number: Number of the part, from 1.
        """
        return f"{number:0{len(str(self.count))}d}-of-{self.count}"

    def require(self, other: Plan) -> None:
        """Check that this plan, which other processes follow, is what this process was asked for.

        Args:
            other: What this process was asked for.

        Raises:
            ConfigError: They differ.
        """
        advice = f"Use what the parts were started with, or choose another folder with --output. See {self.file}."
        if self.count != other.count:
            raise ConfigError(f"{self.output} is divided into {self.count} parts, not {other.count}. {advice}")
        names = sorted(self.settings.keys() | other.settings.keys())
        if changed := [name for name in names if self.settings.get(name) != other.settings.get(name)]:
            raise ConfigError(
                f"The parts in {self.output} were started with a different {' and '.join(changed)}. {advice}"
            )
        # How they are divided may differ, since that depends on the size of a batch.
        if _names(self.parts) != _names(other.parts):
            raise ConfigError(
                f"The parts in {self.output} were started with another list of images: "
                f"{_difference(_names(self.parts), _names(other.parts))}. {advice}"
            )


def open_plan(
    output: Path, sources: Sequence[Source], count: int, settings: dict[str, Any], batch_size: int = 1
) -> Plan:
    """Divide images into parts, and write down how, unless another process has done so.

    Args:
        output: The output folder of the prediction, which exists.
        sources: The images and videos.
        count: Number of parts.
        settings: What the predictions depend on, as JSON values by name.
        batch_size: Number of images per batch. All parts get the same number of batches, give or take one, so that the
            batches are those of an undivided prediction.

    Raises:
        ConfigError: There are fewer batches than parts, a live stream, or the output folder has parts with different
            settings or images.
        DataError: The plan of another process cannot be read.
    """
    if live := next((source for source in sources if source.is_live), None):
        raise ConfigError(f"{live.shown} is a live stream, which has no parts. Leave out --part and --parts.")
    names = [source.shown for source in sources]
    batches = -(-len(names) // batch_size)
    if count > batches:
        raise ConfigError(
            f"{counted(len(names), 'file')} in batches of {batch_size} cannot be divided into {count} parts. Expected "
            f"at most {batches}. Use fewer parts, or a smaller --batch-size."
        )
    ends = [batches * number // count * batch_size for number in range(count + 1)]
    parts = [names[start:end] for start, end in pairwise(ends)]
    asked = Plan(output, json.loads(json.dumps(settings)), parts)
    create_folder(asked.folder, PLAN_NAME, _text(asked))
    plan = read_plan(output)
    plan.require(asked)
    return plan


def read_plan(output: Path) -> Plan:
    """Read how a prediction is divided.

    Args:
        output: The output folder of the prediction.

    Raises:
        DataError: The folder has no parts, or the file cannot be read.
    """
    plan = Plan(output, {}, [])
    if not plan.file.exists():
        raise DataError(f"{output} has no {PARTS_FOLDER}/{PLAN_NAME}. Expected the --output of --part or --parts.")
    found = read_table(plan.file)
    match found:
        case {"version": int(version), "settings": dict(settings), "parts": [*parts]} if version == _VERSION:
            return Plan(output, settings, parts)
    raise DataError(f"{plan.file} was written by another version of pvt_det. Choose another folder with --output.")


def _print(line: str) -> None:
    print(line, flush=True)  # for those who watch the log of a batch job


@dataclass
class PartsResult:
    """What a process has done.

    Attributes:
        finished: Numbers of the parts that it has finished.
        skipped: Numbers of the parts that were finished before.
        busy: Processes that work on the other parts, by the number of the part.
        errors: What could not be read in the parts that it has finished.
    """

    finished: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    busy: dict[int, Holder] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def predict_parts(
    plan: Plan,
    numbers: Iterable[int],
    sources: Sequence[Source],
    predict: PredictPart,
    say: Callable[[str], None] = _print,
    check_stop: Callable[[], None] = lambda: None,
) -> PartsResult:
    """Predict on all parts that are not finished and that no other process works on.

    If another process dies meanwhile, its part is continued.

    Args:
        plan: How the prediction is divided.
        numbers: Numbers of the parts, from 1.
        sources: The images and videos of all parts.
        predict: Predicts on the images of a part.
        say: Prints a line.
        check_stop: Called before each part. It may raise an error.

    Returns:
        What was done.

    Raises:
        PvtDetError: A part failed or was interrupted. The same command continues with it.
    """
    claims, result, waiting = Claims(plan.folder), PartsResult(), []

    def run(number: int, found: Claim | Holder | None) -> None:
        if isinstance(found, Claim):
            start = sum(map(len, plan.parts[: number - 1]))
            part = sources[start : start + len(plan.parts[number - 1])]
            try:
                result.errors += _run_part(plan, number, found, part, predict, say)
                result.finished.append(number)
            except ClaimLost as error:
                say(f"note: part {error}")
                waiting.append(number)
        elif found is None:
            result.skipped.append(number)
        else:
            result.busy[number] = found

    for number in numbers:
        check_stop()
        found = claims.claim(plan.name(number))
        if isinstance(found, Holder):
            waiting.append(number)
        else:
            run(number, found)
    while waiting:
        check_stop()
        number = waiting.pop(0)
        run(number, claims.wait(plan.name(number)))
    return result


def _run_part(
    plan: Plan, number: int, claim: Claim, sources: Sequence[Source], predict: PredictPart, say: Callable[[str], None]
) -> list[str]:
    with claim:
        for folder in claim.earlier():
            if (folder / JOURNAL_NAME).exists():
                # A copy, because the process that wrote it might only have been stopped for a while.
                shutil.copyfile(folder / JOURNAL_NAME, claim.folder / JOURNAL_NAME)
                break
        say(f"part {number} of {plan.count}: {counted(len(sources), 'file')}")
        try:
            errors, found = predict(claim.folder, sources, claim.check)
            write_atomically(claim.folder / PART_NAME, _manifest(plan, number, claim.folder, errors))
        except (OSError, PvtDetError):
            claim.check()  # the process that took over may have caused it
            raise
        claim.finish()
    say(f"part {number} of {plan.count} is finished: {found}")
    return errors


def _manifest(plan: Plan, number: int, folder: Path, errors: Sequence[str]) -> str:
    images = {image["file_name"] for image in read_table(folder / IMAGES_NAME)["images"]}
    content = {
        "version": _VERSION,
        "part": number,
        "parts": plan.count,
        "plan_sha256": plan.digest,
        "settings": plan.settings,
        "files": {path.name: file_digest(path) for path in sorted(folder.glob("*.json")) if path.name != CLAIM_NAME},
        "unreadable": [name for name in plan.parts[number - 1] if name not in images],
        "errors": list(errors),
        "made_by": f"pvt_det {__version__}",
        "host": socket.gethostname(),
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _text(plan: Plan) -> str:
    # One part per line.
    parts = ",\n".join(json.dumps(names, ensure_ascii=False) for names in plan.parts)
    settings = json.dumps(plan.settings, ensure_ascii=False)
    return f'{{"version": {_VERSION},\n"settings": {settings},\n"parts": [{parts}]}}\n'


def _names(parts: Iterable[Sequence[str]]) -> list[str]:
    return list(chain.from_iterable(parts))


def _difference(old: Sequence[str], new: Sequence[str]) -> str:
    added, removed = sorted(set(new) - set(old)), sorted(set(old) - set(new))
    reasons = [f"{what} {listed(names, 3)}" for what, names in (("added", added), ("missing", removed)) if names]
    return "; ".join(reasons) or "they are in a different order"
