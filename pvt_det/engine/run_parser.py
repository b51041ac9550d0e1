"""The parser of commands that take a config.

It takes the config file as a positional argument, `KEY=VALUE`, and options with several values: `--image-size 480 640`
and `--logger mlflow wandb`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pvt_det.config.logger_names import LOGGER_NAMES, is_logger_name
from pvt_det.errors import ConfigError
from pvt_det.recipes import list_recipes
from pvt_det.runtimes.backends import is_exported
from pvt_det.utils.cli import ASSIGNMENT, ArgumentParser, split_assignments

_IMAGE_SIZE, _LOGGER = "--image-size", "--logger"
_NO_LOGGER = "none"


class RunParser(ArgumentParser):
    """A parser of commands with `--config-file` and with config keys and values as positional `overrides`."""

    def parse_words(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse the arguments; the config can be a positional one, and overrides can be `KEY=VALUE`.

        Args:
            argv: The arguments, without the program's name. If None, those of the current process.

        Returns:
            The parsed arguments. `config_file` is not empty, and `overrides` are keys and values, alternating.

        Raises:
            ConfigError: No config is given, or two are, or an option is unknown.
        """
        recipes = list_recipes()
        args = super().parse_words(_join_values(sys.argv[1:] if argv is None else argv, recipes))
        configs = [f"--config-file {args.config_file}"] if args.config_file else []
        pairs: list[str] = []
        for word in args.overrides:
            is_key = len(pairs) % 2 == 0
            if is_key and word.lower().endswith(".json"):
                raise ConfigError(
                    f"{self.prog}: {word} is neither a config nor a config key. For several annotation files, repeat "
                    f"the option: --train-json FILE --train-json {word}."
                )
            if is_key and _is_config(word, recipes):
                configs.append(word)
            else:
                pairs += split_assignments([word]) if is_key else [word]
        if len(configs) > 1:
            raise ConfigError(f"{self.prog}: two configs are given: {' and '.join(configs)}. Leave one out.")
        if not configs:
            raise ConfigError(
                f"{self.prog}: no config is given. Expected one as the first argument, such as configs/mine.yaml, or "
                f"with --config-file. See {self.prog} --help."
            )
        args.config_file, args.overrides = args.config_file or configs[0], pairs
        return args


def image_size(text: str) -> tuple[int, ...]:
    """Convert the value of `--image-size`, one or two numbers of pixels.

    Args:
        text: The numbers, separated by a comma.

    Returns:
        The numbers, as given.
    """
    sides, shown = text.split(","), text.replace(",", " ")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{shown}: expected one or two numbers of pixels, such as 640 or 480 640")
    numbers = tuple(map(int, sides))
    if numbers[-1] < numbers[0]:
        raise argparse.ArgumentTypeError(f"{shown}: expected the short side before the longest side")
    return numbers


def logger_names(text: str) -> str:
    """Convert the value of `--logger` to that of the config key.

    Args:
        text: Names of loggers, separated by commas, or "none".

    Returns:
        The list of names as a literal, such as "['tensorboard', 'mlflow']".
    """
    names = text.split(",")
    if _NO_LOGGER in names and len(names) > 1:
        raise argparse.ArgumentTypeError(f"{' '.join(names)}: expected none alone, or names of loggers")
    if bad := [name for name in names if not is_logger_name(name)]:
        raise argparse.ArgumentTypeError(f"{bad[0]!r}: expected {LOGGER_NAMES}")
    return str([name for name in names if name != _NO_LOGGER])


def _is_config(word: str, recipes: Sequence[str]) -> bool:
    if ASSIGNMENT.match(word):
        return False
    is_file = word.endswith((".yaml", ".yml")) or is_exported(word)
    return is_file or os.sep in word or Path(word).is_dir() or word in recipes


def _join_values(argv: Sequence[str], recipes: Sequence[str]) -> list[str]:
    """Join the words of `--image-size 480 640` and `--logger mlflow wandb` by commas.

    With `nargs="+"`, argparse would also take the positional arguments that follow.
    """
    words: list[str] = []
    for word in argv:
        option, value = words[-2:] if len(words) > 1 else ("", "")
        is_size = word.isdecimal() and value.isdecimal() and _abbreviates(option, _IMAGE_SIZE)
        if is_size or (_abbreviates(option, _LOGGER) and is_logger_name(word) and not _is_config(word, recipes)):
            words[-1] += f",{word}"
        else:
            words.append(word)
    return words


def _abbreviates(word: str, option: str) -> bool:
    """Return whether a word is the option, or an abbreviation that argparse accepts."""
    return len(word) > 2 and option.startswith(word)
