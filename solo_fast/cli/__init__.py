"""The `solo` command. Each subcommand is imported when it is asked for, so that all of them start fast."""

from __future__ import annotations

import errno
import io
import os
import sys

EXIT_BROKEN_PIPE = 141


def main() -> None:
    """Run the command line and exit with its code."""
    from solo_fast.cli.output import ReaderGone

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a service may answer what is no Unicode: show it somehow
    try:
        code = _run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, ReaderGone):
        # The reader of our output has enough. Others die of SIGPIPE then, which a shell shows as 141: as quiet, and
        # `set -o pipefail` can tell that not all was written. SIGPIPE itself would also end us for a server's sake.
        _print_no_more()
        sys.exit(EXIT_BROKEN_PIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _print_no_more()
        sys.stderr.write(f"solo: the output could not be written: {error.strerror}\n")
        sys.exit(1)
    sys.exit(code)


def _print_no_more() -> None:
    """What is still in stdout's buffer would fail once more at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run() -> int:
    import click

    from solo_fast.cli.app import solo
    from solo_fast.cli.output import CommandFailed

    try:
        try:
            code = solo.main(prog_name="solo", standalone_mode=False)
        except UnicodeEncodeError:  # on its way to the server
            strange = [word for word in sys.argv if not word.isprintable()]
            if not strange:
                raise
            raise click.UsageError(f"{strange[0][:100]!a} is no text: its bytes are no UTF-8") from None
    except CommandFailed as failure:
        failure.show()
        return failure.exit_code
    except click.ClickException as error:
        if "--json" in sys.argv:
            body = {"error": "invalid_request", "message": error.format_message()}
            CommandFailed(body, error.exit_code, as_json=True).show()
        else:
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    return code if isinstance(code, int) else 0
