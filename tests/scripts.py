"""Import the scripts in `datasets/` by path, because a package named `datasets` may be installed."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

_FOLDER = Path(__file__).parents[1] / "datasets"


def dataset_script(name: str) -> ModuleType:
    """Import `datasets/<name>.py` once."""
    if name not in sys.modules:
        spec = spec_from_file_location(name, _FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        # Register the module before running it: dataclasses and worker processes look it up by name.
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
