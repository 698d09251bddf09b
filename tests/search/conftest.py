from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.training import TrainingSettings, train
from tests.networks import TinyCNN, tiny_cnn, tiny_digits


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """Handle SIGINT, which tests send to themselves and which background jobs of a shell ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def dense() -> TinyCNN:
    """A trained network. No test may change it."""
    model = tiny_cnn()
    train(model, tiny_digits(limit=600), TrainingSettings(epochs=5.0, amp="off"))
    return model.eval()


def find_postgresql() -> Path | None:
    """Return the folder of the server's programs, which Debian leaves out of the path."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of an empty PostgreSQL server on loopback, which runs until the tests end."""
    programs = find_postgresql()
    if programs is None:
        pytest.skip("PostgreSQL's server is not on this machine (Debian: apt-get install postgresql)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))  # pytest's own folders cannot be entered by other users
    identity: dict[str, Any] = {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        user = next((name for name in ("postgres", "nobody") if any(e.pw_name == name for e in pwd.getpwall())), None)
        if user is None:
            pytest.skip("the tests run as root and there is no user postgres or nobody to run PostgreSQL as")
        identity = {"user": user, "extra_groups": []}
        shutil.chown(folder, user)
    data = folder / "data"
    make: list[str | Path] = [
        programs / "initdb",
        "-D",
        data,
        "-A",
        "trust",
        "-U",
        "search",
        "--no-sync",
        "-E",
        "UTF8",
        "--no-locale",
    ]
    subprocess.run(make, check=True, capture_output=True, cwd=folder, **identity)
    command: list[str | Path] = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=folder, **identity)
    try:
        ready: list[str | Path] = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, check=False).returncode:
            assert server.poll() is None, "PostgreSQL ended before it was ready"
            time.sleep(0.1)
        yield f"postgresql+psycopg://search@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
