"""The files for clusters: the Slurm script queues an interrupted job again, the commands of the others are valid."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
import yaml

from pvt_det.cli.main import COMMANDS
from pvt_det.cli.start import load

_SRUN = """#!/bin/bash
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@"; done
"""
_PVT_DET = """#!/bin/bash
echo "$RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $*"
exit $CODE
"""
_SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "$@"; fi
"""


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (3, False)])
def test_slurm_script(repo_root, tmp_path, code, requeued):
    for name, text in (("srun", _SRUN), ("pvt-det", _PVT_DET), ("scontrol", _SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CODE": str(code), "SLURM_JOB_NODELIST": "node[7-8]"}
    variables |= {"SLURM_JOB_ID": "41234", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}
    words = ["train", "mine.yaml", "--output", "two words"]
    script = repo_root / "tools/clusters/train.sbatch"
    done = subprocess.run(["bash", script, *words], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == code, done
    assert not done.stderr
    shown = "node7:21234 train --resume mine.yaml --output two words"
    assert done.stdout.splitlines() == [
        f"0/8 0/4 {shown}",
        f"1/8 1/4 {shown}",
        *(["requeue 41234"] if requeued else []),
    ]


def parse(words):
    """Return torchrun's options, and the arguments of the command after --no-python."""
    end = words.index("--no-python")
    command, *arguments = words[end + 2 :]
    assert words[end + 1] == "pvt-det"
    assert command in COMMANDS
    options = [part for word in words[1:end] for part in word.split("=", 1)]
    return dict(zip(options[::2], options[1::2], strict=True)), load(command).build_parser().parse_words(arguments)


def test_kubernetes_job(repo_root):
    service, job = yaml.safe_load_all((repo_root / "tools/clusters/kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options, args = parse(container["command"])
    assert int(options["--nnodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(options["--nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    name, subdomain = job["metadata"]["name"], pod["subdomain"]
    assert options["--rdzv-endpoint"] == f"{name}-0.{subdomain}:29400"
    assert (service["metadata"]["name"], service["spec"]["selector"]) == (subdomain, {"job-name": name})
    assert (args.resume, args.output.startswith("/shared/")) == (True, True)
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in container["env"]


def test_skypilot_task(repo_root):
    task = yaml.safe_load((repo_root / "tools/clusters/skypilot.yaml").read_text())
    command = task["run"].replace("\\\n", " ").splitlines()[-1]
    options, args = parse(shlex.split(re.sub(r'"\$\(.*?\)(:\d+)"', r"node0\1", command)))
    assert options["--nnodes"] == "$SKYPILOT_NUM_NODES"
    assert options["--rdzv-endpoint"] == "node0:29400"
    assert (args.resume, args.output.startswith("/shared/")) == (True, True)
    assert task["envs"]["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
