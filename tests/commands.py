"""Runs command lines, each in a fork of a process that has imported the large packages, and nothing of ours.

Importing them takes longer than most of the commands; forked, every command still begins with fresh modules of ours.
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType

PACKAGES = ("torch", "faiss", "open_clip", "pytorch_lightning", "torchmetrics", "pyarrow.parquet", "PIL.Image")


class Commands:
    """The process. ``run`` gives the exit code of a command and what it printed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Commands":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del kind, error, trace
        self.process.communicate()

    def run(self, words: list[str], folder: Path) -> tuple[int, str]:
        """Runs a script with its arguments in a folder."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps([words, str(folder)]) + "\n")
        stdin.flush()
        code, said = json.loads(stdout.readline())
        return code, said


def in_fork(words: list[str], folder: str) -> tuple[int, str]:
    """Runs a script in a fork of this process, in a folder."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if not child:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            os.chdir(folder)
            os._exit(as_main(words))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return code, output.read()


def as_main(words: list[str]) -> int:
    """Runs a script as ``python`` does; returns the exit code."""
    code = 1
    sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
    try:
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (whatever ends the command is its own)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    for package in PACKAGES:
        importlib.import_module(package)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(in_fork(*json.loads(line))) + "\n")
        sys.stdout.flush()
