"""The `solo` command. Each subcommand is imported when it is asked for, so that all of them start fast."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    import click

    from solo_fast.cli.app import solo
    from solo_fast.cli.output import CommandFailed, print_json

    try:
        code = solo.main(prog_name="solo", standalone_mode=False)
    except CommandFailed as failure:
        failure.show()
        sys.exit(failure.exit_code)
    except click.ClickException as error:
        if "--json" in sys.argv:
            print_json({"error": "invalid_request", "message": error.format_message()})
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)
