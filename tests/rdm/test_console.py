"""The console commands: each is its script under another name, and a wheel has what they read."""

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, read

from ldm.command_line import CALLED
from rdm import console

tomllib = pytest.importorskip("tomllib")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
INSTALLED = "retrieval_augmented_diffusion"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command, or a script, with words; gives what it prints."""

    def said(name: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit):
            if name.endswith(".py"):
                runpy.run_path(str(ROOT / name), run_name="__main__")
            else:
                function_of(name)()
        printed = capsys.readouterr()
        return printed.out + printed.err

    yield said
    CALLED.clear()


def function_of(command: str):
    module, _, name = PROJECT["project"]["scripts"][command].partition(":")
    return getattr(importlib.import_module(module), name)


def test_every_script_has_a_command_that_is_installed_and_explained() -> None:
    scripts = {"main.py", *(file.relative_to(ROOT).as_posix() for file in (ROOT / "scripts").glob("*.py"))}
    assert set(console.SCRIPTS.values()) == scripts
    assert list(PROJECT["project"]["scripts"]) == list(console.SCRIPTS)
    table = r"^\| `(rdm-\w+)` \| `([\w/]+\.py)` \| [^|]+ \|$"
    assert dict(re.findall(table, read("docs/install.md"), re.MULTILINE)) == console.SCRIPTS
    assert "(docs/install.md)" in read("README.md")


@pytest.mark.parametrize("command", console.SCRIPTS)
def test_a_command_has_the_help_of_its_script(command: str, run) -> None:
    script = console.SCRIPTS[command]

    def text(name: str) -> str:
        words = run(name, "--help").split()
        assert words[:2] == ["usage:", Path(name).name]
        return " ".join(words[2:])

    assert text(command) == text(script)


def test_errors_name_what_was_called(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "build it with scripts/build_database.py" in run("scripts/build_database.py", "show", "none")
    assert "build it with rdm-database --output none" in run("rdm-database", "show", "none")
    assert "train one with rdm-train --base" in run("rdm-sample", "--ckpt", "none")


@pytest.mark.parametrize(
    ("package", "module", "extra"),
    [("faiss", "rdm.retrieval.index.faiss_rows", "cpu"), ("gradio", "rdm.web.server", "web")],
)
def test_a_missing_extra_is_one_line(package: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    remedy = rf"{package}.*pip install 'retrieval-augmented-diffusion\[{extra}\]'"
    with pytest.raises(ValueError, match=remedy) as error:
        importlib.import_module(module)
    assert "\n" not in str(error.value) and extra in PROJECT["project"]["optional-dependencies"]


def test_a_wheel_has_every_file_that_is_shipped() -> None:
    """By pyproject.toml; `make wheel` compares the files of a wheel."""
    shipped = ("ldm", "rdm", "configs", "data", "docs/gallery/inputs", "main.py", "models", "scripts")
    listing = ["git", "ls-files", *shipped]
    tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False).stdout  # noqa: S607
    if not tracked:
        pytest.skip("no git checkout, so that the user's own files cannot be told from shipped ones")
    included = [*WHEEL["only-include"], *WHEEL["force-include"]]
    assert [name for name in tracked.split() if not any(Path(name).is_relative_to(path) for path in included)] == []
    moved = {**WHEEL["sources"], **WHEEL["force-include"]}
    assert {path.split("/")[0] for path in included} - {"ldm", "rdm"} == set(moved)
    assert moved == {path: f"{INSTALLED}/{path}" for path in moved}


def test_an_installed_package_finds_its_files_and_builds_in_the_cache(tmp_path: Path) -> None:
    """In a folder as pip makes it: the packages, and beside them the shipped files."""
    site, cache = tmp_path / "site", tmp_path / "cache"
    ours, further = Path("models/rdm/emoji"), Path("models/rdm/further")
    shutil.copytree(ROOT / "ldm", site / "ldm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("configs", "models", "scripts"):
        (site / INSTALLED).mkdir(exist_ok=True)
        (site / INSTALLED / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / ours, cache / further)
    (tmp_path / "own").mkdir()
    program = (
        "from ldm.config import read_config; from ldm.files import located, portable, project\n"
        f"for path in ('{ours}', '{further}', 'models/none', 'own'): print(located(path))\n"
        f"for file in ('configs/rdm.yaml', '{further}/config.yaml'):\n"
        "    print(path := read_config([file])['data']['params']['database']['path'], portable(path), sep='\\n')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "LDM_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    database = "data/databases/emoji"
    expected = [site / INSTALLED / ours, cache / further, "models/none", "own", *[cache / database, database] * 2]
    assert done.stdout.split() == [str(each) for each in expected], done.stderr
