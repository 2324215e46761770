"""Makes docs/gallery.md: runs every way to sample from the shipped model as a user would, and shows the pictures.

    python -m benchmarks.gallery

docs/gallery.yaml holds ``intro`` and the entries (:class:`Entry`) by heading and name. An entry is run again only if
its command has changed or its pictures are missing. Each entry runs in its own folder in outputs/gallery, with links to
the checkout, so that a run in logs/ does not take the place of the shipped model. All entries together take about 20
minutes on one core.

The description of what a person saw is valid for the pictures with the hash ``looked_at``. If the hash differs, the
page says that nobody has looked at the pictures yet, and this command prints the new hash.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from ldm.command_line import command_line
from ldm.config import read_config
from ldm.files import atomic_path
from ldm.util import check_params

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINKS = ("configs", "data", "docs", "models", "scripts")
SAMPLING = ("txt2img.py", "class2img.py", "sample.py", "edit.py")
KEYWORD = "command"  # key of the command in the metadata of a PNG file
UNSEEN = "*Nobody has looked at these pictures yet.*"


@dataclass(frozen=True)
class Entry:
    """One way to sample.

    Attributes:
        name: name of its pictures and its folder.
        title: heading of its section.
        text: explains the options.
        command: lines for the shell that begin with ``python``, or Python code that prints the path of a picture.
        columns: what the rows and columns of the pictures show.
        seen: what a person saw in them.
        looked_at: :attr:`hash` of the pictures that ``seen`` describes.
    """

    name: str
    title: str
    text: str
    command: str
    columns: str = "Each row shows a sample and then its neighbours, the nearest first."
    seen: str = ""
    looked_at: str = ""

    @property
    def is_code(self) -> bool:
        """Whether the command is Python code."""
        return not self.command.startswith("python ")

    @property
    def steps(self) -> list[tuple[str, Path | None]]:
        """The commands in order, each with the file for its picture, or None if it makes none."""
        steps: list[tuple[str, Path | None]] = []
        for line in [self.command] if self.is_code else self.command.splitlines():
            makes_one = self.is_code or line.split()[1].endswith(SAMPLING)
            number = 1 + sum(file is not None for _, file in steps)
            steps.append((line, DOCS / "gallery" / f"{self.name}-{number}.png" if makes_one else None))
        return steps

    @property
    def pictures(self) -> list[Path]:
        """The files of its pictures."""
        return [file for _, file in self.steps if file is not None]

    @property
    def is_made(self) -> bool:
        """Whether the pictures exist and were made by this command."""
        return all(file.is_file() and read_picture(file)[0] == self.command for file in self.pictures)

    @property
    def hash(self) -> str:
        """16 digits that stand for the pixels of the pictures."""
        return hashlib.sha256(b"".join(read_picture(file)[1] for file in self.pictures)).hexdigest()[:16]

    def section(self) -> str:
        """Returns its part of the page, in Markdown."""
        parts = [f"### {self.title}", f"{self.text} {self.columns}"]
        for command, file in self.steps:
            parts.append(f"```{'python' if self.is_code else ''}\n{command}\n```")
            parts += [f"![{self.title}]({file.relative_to(DOCS).as_posix()})"] if file else []
        return "\n\n".join([*parts, self.seen if self.is_made and self.hash == self.looked_at else UNSEEN])


def read_picture(file: Path) -> tuple[str, bytes]:
    """Returns the command that made a picture, and its size and pixels."""
    with Image.open(file) as picture:
        return picture.info.get(KEYWORD, ""), f"{picture.mode} {picture.size}".encode() + picture.tobytes()


def read_gallery(file: Path = DOCS / "gallery.yaml") -> tuple[str, dict[str, list[Entry]]]:
    """Returns the introduction, and the entries by heading.

    Raises:
        ValueError: an entry has an unknown key, or lacks one.
    """
    (_, intro), *headings = read_config([file]).items()
    entries_of: dict[str, list[Entry]] = {heading: [] for heading, _ in headings}
    for heading, entries in headings:
        for name, fields in entries.items():
            fields = {"name": name, **{key: str(value).strip() for key, value in fields.items()}}
            check_params(f"{file.name}: {name}", Entry, fields)
            entries_of[heading].append(Entry(**fields))
    return intro.strip(), entries_of


def make(entry: Entry, folder: Path) -> None:
    """Runs the commands of an entry in a folder, and keeps the pictures that they made.

    Raises:
        ValueError: a command failed; the message is the last line of its output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in LINKS:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(ROOT / name)
    environment, results, about = {**os.environ, "PYTHONPATH": str(ROOT)}, [], PngInfo()
    about.add_itxt(KEYWORD, entry.command)
    for command, file in entry.steps:
        words = [sys.executable, *(["-c", command] if entry.is_code else shlex.split(command)[1:])]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        with (folder / "messages.txt").open("a") as messages:
            messages.write(f"{command}\n{done.stderr}{done.stdout}")
        if done.returncode:
            raise ValueError(f"{entry.name}: {(done.stderr.splitlines() or ['no message'])[-1]}")
        if file is not None:
            with Image.open(folder / done.stdout.splitlines()[-1]) as opened:
                results.append((opened.copy(), file))
    for picture, file in results:
        with atomic_path(file) as temporary:
            picture.save(temporary, format="png", optimize=True, pnginfo=about)


def page(intro: str, headings: dict[str, list[Entry]]) -> str:
    """Returns the page in Markdown."""
    sections = [[f"## {heading}", *(entry.section() for entry in entries)] for heading, entries in headings.items()]
    return "\n\n".join(["# Gallery", intro, *(part for parts in sections for part in parts)]) + "\n"


@command_line
def main() -> None:
    """Runs the entries that have changed and writes the page."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--again",
        nargs="*",
        metavar="NAME",
        help="run these entries even if nothing has changed; all entries if no name is given",
    )
    args, failed = p.parse_args(), []
    intro, headings = read_gallery()
    entries = [entry for section in headings.values() for entry in section]
    again = set() if args.again is None else set(args.again) or {entry.name for entry in entries}
    if unknown := again - {entry.name for entry in entries}:
        raise ValueError(f"no entry {', '.join(sorted(unknown))} in {DOCS / 'gallery.yaml'}")
    for entry in tqdm([e for e in entries if e.name in again or not e.is_made], desc="entries"):
        try:
            make(entry, ROOT / "outputs" / "gallery" / entry.name)
        except ValueError as error:
            failed.append(str(error))
    with atomic_path(DOCS / "gallery.md") as temporary:
        temporary.write_text(page(intro, headings), encoding="utf-8")
    for entry in entries:
        if entry.is_made and entry.hash != entry.looked_at:
            print(f"{entry.name}: look at its pictures, then write what you see, and looked_at: '{entry.hash}'")
    if failed:
        raise ValueError("; ".join(failed))


if __name__ == "__main__":
    main()
