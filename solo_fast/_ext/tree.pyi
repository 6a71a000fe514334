ENTRY_BYTES: int
"""The least that a file, folder or link counts for: its name and inode take room too."""
DEPTH_MAX: int
"""Folders nested deeper than this, or closed to the walker, count as `stop_at`: nothing hides in them."""

def disk_usage(path: str, pids: list[int], stop_at: int) -> tuple[int, int]:
    """Bytes on disk and entries below a folder, and of the unlinked files that `pids` still hold open or have mapped
    (where /proc shows them), each once. The walk ends once `stop_at` bytes are found, follows no link, and runs without
    the GIL. Descriptors and mappings that are too many to look at count as `stop_at`.

    (0, 0) when there is no such folder.
    """
