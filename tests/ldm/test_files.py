"""Small files on disk, and what is left of a file that cannot be written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from full_disk import small_files
from pictures import contents

from ldm.checkpoint import write_checkpoint, write_weights
from ldm.command_line import in_words
from ldm.config import write_config
from ldm.files import atomic_path, read_json, read_text, write_array, write_json
from ldm.locks import building, delete_left_lock, locked
from ldm.pictures import save_png
from ldm.saving import Metrics
from ldm.table import ResumableTable


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


NOISE = torch.randn(3, 60, 60, generator=torch.Generator().manual_seed(0))


def write_table(file: Path) -> None:
    with atomic_path(file) as temporary:
        pq.write_table(pa.table({"a": NOISE.flatten().numpy()}), temporary)


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.ckpt": lambda file: write_checkpoint(file, {"w": NOISE}),
    "a.safetensors": lambda file: write_weights(file, {"w": NOISE}),
    "a.npy": lambda file: write_array(file, NOISE.numpy()),
    "a.json": lambda file: write_json(file, {"a": "b" * 9000}),
    "a.yaml": lambda file: write_config(file, {"a": "b" * 9000}),
    "a.png": lambda file: save_png((NOISE * 99).to(torch.uint8), file),
    "a.parquet": write_table,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_is_named_with_the_new_one(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run" / name
    file.parent.mkdir()
    file.write_text("old")
    with pytest.raises(OSError) as caught, small_files(4000):
        WRITERS[name](file)
    assert contents(tmp_path) == {f"run/{name}": b"old"}
    message = in_words(caught.value)
    assert message.startswith(f"{file}: file too large; ") and "\n" not in message
    WRITERS[name](file)
    assert file.stat().st_size > 4000 and len(contents(tmp_path)) == 1


def test_other_errors_of_writing_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'.*source.txt'"), atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes((tmp_path / "source.txt").read_bytes())
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path}/folder'"), atomic_path(tmp_path / "folder") as temporary:
        (tmp_path / "folder").mkdir()
        temporary.touch()


def test_a_table_on_a_full_disk_goes_on_from_its_whole_lines(tmp_path: Path) -> None:
    """Arrays that are mapped into memory would end in a bus error instead, which kills the process."""
    lines = np.arange(4000, dtype=np.int32).reshape(100, 40)

    def fill(path: Path) -> None:
        table = ResumableTable(path, 100, {"of": "numbers"})
        while table.done < 100:
            table.append(lines=lines[table.done : table.done + 10])
        table.finish("card.json", {"sha256": table.hashes()})

    fill(tmp_path / "whole")
    with pytest.raises(OSError) as caught, small_files(9000):
        fill(tmp_path / "parts")
    assert caught.value.filename == str(tmp_path / "parts" / "lines.partial.npy")
    assert ResumableTable(tmp_path / "parts", 100, {"of": "numbers"}).done == 50  # 8,000 bytes and a header
    fill(tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert np.array_equal(np.load(tmp_path / "parts" / "lines.npy"), lines)


def test_a_card_that_cannot_be_written_leaves_the_filled_table(tmp_path: Path) -> None:
    table = ResumableTable(tmp_path, 2, {"of": "numbers"})
    table.append(lines=np.zeros((2, 3), np.int32))
    with pytest.raises(OSError, match=r"card\.json"), small_files(300):
        table.finish("card.json", {"a": "b" * 900})
    assert ResumableTable(tmp_path, 2, {"of": "numbers"}).done == 2


def test_metrics_on_a_full_disk_stay_whole(tmp_path: Path) -> None:
    log = Metrics(tmp_path, name="", version="")
    for step in range(3):
        log.log_metrics({"loss": step + 0.5}, step)
    log.save()
    file = tmp_path / "metrics.csv"
    before = file.read_text()
    assert before.splitlines() == ["loss,step", "0.5,0", "1.5,1", "2.5,2"]
    log.log_metrics({"loss": 3.5}, 3)
    with pytest.raises(OSError, match=r"metrics\.csv"), small_files(len(before) + 1):
        log.save()
    assert file.read_text() == before
    log.log_metrics({"loss": 4.5, "accuracy": 1.0}, 4)  # the file gets another column
    with pytest.raises(OSError, match=r"metrics\.csv"), small_files(len(before) + 1):
        log.save()
    log.finalize("failed")  # the lines that it still has
    assert file.read_text().splitlines() == [
        "accuracy,loss,step", ",0.5,0", ",1.5,1", ",2.5,2", ",3.5,3", "1.0,4.5,4",
    ]  # fmt: skip


OWNER = """
import sys, time
from pathlib import Path
from ldm.locks import building
with building(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    (Path(sys.argv[1]) / "built").write_text("by " + sys.argv[3])
"""


def owner(folder: Path, seconds: float, name: str) -> subprocess.Popen:
    """A process that builds in a folder for some seconds."""
    command = [sys.executable, "-c", OWNER, str(folder), str(seconds), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603


def test_one_process_builds_and_the_other_waits_and_says_for_whom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="ldm.locks")
    with owner(tmp_path / "table", 1.0, "other") as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with building(tmp_path / "table"):
            assert (tmp_path / "table" / "built").read_text() == "by other"
    assert f"process {process.pid} on " in caplog.text and f"is building {tmp_path / 'table'}; waiting" in caplog.text
    assert contents(tmp_path) == {"table/built": b"by other"}  # the lock is gone


def test_a_lock_ends_with_its_owner_but_not_with_a_child_of_it(tmp_path: Path) -> None:
    with owner(tmp_path / "table", 100.0, "killed") as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        start = time.monotonic()
        with building(tmp_path / "table"):
            child = os.fork()
            if not child:
                time.sleep(20)
                os._exit(0)
        assert contents(tmp_path) == {} and not (tmp_path / "table").exists()
        with building(tmp_path / "table"):  # the child does not hold what its parent has given back
            assert time.monotonic() - start < 10
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_is_stopped_while_it_waits_leaves_the_lock_to_its_owner(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock", "writing"), owner(tmp_path, 0.0, "waiting") as process:
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait() != 0 and process.stdout is not None and process.stdout.read() == ""
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert contents(tmp_path) == {}


WRITING = """
import os, signal, sys
from pathlib import Path
from ldm.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("new")
    print(temporary.name, flush=True)
    sys.stdin.readline()
"""


def test_what_a_killed_process_was_writing_is_deleted_by_the_next_one_and_no_other_file(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    dead, alive = (
        subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path / name)], **pipes) for name in ("dead", "alive")
    )
    left, kept = (process.stdout.readline().strip() for process in (dead, alive))
    dead.kill()
    dead.communicate()
    elsewhere = ".".join([*left.split(".")[:-3], "0123abcd", *left.split(".")[-2:]])  # of another machine
    (tmp_path / elsewhere).write_text("new")
    assert {left, kept} < {path.name for path in tmp_path.iterdir()}
    write_json(tmp_path / "a.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kept, elsewhere, "a.json"])
    alive.communicate("go on\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([elsewhere, "a.json", "alive"])


def test_a_lock_that_a_killed_process_left_is_deleted_and_one_that_is_held_is_not(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on elsewhere")
    delete_left_lock(tmp_path)
    assert not list(tmp_path.iterdir())
    with building(tmp_path):
        delete_left_lock(tmp_path)
        assert (tmp_path / ".lock").is_file()
    assert not tmp_path.exists()
