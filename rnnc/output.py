"""Writing results, so that whoever reads one finds the old text or the new, never a part of either."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO, cast

# Paths that stand for an open descriptor: replacing the file behind one would cut it off from who holds it.
_DESCRIPTORS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write `content`, text as UTF-8. A regular file is replaced in one step and keeps its mode, also behind a symlink;
    a device, a pipe or a descriptor is written to. Whatever interrupts it, the old file stays and nothing else is left.
    """
    path, data = Path(path), content.encode("utf-8") if isinstance(content, str) else content
    try:
        old = path.stat()
    except FileNotFoundError:
        old = None
    if (old is not None and not stat.S_ISREG(old.st_mode)) or str(path).startswith(_DESCRIPTORS):
        with open(path, "wb") as stream:
            stream.write(data)
        return
    target = Path(os.path.realpath(path))
    if old is not None and not os.access(target, os.W_OK):
        raise PermissionError(13, "Permission denied", str(path))  # a rename would not ask
    temporary = target.with_name(f".rnnc-{secrets.token_hex(8)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if old is not None:
            with suppress(PermissionError):  # another owner's file in our folder: the new one is ours
                if hasattr(os, "chown"):
                    os.chown(temporary, old.st_uid, old.st_gid)
            os.chmod(temporary, stat.S_IMODE(old.st_mode))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_stdout(text: str) -> None:
    """Write to standard output: UTF-8 whatever the locale says, since it is a file's content or a report of one."""
    stream = cast("TextIO | None", sys.stdout)
    if stream is None:
        raise OSError("standard output is closed")
    buffer = getattr(stream, "buffer", None)
    if buffer is None:  # replaced by a text stream, as `contextlib.redirect_stdout` does
        stream.write(text)
    else:
        stream.flush()
        buffer.write(text.encode("utf-8"))
    stream.flush()
