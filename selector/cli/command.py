"""What every command has: options in bundles, one document on stdout, exit statuses, Ctrl-C."""

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, get_type_hints

import typer

from selector.cli.config import Config
from selector.cli.outputs import InterruptedRunError, Printed, Terminal
from selector.errors import SelectorError
from selector.tables import printable

REFUSED = 2
"""Exit status of unusable input, and of a run that had to stop."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

Command = Callable[..., str | Printed]

Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No progress, no remarks: only warnings, errors, and the result."
    ),
]


def printed(command: Command) -> Callable[..., None]:
    """Make a command of a function that returns what is to be printed.

    A parameter whose type is a dataclass of options stands for all of its fields: on the command
    line each is an option of its own. `--config` and `--quiet` are added.

    What a user's own code prints while the command works goes to stderr, so that stdout holds one
    document. A `SelectorError` is one line on stderr and exit status 2.
    """
    bundles = _bundles(command)

    def run(**typed: Any) -> None:
        typed.pop("config")
        terminal = Terminal(quiet=typed.pop("quiet"))
        given = {name: value for name, value in typed.items() if name not in _fields(bundles)}
        with _reported(terminal), redirect_stdout(terminal.stream):
            for name, bundle in bundles.items():
                own = {field.name: typed[field.name] for field in dataclasses.fields(bundle)}
                given[name] = bundle(**own)
            found = command(**given)
        answer = Printed(found) if isinstance(found, str) else found
        if answer.first:
            print(printable(answer.first), file=sys.stderr)
        write_out(answer.text)
        if answer.status:
            raise typer.Exit(answer.status)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    parameters = list(_parameters(command))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def write_out(text: str) -> None:
    """Print a document; what cannot take it is one line on stderr and exit status 2.

    Whoever closes the pipe early, as `head` does, has read enough: that is no fault.
    """
    try:
        print(printable(text), flush=True)
    except OSError as error:
        # What is still buffered must not be tried again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return
        print(f"error: the output cannot be written: {error}", file=sys.stderr)
        raise typer.Exit(REFUSED) from error


def _bundles(command: Command) -> dict[str, type[Any]]:
    """Parameters that stand for several options, with the dataclasses of these."""
    hints = get_type_hints(command, include_extras=True)
    return {
        name: hint
        for name, hint in hints.items()
        if name != "return" and isinstance(hint, type) and dataclasses.is_dataclass(hint)
    }


def _fields(bundles: dict[str, type[Any]]) -> set[str]:
    return {field.name for bundle in bundles.values() for field in dataclasses.fields(bundle)}


def _parameters(command: Command) -> Iterator[inspect.Parameter]:
    """One keyword for every option of a command."""
    hints = get_type_hints(command, include_extras=True)
    bundles = _bundles(command)
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in bundles:
            yield _keyword(name, hints[name], parameter.default)
            continue
        own = get_type_hints(bundles[name], include_extras=True)
        for field in dataclasses.fields(bundles[name]):
            missing = field.default is dataclasses.MISSING
            default = inspect.Parameter.empty if missing else field.default
            yield _keyword(field.name, own[field.name], default)
    yield _keyword("config", Config, None)
    yield _keyword("quiet", Quiet, False)


def _keyword(name: str, annotation: object, default: object) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


@contextmanager
def _reported(terminal: Terminal) -> Iterator[None]:
    """Context in which faults of the user, and Ctrl-C, end the command with a line and a status."""
    try:
        with terminal.logging():
            yield
    except SelectorError as error:
        print("error:", *printable(str(error)).split(), file=sys.stderr)
        raise typer.Exit(REFUSED) from error
    except InterruptedRunError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from error
    except KeyboardInterrupt as error:
        print("stopped by Ctrl-C before anything was written", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from error
