"""Files with people's data: whole or not at all, 0600, and only in the place of a regular file."""

import os
import stat
from pathlib import Path

import pytest

from worker.cli.files import written
from worker.errors import IngestError


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_its_owners_alone_also_where_one_was_everybodys(tmp_path: Path) -> None:
    path = tmp_path / "export.jsonl"
    path.write_text("before")
    path.chmod(0o644)
    with written(path) as file:
        file.write("after")
    assert (path.read_text(), _mode(path)) == ("after", 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["export.jsonl"]


def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "export.jsonl"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), written(path) as file:
        file.write("half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["export.jsonl"]


def test_a_link_is_not_followed_and_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("somebody else's")
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(IngestError, match="is a link, but only a regular file"), written(link):
        pytest.fail("nothing may be written")
    assert target.read_text() == "somebody else's"
    assert link.is_symlink()


def test_a_dangling_link_a_pipe_and_a_folder_stay_what_they_are(tmp_path: Path) -> None:
    dangling, pipe, folder = tmp_path / "dangling", tmp_path / "pipe", tmp_path / "folder"
    dangling.symlink_to(tmp_path / "nowhere")
    os.mkfifo(pipe)
    folder.mkdir()
    for path, kind in ((dangling, "a link"), (pipe, "a pipe"), (folder, "a folder")):
        with pytest.raises(IngestError, match=f"is {kind},"), written(path):
            pytest.fail("nothing may be written")
    assert dangling.is_symlink() and not (tmp_path / "nowhere").exists()
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "report.html"
    with pytest.raises(IngestError, match=f"{path} can't be written: No such file"), written(path):
        pytest.fail("nothing may be written")
