from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from common.training import TrainingSettings, train
from tests.databases import running_postgresql
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


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of an empty PostgreSQL server on loopback, which runs until the tests end."""
    with running_postgresql() as server:
        yield server.url
