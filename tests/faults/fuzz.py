"""Give the readers many damaged files: ``python -m tests.faults.fuzz --inputs 1000000``.

It prints for each reader the inputs, the crashes (exceptions that the reader does not document), the hangs, the
seconds and the peak memory. It keeps an input of each kind of crash in the folder ``--keep``. Its exit status is 1 if
there is any. ``--guided`` lets atheris choose the inputs of one reader by the branches of the code that they reach.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType, FunctionType
from typing import NoReturn

import torch

from tests.faults.limits import limit_memory
from tests.faults.mutations import mutated
from tests.faults.readers import READERS, Reader, undocumented

LIMIT_S, LIMIT_BYTES = 60, 2**31
"""A reader that takes longer hangs. It may take this much memory more than the process has at its start."""


class Hang(Exception):
    """A reader takes too long."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Hang


def fuzz(reader: Reader, inputs: int, seed: int, keep: Path) -> int:
    """Give ``reader`` this many inputs; print one line; return the number of crashes and hangs."""
    samples, chance = reader.samples(), random.Random(f"{seed} {reader.name}")
    start, found, hangs = time.perf_counter(), dict[str, int](), 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        os.chdir(name)
        for _ in range(inputs):
            content = mutated(chance, samples)
            signal.alarm(LIMIT_S)
            error = undocumented(reader, content, Path(name))
            signal.alarm(0)
            if error is None:
                continue
            hangs += isinstance(error, Hang)
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:80]!r}"
            found[kind] = found.get(kind, 0) + 1
            if found[kind] == 1 and len(found) < 50:
                target = keep / reader.name / hashlib.sha256(content).hexdigest()[:12]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                print(f"  {kind} -> {target}", flush=True)
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    crashes = sum(found.values()) - hangs
    print(
        f"{reader.name}: {inputs:,} inputs, {crashes} crashes, {hangs} hangs, {seconds:.0f} s, {peak:.0f} MiB",
        flush=True,
    )
    return crashes + hangs


def guided(reader: Reader, inputs: int, keep: Path) -> NoReturn:
    """Let atheris search for a crash of ``reader``; it prints what it finds and ends the process."""
    import atheris  # only this way of running needs it

    folder = keep / f"{reader.name}-guided"
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(reader.samples()):
        (folder / f"sample-{number}").write_bytes(sample)

    def read(content: bytes) -> None:
        if (error := undocumented(reader, content, folder.parent)) is not None:
            raise error

    for name, module in list(sys.modules.items()):
        if name.split(".")[:2] in (
            ["common", part] for part in ("trials", "data", "latency", "search", "compression")
        ):
            for value in vars(module).values():
                if isinstance(value, FunctionType) and value.__module__ == name:
                    atheris.instrument_func(value)
    flags = [f"-runs={inputs}", f"-timeout={LIMIT_S}", f"-artifact_prefix={folder.parent}/", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *flags, str(folder)], read)
    atheris.Fuzz()
    sys.exit()


def main(arguments: list[str] | None = None) -> int:
    """Try the readers, each in a process of its own; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all readers together; default: %(default)s")
    parser.add_argument("--reader", choices=tuple(READERS), help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="with atheris and --reader")
    parser.add_argument("--keep", type=Path, default=Path("results/fuzz"), help="folder; default: %(default)s")
    options = parser.parse_args(arguments)
    if options.guided:
        guided(READERS[options.reader or "log"], options.inputs, options.keep.resolve())
    torch.set_num_threads(1)
    logging.disable()
    keep, bad = options.keep.resolve(), False
    for reader in [READERS[options.reader]] if options.reader else READERS.values():
        count = options.inputs if options.reader else round(options.inputs * reader.share)
        if (child := os.fork()) == 0:
            signal.signal(signal.SIGALRM, _stop)
            limit_memory(LIMIT_BYTES)
            os._exit(min(1, fuzz(reader, count, options.seed, keep)))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, 1):
            print(f"{reader.name}: the process ended with {status}", flush=True)
        bad |= status != 0
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
