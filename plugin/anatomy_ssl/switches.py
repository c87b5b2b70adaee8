"""Options that the command line gives as words."""

from __future__ import annotations

__all__ = ["switch"]


def switch(value: bool | str, name: str = "") -> bool:
    """True or false from a config key, which the command line gives as a word: `--mlflow false` is a string, and true.

    Args:
        value: a bool, or the word.
        name: of the key, for the error.

    Raises:
        ValueError: for any other value.
    """
    known = {"true": True, "false": False}
    if str(value).lower() not in known:
        raise ValueError(f"{name} {value!r} is neither true nor false".lstrip())
    return known[str(value).lower()]
