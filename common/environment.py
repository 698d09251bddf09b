"""Describe what a result depends on (commit, versions, machine, threads) and what the hardware supports."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def describe_environment() -> dict[str, Any]:
    """Return versions, processor, cores, threads and accelerator as plain values for a trial record."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "onnxruntime": _installed_version("onnxruntime"),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def machine_line() -> str:
    """Return the conditions of a measurement, e.g. ``AMD EPYC, 2 threads, torch 2.13.0, ONNX Runtime 1.31.1``."""
    found = describe_environment()
    where = found["accelerator"] or found["processor"]
    return f"{where}, {found['threads']} threads, torch {found['torch']}, ONNX Runtime {found['onnxruntime']}"


def default_device() -> torch.device:
    """Return the first GPU, or the CPU if there is no GPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively. Emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    get_capabilities = getattr(
        torch.cpu, "get_capabilities", dict
    )  # older versions of torch lack it; assume no bfloat16
    capabilities: dict[str, Any] = get_capabilities()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def hide_passwords(text: str) -> str:
    """Replace the password in every URL in ``text``, such as a database's, by ``***``."""
    text = re.sub(r"(://[^\s:/@]*):\S*@", r"\1:***@", text)
    return re.sub(r"([?&]\w*password=)[^\s&'\"]+", r"\1***", text)


def _installed_version(package: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:  # on a GPU the package is onnxruntime-gpu
        return None


def _processor() -> str:
    """Return the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_commit(folder: str | Path = ".") -> str | None:
    """Return the commit checked out in ``folder``, followed by ``+`` if files differ from it.

    Returns:
        None outside git, and where the repository around ``folder`` does not track it: an installed package in a
        virtual environment does not belong to the commit of its user's project.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", ".")
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _git(folder: str | Path, *arguments: str) -> str:
    """Run git in ``folder`` and return its output."""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
