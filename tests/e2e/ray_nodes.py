"""Two nodes of a Ray cluster on this machine, one CPU each, in a process of their own: the environment counts from its start."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_NODES = """
    import json, sys
    from ray.cluster_utils import Cluster

    place, count = sys.argv[1], int(sys.argv[2])
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    quickly = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(
        initialize_head=True, shutdown_at_exit=True, head_node_args={**node, "_system_config": quickly, "temp_dir": place}
    )
    node.pop("include_dashboard")
    for number in range(2, count + 1):
        # An address of its own: who connects to the cluster joins the first node, and would go down with it.
        cluster.add_node(**node, node_ip_address=f"127.0.0.{number}", env_vars={"SEMLENS_AUDIT_TEST_NODE": str(number)})
    cluster.wait_for_nodes()
    def told(**more):
        raylets = [one.all_processes["raylet"][0].process.pid for one in cluster.list_all_nodes()]
        print(json.dumps({"address": cluster.address, "raylets": raylets}), file=sys.__stdout__, flush=True)
    told()
    for line in sys.stdin:
        for one in cluster.list_all_nodes():
            if one.all_processes["raylet"][0].process.pid == int(line):
                cluster.remove_node(one, allow_graceful=False)
        told()
    cluster.shutdown()
"""


class RayNodes:
    """A context manager that starts the nodes and ends them.

    Parameters
    ----------
    count
        Nodes, one CPU each.
    """

    def __init__(self, count: int = 2) -> None:
        self.count = count
        # Whoever talks to the cluster needs its token; nothing is written outside of its folder or sent beyond the machine.
        self.environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
        }

    def __enter__(self) -> RayNodes:
        # Sockets lie below it, and 107 characters are the most that the path of one may have.
        self._place = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        lines = [line.removeprefix("    ") for line in _NODES.splitlines()]
        command = [sys.executable, "-c", "\n".join(lines), self._place, str(self.count)]
        with (Path(self._place) / "said").open("wb") as said:
            self._process = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
            )
        self._told = self._hear()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=60)  # the end of its input tells it to go
        finally:
            self._process.kill()
            self._process.communicate()
            shutil.rmtree(self._place, ignore_errors=True)

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return str(self._told["address"])

    def remove_node_of(self, process: int) -> None:
        """Take away, without notice, the node that a worker's process belongs to."""
        import psutil

        above = {one.pid for one in psutil.Process(process).parents()}
        (raylet,) = above & set(self._told["raylets"])
        assert self._process.stdin is not None
        print(raylet, file=self._process.stdin, flush=True)
        self._told = self._hear()
        assert raylet not in self._told["raylets"]

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                told: dict[str, Any] = json.loads(line)
                return told
        raise AssertionError((Path(self._place) / "said").read_text(errors="replace"))
