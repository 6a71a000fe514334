"""Entry of `solo`. Imports nothing until it knows what it is to be, so that each role starts with only its own."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line, or be the zygote that a kernel started."""
    os.environ.pop("SOLO_EXE", None)  # the launcher's word on where the single file is; no child needs it
    if len(sys.argv) == 4 and sys.argv[1] == "--zygote":
        from solo_fast.runtime import zygote

        zygote.main(int(sys.argv[2]), int(sys.argv[3]))
    else:
        from solo_fast import cli

        cli.main()


if __name__ == "__main__":
    main()
