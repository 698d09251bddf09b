"""Find a function of the user's by the name ``module:function``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


def names_function(text: str) -> bool:
    """Whether ``text`` has the form ``module:function``. No other name in the suite holds a colon."""
    return ":" in text


def named_function(parameter: str, text: str) -> Callable[[], Any]:
    """Import the module that ``text`` names, and return its function. Nothing else is run.

    Errors of the module's own code are raised as they are.

    Args:
        parameter: name of the parameter in the error messages.
        text: ``module:function``, e.g. ``my_module:build``. The module must be importable, as one in the current
            folder is under ``python -m`` and in a notebook.

    Raises:
        ValueError: there is no such module, or it has no such function, or the function needs arguments.
    """
    module_name, _, name = text.partition(":")
    if not module_name or not name or module_name.startswith("."):
        raise ValueError(f"{parameter}={text!r}: it must be module:function, e.g. my_module:build")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports another one that is not
        raise ValueError(
            f"{parameter}={text!r}: there is no module {module_name!r} in {Path.cwd()} or among the installed packages"
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        known = ", ".join(functions) or "none"
        raise ValueError(f"{parameter}={text!r}: {module_name} has no function {name!r}; it has {known}")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ValueError(f"{parameter}={text!r}: it is called without arguments: {error}") from None
    except ValueError:  # a function without a known signature
        pass
    return function
