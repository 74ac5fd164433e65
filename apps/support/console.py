"""Functions that turn a Python function into a command-line program, and print tables."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from lib.errors import OrganNetError
from lib.storage.storage_errors import is_disk_full

ARGUMENTS = "organnet.arguments"
"""Key of the command-line arguments in the `meta` of a Typer context."""


class Program(TyperCommand):
    """A command whose function returns the exit code, or an object whose method `run` does.

    An option that takes a list accepts all values after one flag (`--organs A B`); if the flag is
    repeated, the last values replace earlier ones, but values of a flag with the metavar `KEY VALUE` add up. An
    `OrganNetError` or a full disk ends the program with one line and exit code 1.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; before that, each value of a list gets its own flag, as Typer expects."""
        ctx.meta[ARGUMENTS] = list(args)
        lists = {
            flag: parameter.metavar == "KEY VALUE"
            for parameter in self.params
            if getattr(parameter, "multiple", False)
            for flag in parameter.opts
        }
        return super().parse_args(ctx, _repeat_flags(args, lists))

    def invoke(self, ctx: Any) -> Any:
        """Run the function and exit with the code that it returns."""
        try:
            code = super().invoke(ctx)
            code = code.run() if hasattr(code, "run") else code
        except (OrganNetError, OSError) as error:
            if isinstance(error, OSError) and not is_disk_full(error):
                raise
            is_own = isinstance(error, OrganNetError)
            message = error if is_own else "the disk is full; existing files are unchanged"
            print(f"error: {message}", file=sys.stderr)
            code = 1
        ctx.exit(code or 0)


def _repeat_flags(args: Sequence[str], lists: Mapping[str, bool]) -> list[str]:
    """Return the arguments with `--organs A B` as `--organs A --organs B`.

    Args:
        args: Command-line arguments.
        lists: Flag that takes a list -> whether the values of several such flags add up.
    """
    values: dict[str, list[str]] = {}
    other: list[str] = []
    current: list[str] | None = None
    for word in args:
        flag, _, value = word.partition("=")
        if flag in lists:
            current = values[flag] = values.get(flag, []) if lists[flag] else []
            current += [value] if value else []
        elif word.startswith("--") or current is None:
            current = None
            other.append(word)
        else:
            current.append(word)
    repeated = [part for flag, items in values.items() for item in items for part in (flag, item)]
    return [*repeated, *other]


def new_app(**settings: Any) -> typer.Typer:
    """Return a Typer application without shell completion and with ordinary tracebacks."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        **settings,
    )


def program(command: Callable[..., Any] | typer.Typer, name: str) -> Callable[..., int]:
    """Return `main(argv=None) -> exit code` of the program `python -m apps.NAME`.

    A usage error has exit code 2, an interrupt by Ctrl-C 130.
    """
    if isinstance(command, typer.Typer):
        app = command
    else:
        app = new_app()
        app.command(cls=Program)(command)

    def main(argv: Sequence[str] | None = None) -> int:
        prefix = "python -m apps." if name != "organnet" else ""
        try:
            app(args=argv, prog_name=prefix + name)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return main


def text_table(rows: Sequence[Sequence[object]]) -> str:
    """Return rows of values as columns, two spaces apart; the first row is the heading."""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def number(value: float | None, decimals: int = 3) -> str:
    """Return a number as text; `-` for None."""
    return "-" if value is None else f"{value:.{decimals}f}"
