import contextlib
import errno
import os
import shutil
import sqlite3

import pytest
import torch

from tasks.errors import DataError, SetupError
from tasks.full_disk import clear_when_full, is_full


def write(path):
    path.write_bytes(bytes(2**21))


def save(path):
    with path.open("wb") as stream:
        torch.save({"weights": torch.zeros(10**6)}, stream)


def copy(path):
    source = path.parent.parent / f"{path.name}-source"
    source.mkdir()
    write(source / "large")
    shutil.copytree(source, path)


def insert(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (zeroblob(2000000))")
        connection.commit()


@pytest.mark.parametrize("fill", [write, save, copy, insert])
def test_whoever_meets_it_a_full_disk_is_known(small_disk, tmp_path, fill):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
        fill(small_disk / fill.__name__)
    assert is_full(caught.value)
    with pytest.raises(SetupError, match=r"no space is left on the disk of .* for the result"):
        _again(caught.value, tmp_path)
    for path in small_disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _again(error, place):
    with clear_when_full("the result of teach", place):
        raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_quota_or_a_limit_is_as_good(number):
    assert is_full(OSError(number, os.strerror(number)))


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "denied"), ValueError("full"), DataError("")]
)
def test_other_trouble_stays_what_it_is(tmp_path, error):
    assert not is_full(error)
    with pytest.raises(type(error)) as caught:
        _again(error, tmp_path)
    assert caught.value is error
