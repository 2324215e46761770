"""Small files on disk."""

from pathlib import Path

import pytest

from ldm.files import read_json, read_text


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("größe")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    assert read_text(tmp_path / "a.txt") == "größe"
    (tmp_path / "a.txt").write_text("größe", encoding="utf-8-sig")  # as Windows' editor writes it
    assert read_text(tmp_path / "a.txt") == "größe"
    (tmp_path / "a.json").write_text('{"größe": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json", "") == {"größe": 1}
    with pytest.raises(ValueError, match="b.txt.*UTF-8"):
        read_text(tmp_path / "b.txt")
