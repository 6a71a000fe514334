"""The child's side of an external binary: what turns a blank process into the program."""

from __future__ import annotations

import os
from typing import Any


def become(work_dir: str, filename: str, text: str, program: dict[str, Any]) -> None:
    """Replace this process by the program; returns only by raising.

    Args:
        text: what is put into the work directory as `filename` beforehand; "": nothing.
        program: fields of `Program`.

    Raises:
        OSError: there is no such program, or it can't be executed.
    """
    if text:
        fd = os.open(os.path.join(work_dir, filename), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
    environment = {**os.environ, **program["env"]}
    if program["port"]:
        environment["PORT"] = str(program["port"])
    if program["socket"]:
        environment["SOCKET"] = os.path.join(work_dir, program["socket"])
        if os.path.lexists(environment["SOCKET"]):  # of the process before this one
            os.unlink(environment["SOCKET"])
    os.execvpe(program["argv"][0], program["argv"], environment)  # noqa: S606 - what the tenant deployed
