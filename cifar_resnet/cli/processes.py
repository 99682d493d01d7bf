"""Find out how many processes train together, and end their communication."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Processes:
    """How many processes train together, and which of them this is."""

    devices: int | list[int]  # of each node, as Lightning's Trainer takes them
    num_nodes: int
    strategy: str
    is_main: bool  # the one process that writes files and prints

    @property
    def count(self) -> int:
        per_node = len(self.devices) if isinstance(self.devices, list) else self.devices
        return per_node * self.num_nodes


def find_processes(args: argparse.Namespace) -> Processes:
    """Find the processes of this run from the options, or from the variables that torchrun sets."""
    environment = os.environ
    devices, num_nodes = args.devices, args.num_nodes
    if "TORCHELASTIC_RUN_ID" in environment:
        local, world = (int(environment[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        devices = local if devices is None else devices
        num_nodes = world // local if num_nodes is None else num_nodes
    devices = 1 if devices is None else devices
    num_nodes = 1 if num_nodes is None else num_nodes
    processes = Processes(devices, num_nodes, args.strategy or "auto", is_main=True)
    if processes.count == 1:  # a SLURM job may start many that do not train together
        return processes
    # The names that torchrun, Lightning and SLURM set, as far as each of them sets them.
    rank = next(
        (environment[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")
         if name in environment), "0",
    )  # fmt: skip
    node = environment.get("NODE_RANK", "0") if "RANK" not in environment else "0"
    return replace(processes, is_main=rank == node == "0")


@contextlib.contextmanager
def communication() -> Iterator[None]:
    """Close the process group that Lightning opens: its threads may abort the process at its exit.

    After an error or a signal it stays open, because other processes may still wait. One that was
    open before is not closed.
    """
    import torch.distributed as dist

    was_open = dist.is_available() and dist.is_initialized()
    yield
    if not was_open and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
