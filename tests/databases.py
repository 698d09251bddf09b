"""A PostgreSQL server on loopback for tests."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def find_postgresql() -> Path | None:
    """Return the folder of the server's programs, which Debian leaves out of the path."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


class PostgreSQL:
    """A server of its own, with an empty database.

    Attributes:
        url: of the database, for SQLAlchemy.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder, self._identity = programs, folder, _unprivileged()
        if self._identity:
            shutil.chown(folder, self._identity["user"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        self.url = f"postgresql+psycopg://search@127.0.0.1:{self._port}/postgres"
        make = ["initdb", "-D", "data", "-A", "trust", "-U", "search", "--no-sync", "-E", "UTF8", "--no-locale"]
        subprocess.run(self._command(*make), check=True, capture_output=True, cwd=folder, **self._identity)
        self.start()

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [str(self._programs / program), *arguments]

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        command = self._command("postgres", "-D", "data", "-h", "127.0.0.1", "-p", self._port, "-k", "", "-F")
        self._server = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=self._folder, **self._identity)
        ready = self._command("pg_isready", "-q", "-h", "127.0.0.1", "-p", self._port)
        while subprocess.run(ready, check=False).returncode:
            assert self._server.poll() is None, "PostgreSQL ended before it was ready"
            time.sleep(0.1)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT breaks all connections, SIGQUIT also leaves without a word to anyone."""
        self._server.send_signal(number)
        self._server.wait()


def _unprivileged() -> dict[str, Any]:
    """Whom to run the server as, because it refuses to run as root."""
    if os.getuid() != 0:
        return {}
    known = {entry.pw_name for entry in pwd.getpwall()}
    user = next((name for name in ("postgres", "nobody") if name in known), None)
    if user is None:
        pytest.skip("the tests run as root and there is no user postgres or nobody to run PostgreSQL as")
    return {"user": user, "extra_groups": []}


@contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    """Run a server until the block ends; skip the test if this machine has none."""
    programs = find_postgresql()
    if programs is None:
        pytest.skip("PostgreSQL's server is not on this machine (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))  # pytest's own folders cannot be entered by other users
    try:
        server = PostgreSQL(programs, folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
