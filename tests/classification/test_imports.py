"""Classification works without Detectron2."""

from __future__ import annotations

import os
import subprocess
import sys


def test_script_starts_without_detectron2(repo_root):
    code = "import sys; sys.modules.update(dict.fromkeys(('detectron2', 'fvcore', 'yacs')))\n"
    code += "from tools import train_cls; train_cls.main(['--help'])"
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "--config-file FILE" in run.stdout
