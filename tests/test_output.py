"""Writing files: replaced in one step, with nothing left over, and only where replacing is meant."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from rnnc.output import write


def test_a_new_file_gets_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "a.py", "β = 1\n")
    finally:
        os.umask(old)
    assert (tmp_path / "a.py").read_bytes() == "β = 1\n".encode()
    assert stat.S_IMODE((tmp_path / "a.py").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["a.py"]


def test_a_replaced_file_keeps_its_mode_and_its_old_readers(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("old")
    path.chmod(0o751)
    with open(path) as reader:
        write(path, "new")
        assert reader.read() == "old"  # another file: never a mixture
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o751


def test_a_symlink_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.py", tmp_path / "link.py"
    link.symlink_to(Path("real") / "a.py")
    for text in ("first", "second"):  # dangling, then not
        write(link, text)
        assert link.is_symlink() and target.read_text() == text
    assert os.listdir(tmp_path / "real") == ["a.py"]


@pytest.mark.parametrize("name", ["n" * 255, "名" * 85], ids=["ascii", "utf-8"])
def test_the_longest_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"


def test_special_files_are_written_to(tmp_path: Path) -> None:
    write("/dev/null", "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe, "through")
    reader.join(10)
    assert read == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_descriptor_is_not_cut_off(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w+") as stream:
        write(f"/dev/fd/{stream.fileno()}", "text")
        assert stream.read() == "text"


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.py"
    path.write_text("old")

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.py"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_a_read_only_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(PermissionError):
        write(path, "new")
    assert path.read_text() == "old"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write(tmp_path, "text")
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "a.py", "text")
    assert os.listdir(tmp_path) == []
