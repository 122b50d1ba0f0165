"""The scripts for several machines: torchrun's is run as two machines, the others agree with themselves."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from kubernetes_validate import validate

from onn_lightning.cli.config_files import find_config

EXAMPLE = Path(__file__).parents[2] / "examples" / "multi_node"
ROOT = EXAMPLE.parents[1]

TINY: dict[str, Any] = {
    "data": {
        "class_path": "datamodules.OmniDataModule",
        "init_args": {
            "modalities": [{"class_path": "datamodules.TextModality", "init_args": {"use_words": False}}],
            "train": {"prose": {"class_path": "datamodules.TextFiles", "init_args": {"path": "prose"}}},
            "row_length": 32,
            "rows_per_batch": 1,
        },
    },
    "model": {
        "class_path": "onn_lightning.OmniModule",
        "init_args": {"trunk": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}},
    },
    "trainer": {"accelerator": "cpu", "strategy": "ddp", "max_steps": 2, "logger": False},
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.mark.slow
def test_the_torchrun_script_trains_one_run_on_two_machines(tmp_path: Path) -> None:
    (tmp_path / "prose").mkdir()
    (tmp_path / "prose" / "a.txt").write_text("The sea is deep, the fish asleep.\n" * 200)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HEAD": f"127.0.0.1:{free_port()}",
        "NNODES": "2",
        "GPUS": "1",
        "RESTARTS": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(EXAMPLE / "torchrun.sh"), "--config", "tiny.yaml"]
    machines = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        printed = [machine.communicate(timeout=120)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], printed
    members = [f"MEMBER: {rank}/2" for rank in (1, 2)]
    assert all(any(member in text for text in printed) for member in members)
    checkpoint = torch.load(tmp_path / "runs" / "tiny" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2


def test_the_scripts_are_valid_bash() -> None:
    for script in ("torchrun.sh", "slurm.sbatch"):
        subprocess.run(["bash", "-n", EXAMPLE / script], check=True)


def test_every_config_that_an_example_names_is_there() -> None:
    for file in EXAMPLE.iterdir():
        named = re.findall(r"--config[= ]([\w./]+)", file.read_text())
        assert named
        for name in named:
            find_config(name)


def test_the_parts_of_the_kubernetes_job_are_valid_and_agree() -> None:
    service, job = yaml.safe_load_all((EXAMPLE / "kubernetes.yaml").read_text())
    for part in (service, job):
        validate(part, "1.34", strict=True)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = dict(word.removeprefix("--").split("=", 1) for word in container["args"] if "=" in word)
    machines = {
        spec["completions"],
        spec["parallelism"],
        int(arguments["nnodes"]),
        int(arguments["trainer.num_nodes"]),
    }
    assert len(machines) == 1
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus == int(arguments["nproc-per-node"]) == int(arguments["trainer.devices"])
    host, port = arguments["rdzv-endpoint"].split(":")
    assert host == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert int(port) == service["spec"]["ports"][0]["port"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    to_save, to_end = (
        int(number)
        for number in (
            arguments["trainer.callbacks.grace_period"],
            environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"],
        )
    )
    assert to_save < to_end < pod["terminationGracePeriodSeconds"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
