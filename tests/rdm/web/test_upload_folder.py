"""The folder of uploads: it goes with its page, and that of a killed page with the next one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from toy import ROOT

from rdm.web.folder import YOUNG, upload_folder

SERVE = """
import sys
from rdm.web.folder import upload_folder

with upload_folder() as folder:
    (folder / "upload.png").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def age(folder: Path) -> None:
    """Makes a folder as old as that of a page which was started long ago."""
    then = folder.stat().st_mtime - 2 * YOUNG
    os.utime(folder, (then, then))


def test_folders_of_killed_pages_are_removed_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    pages = [
        subprocess.Popen([sys.executable, "-c", SERVE], env=environment, cwd=ROOT, text=True, **pipes) for _ in range(3)
    ]
    killed, young, running = (Path(page.stdout.readline().strip()) for page in pages if page.stdout is not None)
    for page in pages[:2]:
        page.kill()
        page.wait()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (tmp_path / "rdm-web-without-lock", tmp_path / "another"):
        folder.mkdir()
        age(folder)
    (tmp_path / "rdm-web-link").symlink_to(killed.parent)
    for folder in (killed.parent, running.parent):
        age(folder)
    with upload_folder() as own:
        assert own.is_dir() and list(own.iterdir()) == []
        assert not killed.parent.exists()
        assert (young / "upload.png").is_file() and (running / "upload.png").is_file()
        names = {"rdm-web-without-lock", "another", "elsewhere", "rdm-web-link"}
        assert {each.name for each in tmp_path.iterdir()} == names | {
            each.parent.name for each in (young, running, own)
        }
    assert not own.parent.exists()
    pages[2].communicate("")
    assert not running.parent.exists()
