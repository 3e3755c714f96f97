"""`--config file.toml`: options from a file; what is typed goes before it."""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from selector.errors import SelectorError
from selector.files import read_text


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a file the defaults of the command's options."""
    if path is None or context.resilient_parsing:
        return path
    try:
        context.default_map = {**(context.default_map or {}), **_values(context, path)}
    except SelectorError as error:
        raise typer.BadParameter(str(error)) from error
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=_read,
        is_eager=True,
        metavar="FILE.toml",
        help="Options from a TOML file: `keep-macs = 0.5`, for all commands that have the option, "
        "or under a heading such as `[prune]` for one. What is typed goes before it.",
    ),
]


def _values(context: typer.Context, path: Path) -> dict[str, Any]:
    """Parameter -> value, of the options that this command has.

    Raises:
        SelectorError: No TOML, a name that no command has, or one that this command does not have
            under its own heading.
    """
    try:
        found = tomllib.loads(read_text(path, "the options"))
    except tomllib.TOMLDecodeError as error:
        raise SelectorError(f"{path} is not TOML: {error}") from error
    own = _options(context.command)
    group = context.parent.command if context.parent is not None else None
    commands: Mapping[str, Any] = getattr(group, "commands", {})
    known = {name for one in commands.values() for name in _options(one)} | set(own)
    values: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            if name not in commands:
                raise SelectorError(f"{path}: {name!r} is no command{_near(name, commands)}")
            continue
        if _plain(name) not in known:
            raise SelectorError(f"{path}: no command has an option {name!r}{_near(name, known)}")
        if _plain(name) in own:
            values[own[_plain(name)]] = _typed(value)
    special = found.get(str(context.info_name), {})
    for name, value in special.items():
        if _plain(name) not in own:
            raise SelectorError(
                f"{path}: {context.info_name} has no option {name!r}{_near(name, own)}"
            )
        values[own[_plain(name)]] = _typed(value)
    return values


def _plain(name: str) -> str:
    return name.replace("_", "-")


def _options(command: Any) -> dict[str, str]:
    """Option without its dashes -> the parameter that it sets."""
    found = {}
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("--") and option not in ("--config", "--help"):
                found[option.removeprefix("--")] = str(parameter.name)
    return found


def _typed(value: object) -> object:
    """A value as it would be typed: lists and tables with commas."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if isinstance(value, bool | int | float) else str(value)


def _near(name: str, known: Mapping[str, Any] | set[str] | dict[str, str]) -> str:
    near = get_close_matches(_plain(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
