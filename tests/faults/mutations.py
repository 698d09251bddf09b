"""Change a valid file a little, or a lot, as damage and strangers do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**64),
    10**400,
    0.5,
    1e308,
    -1e-320,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    "\0",
    "../../x",
    "/etc/passwd",
    "\ud800",
    "x" * 300,
    "<script>",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"dense": 0},
)
ODD_BYTES = (b"", b"\0", b"\n", b"\xff\xfe", b'"', b"\\", b"{", b"]", b"NaN", b"TRIAL ", b"1e999", b"[" * 2000)


def mutated(random: Random, samples: Sequence[bytes]) -> bytes:
    """Return one of ``samples`` after one to four changes: of its JSON, line by line, or of its bytes."""
    content = random.choice(samples)
    for _ in range(random.randint(1, 4)):
        lines = content.split(b"\n")
        place = random.randrange(len(lines))
        changed = _changed_json(random, lines[place]) if random.random() < 0.6 else None
        if changed is not None:
            content = b"\n".join([*lines[:place], changed, *lines[place + 1 :]])
        else:
            content = _changed_bytes(random, content, samples)
    return content


def _changed_json(random: Random, line: bytes) -> bytes | None:
    """Return a line of JSON with another value at one place; None if it holds no JSON."""
    start = min((i for i in (line.find(b"{"), line.find(b"[")) if i >= 0), default=-1)
    if start < 0:
        return None
    try:
        document = json.loads(line[start:])
    except (ValueError, RecursionError):
        return None
    places = list(_places(document))
    if not places:
        return None
    parent, key = random.choice(places)
    action = random.random()
    if action < 0.7:
        parent[key] = random.choice(ODD_VALUES)
    elif action < 0.85:
        del parent[key]
    else:
        other, another = random.choice(places)
        parent[key] = json.loads(json.dumps(other[another]))
    return line[:start] + json.dumps(document, separators=(",", ":")).encode()


def _places(value: Any) -> Any:
    """Yield every object or array with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def _changed_bytes(random: Random, content: bytes, samples: Sequence[bytes]) -> bytes:
    at = random.randint(0, len(content))
    to = min(len(content), at + random.choice((1, 4, 40, 400)))
    action = random.randrange(6)
    if action == 0:
        return content[:at]
    if action == 1:
        return content[:at] + content[to:]
    if action == 2:
        return content[:at] + random.choice(ODD_BYTES) + content[at:]
    if action == 3:
        return content[:at] + random.randbytes(to - at) + content[to:]
    if action == 4:
        return content[:to] + content[at:]
    other = random.choice(samples)
    return content[:at] + other[random.randint(0, len(other)) :]
