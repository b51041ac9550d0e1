"""The parser of commands that take a config: positional config file, `KEY=VALUE`, `--image-size 480 640`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pvt_det.errors import ConfigError
from pvt_det.recipes import list_recipes
from pvt_det.utils.cli import ASSIGNMENT, ArgumentParser, split_assignments

_IMAGE_SIZE = "--image-size"


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
        args = super().parse_words(_join_sizes(sys.argv[1:] if argv is None else argv))
        configs = [f"--config-file {args.config_file}"] if args.config_file else []
        pairs: list[str] = []
        recipes = list_recipes()
        for word in args.overrides:
            is_key = len(pairs) % 2 == 0
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


def _is_config(word: str, recipes: Sequence[str]) -> bool:
    if ASSIGNMENT.match(word):
        return False
    return word.endswith((".yaml", ".yml")) or os.sep in word or Path(word).is_dir() or word in recipes


def _join_sizes(argv: Sequence[str]) -> list[str]:
    """Join the words of `--image-size 480 640`.

    With `nargs="+"`, argparse would also take the positional arguments that follow.
    """
    words: list[str] = []
    for word in argv:
        if word.isdecimal() and len(words) > 1 and words[-1].isdecimal() and _is_image_size(words[-2]):
            words[-1] += f",{word}"
        else:
            words.append(word)
    return words


def _is_image_size(option: str) -> bool:
    """Return whether a word is the option, or an abbreviation that argparse accepts."""
    return option.startswith("--i") and _IMAGE_SIZE.startswith(option)
