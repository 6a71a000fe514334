"""The group of all commands, and where each lives."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import click

from solo_fast.cli.output import ReaderGone

COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("serve", "Run a kernel."),
    "deploy": ("services", "Deploy a service from a Python file."),
    "status": ("services", "Show one service, or all."),
    "list": ("services", "List the services."),
    "swap": ("versions", "Put another version in a service's place, under load."),
    "history": ("versions", "Show the versions of a service that are kept."),
    "rollback": ("versions", "Swap a service back to a version that is kept."),
    "kill": ("services", "End a service and forget it."),
    "call": ("services", "Call a method and print its result."),
    "cast": ("services", "Send a message to a method and don't wait."),
    "check": ("services", "Compile source, show its methods and what the static check finds."),
    "logs": ("logs", "Show what services print and log."),
    "events": ("events", "Show, verify or export what happened."),
    "backup": ("storage", "Copy all that a kernel keeps to a file."),
    "restore": ("storage", "Put a backup in the place of a data directory's database."),
    "health": ("system", "Ask the kernel how it is."),
    "metrics": ("system", "Show the kernel's figures."),
    "doctor": ("doctor", "Show which layers of the sandbox hold on this host."),
    "shutdown": ("system", "Stop the kernel."),
    "version": ("system", "Print the version."),
    "help": ("system", "Show help, of one command or of all."),
    "completion": ("completion", "Print a shell's completion script."),
}
"""Command -> module of this package, and its line in the overview."""


@contextlib.contextmanager
def _broken_pipe_told() -> Iterator[None]:
    """Get a broken pipe past `click.Group.main`, which makes it an exit with 1 whatever it is told."""
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None


class LazyGroup(click.Group):
    """Imports a command's module when the command is used."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _broken_pipe_told():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _broken_pipe_told():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"solo_fast.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; `solo help` lists them"
            raise click.UsageError(f"there is no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def solo() -> None:
    """Solo: a user-level operating system for LLM agents.

    `solo serve` runs a kernel on this host; the other commands talk to one over REST. With --json a command prints
    exactly one JSON document (one a line when following), the error's where it fails.

    Exit codes: 0 done, 1 an error inside Solo, 2 a wrong request, 3 not allowed, 4 not found, 5 the name is taken,
    6 the source does not come up, 7 the service's own error, 8 not now (overloaded, circuit open, disk full),
    9 too late, 10 no server, 141 nobody reads the output any more.
    """
