"""Lock files: only one process at a time works in a folder, and the file says which.

The lock is the operating system's (POSIX record locks): it ends with the process that holds it, however that ends, and
loader processes don't inherit it. What the file says is for people.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from mgmae_cli.errors import RunError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system
_SECONDS_BETWEEN_TRIES = 0.2


@contextmanager
def locked(path: Path, busy: str, seconds: float = 0.0) -> Iterator[str]:
    """Hold a lock file, and remove it in the end; yield a note for the user, or an empty text.

    The note tells of a holder that died, or of a file system without locks, on which nothing is held.

    Args:
        busy: what to say where another process holds it; who that is, is added.
        seconds: how long to wait for it to let go.

    Raises:
        RunError: another process holds it, or it can't be made.
    """
    deadline = time.monotonic() + seconds
    while True:
        file = _open(path)
        try:
            note = _try(file, path)
            if note is not None:
                break
            if time.monotonic() >= deadline:
                raise RunError(f"{busy} ({_holder(file) or 'it does not say who it is'})")
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        time.sleep(_SECONDS_BETWEEN_TRIES)
    try:
        yield note
    finally:
        with suppress(OSError):
            path.unlink()  # before it is let go, or else it might be somebody else's
        os.close(file)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise RunError(f"{path.parent}: can't be written: {reason}; choose another --out") from error


def _try(file: int, path: Path) -> str | None:
    """Take the lock of an open file and write who holds it; return a note, or None where another process holds it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            return None
        return f"{path.parent}: its file system has no locks: see to it that no other process works in it"
    try:
        if path.stat().st_ino != os.fstat(file).st_ino:
            return None
    except FileNotFoundError:
        return None  # its last holder has just removed it
    before = _holder(file)
    os.ftruncate(file, 0)
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    os.pwrite(file, json.dumps({"pid": os.getpid(), "host": platform.node(), "started": started}).encode(), 0)
    return f"taking over {path.parent} from a process that has died ({before})" if before else ""


def _holder(file: int) -> str:
    """Return who has written to a lock file, or an empty text."""
    try:
        found = json.loads(os.pread(file, 1000, 0))
        return f"process {found['pid']} on {found['host']}, since {found['started']}"
    except (ValueError, KeyError, TypeError):
        return ""
