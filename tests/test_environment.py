from __future__ import annotations

import pytest

from common.environment import hide_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "--storage postgresql+psycopg://me:s3cret@host:5432/db -x",
            "--storage postgresql+psycopg://me:***@host:5432/db -x",
        ),
        ("'mysql://me:p@ss:word@host/db'", "'mysql://me:***@host/db'"),
        ("postgresql://host/db?user=me&password=s3cret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("postgresql://me:a/b+c@host/db", "postgresql://me:***@host/db"),
        ("sqlite:///a.db https://example.org:8080/a me@host", "sqlite:///a.db https://example.org:8080/a me@host"),
    ],
)
def test_passwords_are_hidden(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown
