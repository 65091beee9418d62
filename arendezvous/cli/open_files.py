"""The limit on open files: each connection takes one."""

from __future__ import annotations

import resource


def open_files() -> tuple[int, int]:
    """Returns the soft and the hard limit; `resource.RLIM_INFINITY` stands for none."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_open_files() -> None:
    """Raises the soft limit to the hard one, as far as the system lets us."""
    soft, hard = open_files()
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # some systems have a hard limit that they do not allow
            return
