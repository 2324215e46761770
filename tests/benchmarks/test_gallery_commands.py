"""The commands of the gallery, run with two steps each. They drew its pictures with all steps."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Commands

from benchmarks.gallery import ROOT, SAMPLING, Entry, read_gallery

ENTRIES = [entry for entries in read_gallery()[1].values() for entry in entries if not entry.is_code]


@pytest.fixture(scope="module")
def process() -> Iterator[Commands]:
    with Commands() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place like the checkout, whose databases are its own. All entries share it, and with it the database."""
    folder = tmp_path_factory.mktemp("gallery")
    for name in ("scripts", "configs", "docs", "models/clip", "models/first_stage", "models/rdm", "data/emoji"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_commands_run(entry: Entry, process: Commands, folder: Path) -> None:
    for line, picture in entry.steps:
        words = shlex.split(line)[1:]
        fewer = ["--steps", "2"] if words[0].endswith(SAMPLING) else []
        code, said = process.run([*words, *fewer], folder)
        assert code == 0, f"{line}: {said[-2000:]}"
        assert picture is None or (folder / said.splitlines()[-1]).suffix == ".png", said[-500:]
