"""Files that are being written: nothing lies there under any name while they are, or after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bcu_cli.checkpoints import atomic_write, check_writable, unfinished
from bcu_cli.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

KILLED = """
import os, signal, sys
from pathlib import Path
from bcu_cli.checkpoints import atomic_write, unfinished
if sys.argv[2] == "named":
    unfinished._open_unnamed = lambda folder: None
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_while_writing(path: Path, how: str) -> None:
    ran = subprocess.run([sys.executable, "-c", KILLED, str(path), how], capture_output=True, check=False)
    assert ran.returncode == -9, ran.stderr


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs files without names")
def test_a_killed_run_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model"
    kill_while_writing(path, "unnamed")
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    kill_while_writing(path, "unnamed")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert path.read_bytes() == b"old"


def test_what_a_killed_run_left_elsewhere_goes_with_the_next_file_and_what_is_being_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_while_writing(tmp_path / "model", "named")
    assert [file.name[:5] for file in tmp_path.iterdir()] == [".bcu-"]
    monkeypatch.setattr(unfinished, "_open_unnamed", lambda folder: None)
    with atomic_write(tmp_path / "one") as first:
        left = list(tmp_path.glob(unfinished.NAMES))
        assert len(left) == 1  # that of the killed run is gone
        with atomic_write(tmp_path / "two") as second:
            second.write(b"2")
        first.write(b"1")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "two"]
    assert (tmp_path / "one").read_bytes() + (tmp_path / "two").read_bytes() == b"12"


def test_an_output_inside_a_folder_that_is_read_is_refused_if_it_is_one_of_its_files(tmp_path: Path) -> None:
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    (images / "cats").mkdir(parents=True)
    elsewhere.mkdir()
    (images / "cats" / "1.png").write_bytes(b"1")
    (images / "again").symlink_to(images)
    (elsewhere / "2.png").write_bytes(b"2")
    (images / "cats" / "2.png").symlink_to(elsewhere / "2.png")
    (elsewhere / "soft").symlink_to(images / "cats" / "1.png")
    (elsewhere / "hard").hardlink_to(images / "cats" / "1.png")
    for path in (images / "cats" / "1.png", elsewhere / "2.png", elsewhere / "soft", elsewhere / "hard"):
        with pytest.raises(OutputError, match="is the input"):
            check_writable(path, inputs=[images])
    (elsewhere / "3.png").write_bytes(b"3")
    check_writable(elsewhere / "3.png", inputs=[images, tmp_path / "nothing"])
    check_writable(images / "new.safetensors", inputs=[images])
