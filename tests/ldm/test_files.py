"""Small files on disk."""

from pathlib import Path

import pytest

from ldm.files import read_text


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("größe")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    assert read_text(tmp_path / "a.txt") == "größe"
    with pytest.raises(ValueError, match="b.txt.*UTF-8"):
        read_text(tmp_path / "b.txt")
