"""Find the recipes and the studies: the config files that come with this package."""

from __future__ import annotations

import os
from pathlib import Path

from pvt_det.errors import ConfigError
from pvt_det.utils.paths import file_fault, similar_path
from pvt_det.utils.text import did_you_mean

_PACKAGE = Path(__file__).parent


def _shipped(name: str) -> Path:
    """Return a folder of shipped files. An installed wheel has its own copy; in a checkout it is beside the package."""
    installed = _PACKAGE / "model_zoo" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


RECIPES, STUDIES = _shipped("configs"), _shipped("studies")


def list_recipes() -> list[str]:
    """Return the names of all recipes of detectors and segmentors, such as "retinanet_pvt_small".

    Recipes for small or generated data have their folder in front, as in "small/retinanet_pvt_tiny_blood_cells".
    """
    names = (path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith(("base/", "classification/")))


def is_recipe_name(name: str | os.PathLike[str], folder: Path = Path()) -> bool:
    """Return whether a config is given by the name of a recipe and not by its path.

    Args:
        name: Anything that a user gives as a config. Config files end in .yaml or .yml.
        folder: The folder that paths are relative to.
    """
    path = Path(name)
    return not path.suffix and not path.is_absolute() and not (folder / path).exists()


def recipe_file(name: str | os.PathLike[str]) -> Path:
    """Return the file of a recipe.

    Args:
        name: Name of the recipe, such as "retinanet_pvt_small" or "base/retinanet".

    Raises:
        ConfigError: If the recipe does not exist.
    """
    path = RECIPES / f"{os.fspath(name)}.yaml"
    if not path.is_relative_to(RECIPES) or ".." in path.parts or not path.is_file():
        hint = did_you_mean(str(name), list_recipes(), 3) or similar_path(name)
        raise ConfigError(
            f"{name} is not a file, and not the name of a recipe.{hint} Expected a run folder, a .yaml file, or a name "
            "that `pvt-det configs` lists."
        )
    return path


def list_studies() -> list[str]:
    """Return the names of all studies, such as "paper_retinanet"."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def study_file(study: str | os.PathLike[str]) -> Path:
    """Return the file of a study.

    Args:
        study: Name of a study of this package, such as "paper_retinanet", or the path of a .yaml file.

    Raises:
        ConfigError: If the study does not exist.
    """
    path = STUDIES / f"{os.fspath(study)}.yaml" if is_recipe_name(study) else Path(study)
    fault = file_fault(path)
    if fault or path.suffix not in (".yaml", ".yml"):
        hint = did_you_mean(str(study), list_studies()) or similar_path(study)
        raise ConfigError(
            f"{study} is not the .yaml file of a study, and not the name of one.{hint} Expected a file, or one of "
            f"{', '.join(list_studies())}."
        )
    return path
