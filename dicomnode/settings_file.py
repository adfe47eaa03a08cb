"""Reads the configuration file, and names the file, line, key and fix of whatever is wrong with it.

Flow: cli > [settings_file] > toml_lines, settings > errors
Never: a guess at what was meant (a near key is proposed, not taken); the value of a secret in a message.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from dicomnode.errors import ConfigurationError
from dicomnode.settings import ENV_PREFIX, Settings
from dicomnode.toml_lines import Key, find_lines

# What a TOML value of each type is called in a message.
TYPE_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes", tuple: "a list"}
# What pydantic calls by the names of its own, or of our classes.
KIND_WORDS = {
    "tuple_type": "a list, of tables with [[name]] before each",
    "model_type": "a table, with [name] before it",
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the configuration, and where it stands."""

    place: str  # "file:line" or "environment variable NAME"
    key: str
    text: str

    def __str__(self) -> str:
        """Give the one line a person reads."""
        return ": ".join(part for part in (self.place, self.key, self.text) if part)


def load_settings(path: Path) -> Settings:
    """Read a configuration file; the environment (`DICOMNODE_NODE__PORT=...`) goes over it key by key.

    Raises
    ------
    ConfigurationError
        If the file cannot be read or a key is unknown, of a wrong type or value: the first problem, in one line.
    """
    text = read_configuration(path)
    settings, problems = check_configuration(text, str(path))
    if settings is None:
        others = f" (and {len(problems) - 1} more: dicomnode config check)" if len(problems) > 1 else ""
        raise ConfigurationError(f"{problems[0]}{others}")
    return settings


def load_defaults() -> Settings:
    """Return the settings of an empty file: the defaults, the environment over them; raises as `load_settings`."""
    settings, problems = check_configuration("", "defaults")
    if settings is None:
        raise ConfigurationError(str(problems[0]))
    return settings


def keep_sections(settings: Settings, kept: Mapping[str, BaseModel]) -> Settings:
    """Return settings with some sections of those in force instead.

    Raises
    ------
    ConfigurationError
        If what each of the two says does not go together.
    """
    try:
        return Settings(**{**settings.model_dump(), **{name: section.model_dump() for name, section in kept.items()}})
    except ValidationError as error:
        text = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ConfigurationError(
            f"{text} ({' and '.join(kept)} are those the node was started with until its restart)"
        ) from error


def read_configuration(path: Path) -> str:
    """Return the text of a configuration file.

    Raises
    ------
    ConfigurationError
        If there is no such file, or it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin it with a byte order mark
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path}: no such file; make one with: dicomnode config init --config {path}"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {error.strerror}; name a file that this user may read with --config"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def check_configuration(text: str, name: str) -> tuple[Settings | None, list[Problem]]:
    """Check the text of a configuration file.

    Returns
    -------
    settings, problems : Settings or None, list of Problem
        Settings when nothing is wrong; else None and every problem, in the order of the file. `name` is the file's
        name in them.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return None, [_syntax_problem(error, name)]
    lines = find_lines(text)
    try:
        settings = Settings(**data)
    except SettingsError as error:
        return None, [Problem("environment", "", f"{error}; a list is given as JSON")]
    except ValidationError as error:
        problems = [_problem(dict(item), lines, name) for item in error.errors(include_url=False)]
        return None, problems
    problems = [
        Problem(find_place(key, lines, name), show_key(key), f"found {_show(found)}, needed {needed}")
        for key, found, needed in _find_converted(data, settings, ())
    ]
    return (None, problems) if problems else (settings, [])


def show_key(key: Key) -> str:
    """Return a key as people write it: `peers[0].port`."""
    shown = ""
    for part in key:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else part
    return shown


def find_place(key: Key, lines: Mapping[Key, int], name: str) -> str:
    """Say where a key stands: in the environment, which wins, or at a line of the file called `name`."""
    for length in range(len(key), 0, -1):
        variable = ENV_PREFIX + "__".join(str(part) for part in key[:length]).upper()
        if variable in os.environ:
            return f"environment variable {variable}"
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return f"{name}:{lines[key[:length]]}"
    return name


def _syntax_problem(error: tomllib.TOMLDecodeError, name: str) -> Problem:
    text = str(error)
    found = re.search(r"\(at line (\d+), column (\d+)\)", text)
    place = f"{name}:{found[1]}" if found else name
    return Problem(place, "", f"not TOML: {text}; text needs quotes, each table its own [name]")


def _problem(item: Mapping[str, Any], lines: Mapping[Key, int], name: str) -> Problem:
    key: Key = tuple(item["loc"])
    text = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        text = f"unknown key{_near_key(key)}"
    elif item["type"] in KIND_WORDS:
        text = f"found {_show(item['input'])}, needed {KIND_WORDS[item['type']]}"
    elif item["type"] == "missing":
        text = "missing; every entry needs it"
    elif not key and (named := re.match(r"([a-z_]+(?:\.[a-z_0-9]+)+): ", text)):
        key = tuple(int(part) if part.isdecimal() else part for part in named[1].split("."))
        text = text[named.end() :]
    elif item["type"] != "value_error" and key[-1:] != ("url",):
        text = f"found {_show(item['input'])}; {text[:1].lower()}{text[1:]}"
    return Problem(find_place(key, lines, name), show_key(key), text)


def _near_key(key: Key) -> str:
    """Propose the nearest key that exists at the same place."""
    known = list(_fields_at(key[:-1]))
    near = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.5)
    return f'; did you mean "{near[0]}"?' if near else f"; known here: {', '.join(known)}"


def _fields_at(key: Sequence[str | int]) -> Iterator[str]:
    model: Any = Settings
    for part in key:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            arguments = [argument for argument in get_args(annotation) if argument is not Ellipsis]
            model = arguments[0] if arguments else annotation
    yield from model.model_fields


def _find_converted(data: Mapping[str, Any], model: BaseModel, key: Key) -> Iterator[tuple[Key, object, str]]:
    """Yield the values of the file that became another type: "11112" for 11112, true for 1."""
    for name, found in data.items():
        built = getattr(model, name)
        if isinstance(found, Mapping) and isinstance(built, BaseModel):
            yield from _find_converted(found, built, (*key, name))
        elif isinstance(found, list) and isinstance(built, tuple):
            for number, (part, value) in enumerate(zip(found, built, strict=False)):
                if isinstance(value, BaseModel):
                    yield from _find_converted(part, value, (*key, name, number))
        elif (
            type(built) in TYPE_WORDS and type(found) is not type(built) and (type(found), type(built)) != (int, float)
        ):
            yield (*key, name), found, TYPE_WORDS[type(built)]


def _show(value: object) -> str:
    """Show a value as TOML would write it, short."""
    shown = {True: "true", False: "false"}.get(value, repr(value)) if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
