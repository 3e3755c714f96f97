"""Files are written whole or not at all, with the umask's mode, and read within bounds."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selector.errors import SelectorError
from selector.files import LONGEST_NAME, file_name, partial_of, read_bytes, read_text, write_text
from selector.files import write_whole as write_whole

KILLED_AT = """
import os, sys
from pathlib import Path
from selector.files import write_text
call, number = 0, int(sys.argv[2])
def killed(name):
    whole = getattr(os, name)
    def one(*args, **kwargs):
        global call
        call += 1
        if call == number:
            os._exit(9)
        return whole(*args, **kwargs)
    return one
for name in ("open", "chmod", "fsync", "replace", "unlink"):
    setattr(os, name, killed(name))
write_text(Path(sys.argv[1]), "new " * 1000)
"""


def test_at_every_kill_there_is_the_old_or_the_new_file(tmp_path: Path) -> None:
    path, states = tmp_path / "file.txt", []
    for number in range(1, 20):
        path.write_text("old")
        done = subprocess.run(
            [sys.executable, "-c", KILLED_AT, str(path), str(number)], check=False
        )
        states.append(path.read_text())
        assert states[-1] in ("old", "new " * 1000)
        if done.returncode == 0:
            break
    assert done.returncode == 0
    assert states[0] == "old"
    assert states[-2:] == ["new " * 1000] * 2
    # What the killed ones left was removed by the last one.
    assert [one.name for one in tmp_path.iterdir()] == ["file.txt"]


def test_what_others_write_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    mine, other = partial_of(path), partial_of(tmp_path / "b")
    host = mine.with_name(mine.name.replace(f"-{os.getpid()}-", "-999999999-"))
    host = host.with_name(host.name.replace(host.name.split(".")[2][:8], "00000000"))
    for left in (mine, other, host):
        left.write_text("half")
    write_text(path, "whole")
    assert {one.name for one in tmp_path.iterdir()} == {"a", mine.name, other.name, host.name}
    day = 86400
    os.utime(host, (os.stat(host).st_mtime - 2 * day,) * 2)
    write_text(path, "whole")
    assert {one.name for one in tmp_path.iterdir()} == {"a", mine.name, other.name}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_what_the_umask_says(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fails(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(SelectorError, match=r"file cannot be written: .*No space left"):
        write_whole(path, fails)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["pipe", "folder", "a\0b", "x" * 300, "none/there"])
def test_what_is_no_file_cannot_be_written(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SelectorError, match="cannot be written"):
        write_text(tmp_path / name, "text")


@pytest.mark.parametrize(
    "name", ["pipe", "folder", "a\0b", "x" * 300, "large", "bytes", "/dev/null"]
)
def test_what_is_no_text_cannot_be_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**40)  # A hole: no disk is taken.
    with pytest.raises(SelectorError, match=r"the plan .* cannot be read"):
        read_text(tmp_path / name, "the plan")


def test_a_link_is_read_only_where_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "link") == b"text"
    with pytest.raises(OSError, match="link is not a regular file"):
        read_bytes(tmp_path / "link", follow=False)


@given(st.text())
def test_every_name_is_that_of_a_file(name: str) -> None:
    found = file_name(name)
    assert len(found.encode()) <= LONGEST_NAME
    assert "/" not in found
    assert "\0" not in found
    assert found.isprintable()


@given(st.text(), st.text())
def test_different_names_stay_different(one: str, other: str) -> None:
    assert (file_name(one) == file_name(other)) == (one == other)
    long = "x" * 300
    assert (file_name(long + one) == file_name(long + other)) == (one == other)
