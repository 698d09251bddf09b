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
        "onnxruntime": _installed_version("onnxruntime") or _installed_version("onnxruntime-gpu"),
        "openvino": _installed_version("openvino"),
        "system": platform.platform(),
        "processor": _processor(),
        "instructions": instruction_set(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def machine_line(device: torch.device | str = "cpu") -> str:
    """Return the conditions of a measurement on ``device``.

    For example ``AMD EPYC (AVX-512, VNNI), 2 threads, torch 2.13.0, ONNX Runtime 1.31.1, OpenVINO 2026.4.1``.
    """
    found = describe_environment()
    on_processor = torch.device(device).type == "cpu"
    where = f"{found['processor']} ({found['instructions']})" if on_processor else found["accelerator"] or str(device)
    names = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    versions = [f"{name} {found[package]}" for package, name in names.items() if found[package]]
    return ", ".join([where, f"{found['threads']} threads", *versions])


def instruction_set() -> str:
    """Return the processor's vector instructions that decide how fast networks run, e.g. ``AVX-512, VNNI``.

    VNNI multiplies and adds 8-bit integers in one instruction. Without it, int8 may be slower than float32.
    """
    found = _capabilities()
    known = {
        "AVX-512": ("avx512_f",),
        "AVX2": ("avx2",),
        "NEON": ("neon",),
        "VNNI": ("avx512_vnni", "avx_vnni"),
        "dot product": ("dot",),
        "AMX": ("amx_int8",),
        "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    }
    names = [name for name, flags in known.items() if any(found.get(flag) for flag in flags)]
    wide = [name for name in names if not (name == "AVX2" and "AVX-512" in names)]
    return ", ".join(wide) or "no vector instructions known"


def has_int8_products() -> bool:
    """Whether the processor multiplies and adds 8-bit integers in one instruction."""
    return any(name in instruction_set().split(", ") for name in ("VNNI", "dot product", "AMX"))


def _capabilities() -> dict[str, Any]:
    """Return what PyTorch says of the processor; empty in older versions of torch."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities


def default_device() -> torch.device:
    """Return the first GPU, or the CPU if there is no GPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively. Emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = _capabilities()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def hide_passwords(text: str) -> str:
    """Replace the password in every URL in ``text``, such as a database's, by ``***``."""
    text = re.sub(r"(://[^\s:/@]*):\S*@", r"\1:***@", text)
    return re.sub(r"([?&]\w*password=)[^\s&'\"]+", r"\1***", text)


def _installed_version(package: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
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
