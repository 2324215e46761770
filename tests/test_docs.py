"""The pages for users: the scripts take their commands, no option is missing, pictures and links are what they say."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from documents import PAGES, ROOT, commands, read
from parsers import options_of

from benchmarks.gallery import read_picture
from rdm.sampling.settings import DEFAULTS, OPTIONS

EVERY_PAGE = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "*/README.md")
    for path in ROOT.glob(pattern)
)
TYPED = [(page, command) for page in PAGES for language in ("", "sh") for command in commands(page, language)]
EXPLAINED = {
    "docs/sampling.md": [f"scripts/{name}.py" for name in ("txt2img", "class2img", "sample", "edit", "verify")],
    "docs/training.md": ["main.py"],
    "docs/evaluation.md": ["scripts/evaluate.py"],
    "docs/databases.md": ["scripts/build_database.py", "scripts/search_neighbors.py"],
    "docs/checkpoints.md": ["scripts/export_checkpoint.py"],
    "docs/compvis.md": ["scripts/check_checkpoint.py"],
    "docs/web.md": ["scripts/web.py"],
    "docs/own.md": ["scripts/own.py"],
}


@pytest.mark.parametrize(("page", "command"), TYPED, ids=lambda value: value if isinstance(value, str) else value[0])
def test_the_scripts_take_the_commands(page: str, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    del page
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", command)
    scope = runpy.run_path(command[0])
    scope["parse" if "parse" in scope else "parse_args"]()
    configs = [word for word in command if word.startswith("configs/")]
    assert all(Path(config).is_file() for config in configs)


@pytest.mark.parametrize("page", EXPLAINED)
def test_a_page_explains_every_option_of_its_scripts(page: str) -> None:
    text = read(page) if page == "docs/sampling.md" else read(page) + read("docs/sampling.md")
    named = set(re.findall(r"--[A-Za-z][\w-]*", text))
    for script in EXPLAINED[page]:
        assert not options_of(script) - named, script


def test_the_page_of_options_states_the_defaults() -> None:
    """Of every setting that has one; where there is none, the page says what happens."""
    rows = re.findall(r"^\| `--([\w-]+)[^|]*\|[^|]*\| ([^|]*) \|$", read("docs/sampling.md"), re.MULTILINE)
    stated = dict(reversed(rows))
    for name, known in OPTIONS.items():
        if DEFAULTS[name] not in (None, False, 0):
            flag = known.flags[0] if known.flags else f"--{name}"
            assert str(DEFAULTS[name]).removesuffix(".0") in stated[flag.removeprefix("--")], name


def test_every_way_in_the_readme_has_the_picture_that_its_command_made() -> None:
    rows = re.findall(
        r"^\|.*`(\w+\.py .*)`.*<img src=\"(docs/gallery/[\w-]+-(\d+)\.png)\"", read("README.md"), re.MULTILINE
    )
    assert len(rows) >= 10
    for options, picture, number in rows:
        made = [line for line in read_picture(ROOT / picture)[0].splitlines() if "build_database" not in line]
        assert set(shlex.split(f"scripts/{options}")) <= set(shlex.split(made[int(number) - 1])), picture


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", read(page), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        target, _, heading = "".join(link).partition("#")
        if target.startswith("http"):
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, heading


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 150
