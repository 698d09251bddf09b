"""Training in several processes, one a GPU, as ``torchrun`` starts them; all of it does nothing in a single one."""

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
    """Join the other processes that ``torchrun`` has started, where it has; over NCCL with GPUs, else over Gloo."""
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
    """The first process goes through the block before the others do, e.g. to download what they then find."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def parallel(model: nn.Module) -> nn.Module:
    """``model``, or a wrapper around it that averages its gradients over the processes."""
    return nn.parallel.DistributedDataParallel(model) if world_size() > 1 else model


def from_first(value: Value) -> Value:
    """What the first process holds as ``value``, in every process."""
    if world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers (BatchNorm's statistics)."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
