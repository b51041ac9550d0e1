"""Error messages in the words of the Python API: `output` where the commands have `--output`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pvt_det.config.loader import COMMAND_LINE
from pvt_det.errors import PvtDetError

# Arguments whose names are not those of the options.
DATA = {"train-json": "train", "train-labels": "train", "train-images": "train"}
DATA |= {"val-json": "val", "val-labels": "val", "val-images": "val"}
# A command that a message recommends, up to the end of its line or its closing quote, is not translated.
_WORDS = re.compile(r"pvt-det [^\n`]*|(?<![\w/.-])--[a-z][a-z-]*")
_PAIR = re.compile(r"--(train|val)-json (\S+) --(?:train|val)-images (\S+)")
_CHANGES = re.compile(r"--allow-change (?!is for\b)([\w.*?\[\]]+)(?=$|[:.]?\s)")
_ON_ERROR = re.compile(r"--on-error (\w+) \(DATASETS\.ON_ERROR \w+\)")


@contextmanager
def python_messages(names: Mapping[str, str] = DATA) -> Iterator[None]:
    """Context manager in which errors name the arguments of a function instead of the options of a command.

    Args:
        names: Arguments by option, without the dashes, for those whose names differ.

    Raises:
        PvtDetError: The errors raised in the context, with a translated message.
    """
    try:
        yield
    except PvtDetError as error:
        error.args = (in_python(str(error), names),)
        raise


def in_python(message: str, names: Mapping[str, str] = DATA) -> str:
    """Translate the options of commands in a message to arguments of a function.

    Args:
        message: The message as a command shows it: "Choose another folder with --output" and so on.
        names: Arguments by option, without the dashes, for those whose names differ.

    Returns:
        The message for Python: "Choose another folder with `output`" and so on.
    """

    def replace(match: re.Match[str]) -> str:
        word = match[0]
        if not word.startswith("--"):
            return word
        name = word.removeprefix("--")
        return f"`{names.get(name, 'resume=True' if name == 'resume' else name.replace('-', '_'))}`"

    text = re.sub(rf"^{COMMAND_LINE}:", "overrides:", message).replace(" (--epochs)", "")
    text = _PAIR.sub(lambda m: f'{names[f"{m[1]}-json"]}=("{m[2]}", "{m[3]}")', text)
    text = _ON_ERROR.sub(r'overrides={"DATASETS.ON_ERROR": "\1"}', text)
    text = _CHANGES.sub(r'allow_change=["\1"]', text).replace('"] allow_change=["', '", "')
    text = _WORDS.sub(replace, text)
    return re.sub(r"(`\w+`)(?: and \1)+", r"\1", text)
