"""Programs in processes of their own that need not import torch again: they are forked from one that has."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["finetuned.finetune", "tests.search.processes", "sklearn.datasets", "torch._dynamo"])


def run_forked(script: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What ``python -W error script arguments`` returns and prints.

    Args:
        script: the program.
        arguments: its command line.
        folder: that receives two files of output.
    """
    output, errors = folder / "output.txt", folder / "errors.txt"
    process = PROCESSES.Process(target=_run, args=(str(script), arguments, str(output), str(errors)), daemon=False)
    process.start()
    process.join()
    assert process.exitcode is not None
    texts = [path.read_text() for path in (output, errors)]
    return subprocess.CompletedProcess([str(script), *arguments], process.exitcode, *texts)


def _run(script: str, arguments: tuple[str, ...], output: str, errors: str) -> None:
    for number, path in enumerate((output, errors), start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    warnings.simplefilter("error")
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
