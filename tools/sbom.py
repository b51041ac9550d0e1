"""Write a software bill of materials (SBOM) of the release, in CycloneDX's JSON format, beside the wheel in dist/.

    python tools/sbom.py      (make sbom)

It lists this package, Detectron2 and everything that they need at run time, with licenses and dependencies, in the
versions of the environment that runs the script. CycloneDX's own tool writes it, from a temporary environment.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.setup_env import ROOT, create_venv, output_of, reported, run, say, venv_python

TOOL = "cyclonedx-bom>=7"
SPEC_VERSION = "1.6"
PACKAGE = "pvt_det"
DETECTRON2 = "sal-detectron2"
# direct_url.json would name folders of this machine.
COPIED = ("METADATA", "RECORD", "WHEEL", "INSTALLER")


def write_sbom() -> None:
    """Write `dist/pvt_det-VERSION.cdx.json`.

    Raises:
        SetupError: A command fails.
    """
    found = needed_at_run_time([PACKAGE, DETECTRON2])
    target = ROOT / "dist" / f"{PACKAGE}-{distribution(PACKAGE).version}.cdx.json"
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        described = describe(found, Path(folder, "described"))
        say(f"Describing {len(found)} packages")
        create_venv(Path(folder, "tool"))
        tool = venv_python(Path(folder, "tool"))
        run([str(tool), "-m", "pip", "install", "-qq", TOOL])
        command = [str(tool.with_name("cyclonedx-py")), "environment", f"--sv={SPEC_VERSION}", "--mc-type=library"]
        command += ["--validate", "--output-reproducible", f"--output-file={target}"]
        run([*command, f"--pyproject={described}/pyproject.toml", str(described / "venv")])
    say(f"Wrote {target}")


def needed_at_run_time(names: Iterable[str]) -> dict[str, Distribution]:
    """Return the installed packages that some packages need, themselves included.

    Args:
        names: Names of installed packages, without extras.

    Returns:
        The packages by normalized name, in alphabetical order.
    """
    found: dict[str, Distribution] = {}
    waiting = [Requirement(name) for name in names]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if (name, frozenset(need.extras)) in seen:
            continue
        seen.add((name, frozenset(need.extras)))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # for another system or Python
        for text in found[name].requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in ("", *need.extras)):
                waiting.append(inner)
    return dict(sorted(found.items()))


def describe(packages: dict[str, Distribution], folder: Path) -> Path:
    """Create an environment that holds only the metadata of packages, and a project file that requires them.

    Args:
        packages: The packages, by name.
        folder: Folder to create.

    Returns:
        The folder, with `venv/` and `pyproject.toml`.
    """
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
    path = output_of(
        [str(venv_python(folder / "venv")), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    )
    for name, package in packages.items():
        if name == canonicalize_name(PACKAGE):
            continue  # the project itself
        info = Path(path, f"{name.replace('-', '_')}-{package.version}.dist-info")
        info.mkdir()
        for file in COPIED:
            if (content := package.read_text(file)) is not None:
                (info / file).write_text(content, encoding="utf-8")
    package = packages[canonicalize_name(PACKAGE)]
    names = [Requirement(text).name for text in package.requires or () if "extra ==" not in text]
    lines = [f'name = "{PACKAGE}"', f'version = "{package.version}"', f'description = "{package.metadata["Summary"]}"']
    lines += [f'license = "{package.metadata["License"]}"', f"dependencies = {[*names, DETECTRON2]}"]
    (folder / "pyproject.toml").write_text("\n".join(["[project]", *lines, ""]))
    return folder


if __name__ == "__main__":
    sys.exit(reported(write_sbom))
