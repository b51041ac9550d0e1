"""Scripts of `datasets/` as modules; by their path, since a package called `datasets` may be installed."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

_FOLDER = Path(__file__).parents[1] / "datasets"


def dataset_script(name: str) -> ModuleType:
    """Load `datasets/<name>.py`, once."""
    if name not in sys.modules:
        spec = spec_from_file_location(name, _FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        # Known by its name before it runs: dataclasses and worker processes look it up.
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
