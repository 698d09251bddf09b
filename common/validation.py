"""Checks of arguments, the sentences for values that are not allowed, and registries of what can be added."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from pydantic import ValidationError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry]):
    """All of one kind that the suite knows, by name, in the order in which they were added.

    Whatever is added is known everywhere: it may be asked for by name, and error messages list it. An entry of your
    own needs no more than ``REGISTRY.add(entry)`` in a module that is imported before it is used.

    Args:
        parameter: what callers name an entry by, e.g. ``method``; error messages begin with it.
        name_of: the name of an entry.
    """

    def __init__(self, parameter: str, name_of: Callable[[Entry], str]) -> None:
        self.parameter, self._name_of = parameter, name_of
        self._entries: dict[str, Entry] = {}

    def add(self, entry: Entry) -> Entry:
        """Register ``entry``; it is returned, so that a class can be decorated.

        Raises:
            ValueError: the name is taken by another entry.
        """
        name = self._name_of(entry)
        known = self._entries.setdefault(name, entry)
        if known is not entry and repr(known) != repr(entry):
            raise ValueError(f"{self.parameter}={name!r} is taken by {known!r}")
        self._entries[name] = entry
        return entry

    @contextmanager
    def including(self, entry: Entry) -> Iterator[Entry]:
        """Have ``entry`` registered inside the ``with`` block alone."""
        self.add(entry)
        try:
            yield entry
        finally:
            del self._entries[self._name_of(entry)]

    def check(self, name: object) -> None:
        """Raise a ValueError that lists what is allowed unless ``name`` is registered."""
        check_choice(self.parameter, name, self)

    def __getitem__(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            UnknownName: there is none.
        """
        if name not in self._entries:
            raise UnknownName(_unknown(self.parameter, name, self._entries))
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class UnknownName(ValueError, KeyError):
    """A name that a registry does not have; it is a KeyError so that a registry is a mapping like any other."""

    __str__ = ValueError.__str__


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``allowed``.

    Raises:
        ValueError: the sentence names the parameter, the value, what is allowed and the nearest of it.
    """
    options = list(allowed)
    if value not in options:
        raise ValueError(_unknown(name, value, options))


def _unknown(name: str, value: object, allowed: Iterable[str]) -> str:
    options = list(allowed)
    near = difflib.get_close_matches(str(value), options, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{name}={value!r} is unknown{hint}; allowed: {', '.join(options)}"


def sentence(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, as ``name=value: what is allowed``."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    return f"{first['loc'][0]}={first['input']!r}: {message[0].lower()}{message[1:]}"
