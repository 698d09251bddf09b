"""Training in several processes, one a GPU, as ``torchrun`` starts them.

In a single process these functions change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

Value = TypeVar("Value")


@contextmanager
def processes() -> Iterator[None]:
    """Join the other processes where ``torchrun`` has started some; over NCCL with GPUs, otherwise over Gloo."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run the ``with`` block in the first process before the others, e.g. for a download that they all need."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def parallel(model: nn.Module) -> nn.Module:
    """Return ``model``, or a wrapper that averages its gradients over the processes."""
    return nn.parallel.DistributedDataParallel(model) if world_size() > 1 else model


def from_first(value: Value) -> Value:
    """Return the first process's ``value`` in every process."""
    if world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def share_buffers(model: nn.Module) -> None:
    """Copy the first process's buffers (BatchNorm's statistics) to every process."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
