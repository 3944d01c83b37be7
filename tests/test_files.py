"""Files: whole or not there, JSON, lines, a full disk."""

import errno
import os

import numpy as np
import pytest

from dias_lab import files


def test_json_takes_scalars_and_turns_nan_into_null(tmp_path):
    import torch

    value = {"a": float("nan"), "b": np.float32(0.5), "c": torch.tensor(3), "d": (np.bool_(True), np.inf), "e": tmp_path}
    files.write_json(tmp_path / "new/x.json", value)
    assert files.read_json(tmp_path / "new/x.json") == {"a": None, "b": 0.5, "c": 3, "d": [True, None], "e": str(tmp_path)}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]


def test_failed_write_leaves_the_old_content(tmp_path):
    files.write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(TypeError, match="object"):
        files.write_json(tmp_path / "x.json", {"new": object()})
    assert files.read_json(tmp_path / "x.json") == {"old": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_told_with_the_file_and_changes_nothing(tmp_path, monkeypatch):
    files.write_json(tmp_path / "x.json", {"old": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space is left on the disk.*x\.json") as caught:
        files.write_json(tmp_path / "x.json", {"new": 1})
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "x.json")
    assert files.read_json(tmp_path / "x.json") == {"old": 1} and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(IsADirectoryError):  # all else stays as it is
        files.append_line(tmp_path, {})


def test_sync_takes_files_and_folders(tmp_path):
    (tmp_path / "x").touch()
    files.sync(tmp_path / "x")
    files.sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.sync(tmp_path / "y")


def test_lines_survive_a_torn_end_and_only_that(tmp_path):
    path = tmp_path / "metrics.jsonl"
    files.append_line(path, {"step": 1})
    files.append_line(path, {"step": 2})
    with open(path, "a") as file:
        file.write('{"step": 3, "lo')  # kill -9
    assert files.read_lines(path) == [{"step": 1}, {"step": 2}]
    files.append_line(path, {"step": 3})
    assert files.read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        files.read_lines(path)


@pytest.mark.parametrize("old, new", [('"checksum":', '"chexksum":'), ('"step": 5', '"step": 6'), ('"checksum": "', '"checksum": "0')])
def test_a_seal_that_is_missing_or_wrong_is_noticed(old, new, tmp_path):
    """Its name may be what is damaged: where there are checksums of other files, it has to be there."""
    path = tmp_path / "progress.json"
    files.write_sealed(path, {"step": 5, "checksums": {"a": "b"}})
    assert files.read_object(path) == {"step": 5, "checksums": {"a": "b"}}
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match="progress.json is not as it was written"):
        files.read_object(path)
    path.write_text('{"step": 5}')  # of an older version
    assert files.read_object(path) == {"step": 5}
