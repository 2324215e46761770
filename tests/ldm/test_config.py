"""Reading, merging and writing configs."""

from pathlib import Path

import pytest

from ldm.config import check_keys, read_config, write_config


def yaml(folder: Path, name: str, text: str) -> Path:
    (file := folder / name).write_text(text)
    return file


def test_files_merge_from_left_to_right_and_overrides_win(tmp_path: Path) -> None:
    first = yaml(tmp_path, "a.yaml", "model: {k: 4, dims: [1, 2], rate: 1.0e-3}\nname: a\n")
    second = yaml(tmp_path, "b.yaml", "model: {k: 8, twice: '${model.k}'}\n")
    config = read_config([first, second], ["model.rate=0.5", "model.new.deep=[3]", "name=null"])
    assert config == {
        "model": {"k": 8, "dims": [1, 2], "rate": 0.5, "twice": 8, "new": {"deep": [3]}},
        "name": None,
    }
    assert type(config["model"]["dims"]) is list


def test_a_written_config_reads_back_the_same(tmp_path: Path) -> None:
    config = {"a": {"b": [1, 2.5, None, "x: y"], "c": True}}
    write_config(tmp_path / "run" / "config.yaml", config)
    assert read_config([tmp_path / "run" / "config.yaml"]) == config
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_missing_file_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    yaml(tmp_path / "configs", "rdm.yaml", "a: 1")
    with pytest.raises(FileNotFoundError, match=r"configs/rmd.yaml.*'configs/rdm.yaml'"):
        read_config(["configs/rmd.yaml"])


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("a: [1, 2", [], "a.yaml: while parsing"),
        ("- 1\n- 2\n", [], "a.yaml: expected a mapping, got a list"),
        ("- 1\n- 2\n", ["a=1"], "a.yaml: expected a mapping, got a list"),
        ("a: ${b}", [], "Interpolation key 'b' not found"),
        ("a: 1", ["a"], "got the setting 'a', expected key.path=value"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_config([yaml(tmp_path, "a.yaml", text)], overrides)
    assert message in str(caught.value)


def test_unknown_keys_name_the_nearest() -> None:
    check_keys({"model": 1}, ("model", "data"), "config")
    with pytest.raises(ValueError, match=r"config: .*'modle'.*'model'"):
        check_keys({"modle": 1}, ("model", "data"), "config")
    with pytest.raises(ValueError, match="config: .*'xyz'.*model, data"):
        check_keys({"xyz": 1}, ("model", "data"), "config")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xad\x00")
    with pytest.raises(ValueError, match="a.yaml.*utf-8"):
        read_config([tmp_path / "a.yaml"])


def test_a_section_that_is_no_mapping_is_named() -> None:
    with pytest.raises(ValueError, match="lightning.*'abc'"):
        check_keys("abc", ("trainer",), "lightning")
