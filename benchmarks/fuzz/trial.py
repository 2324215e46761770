"""Tries an attempt in a process of its own, which is watched, and says how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.fuzz.attempt import MARK, Attempt, Make
from ldm.command_line import readable

OUTCOMES = ("clear", "accepted", "unclear", "let through", "traceback", "executed", "hung", "memory", "outside")
SECONDS = 10  # of processor time, and twice as many by the clock
GIGABYTES = 2
MOST = 1500  # characters of a line that can still be read
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn")
CALLS_OUT = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")
SHARED = "GRADIO_TEMP_DIR"  # read when gradio is imported, which is before the attempts
CHANGES = {  # events of Python that change a file, with the places of the paths in their arguments
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime"), (0,)),
    **dict.fromkeys(("os.rename", "os.link"), (0, 1)),
    "os.symlink": (1,),
}
# What a message says that helps: what was expected, or what to do.
HELP = re.compile(
    r"expected|did you mean|choose from|required|not allowed|; |correct|give |install|must|at most|at least"
    r"|it takes|it has|needs the",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        kind: the kind of input.
        number: its number within the kind.
        what: what was bad.
        outcome: one of :data:`OUTCOMES`.
        message: the error, or what happened.
        seconds: from call to end, by the clock.
        megabytes: the most memory that it took beyond that of the process that it was forked from.
    """

    kind: str
    number: int
    what: str
    outcome: str
    message: str
    seconds: float
    megabytes: int


class Forbidden(BaseException):
    """Ends an attempt that is about to do what no input may do; not caught by handlers of errors."""


class Serving(BaseException):
    """Ends an attempt that was accepted and is about to train or to serve for long."""


def tried(kind: str, number: int, make: Make, seed: int, folder: Path) -> Outcome:
    """Returns how attempt ``number`` of a kind ends; its files lie below ``folder`` and are then deleted."""
    place = folder / f"{kind}-{number}"
    shutil.rmtree(place, ignore_errors=True)
    (place / "here").mkdir(parents=True)
    reader, writer = os.pipe()
    begin = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = os.fork()
    if not child:
        os.close(reader)
        _in_child(make, random.Random(f"{seed} {kind} {number}"), number, place, writer)  # noqa: S311
    os.close(writer)
    status, usage = _waited(child, begin + 2 * SECONDS)
    took = time.monotonic() - begin
    said: dict[str, Any] = {}
    with os.fdopen(reader, "rb") as stream:
        for line in stream.read().splitlines():
            said |= json.loads(line)
    megabytes = max(0, usage.ru_maxrss - before) // 1024
    outcome, message = _judged(said, status, megabytes)
    if (place / "here" / MARK).exists():
        outcome, message = "executed", f"the file {MARK} was made; {message}"
    if outcome == "broken":
        raise RuntimeError(f"attempt {number} of {kind} could not be made: {message}")
    shutil.rmtree(place, ignore_errors=True)
    return Outcome(kind, number, said.get("what", "?"), outcome, message, round(took, 2), megabytes)


def _waited(child: int, end: float) -> tuple[int, Any]:
    """Returns status and usage of a process, which is killed at a time of the monotonic clock."""
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage
        if time.monotonic() > end:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            return status, usage
        time.sleep(0.005)


def _judged(said: dict[str, Any], status: int, megabytes: int) -> tuple[str, str]:
    """Returns the outcome and its message, from what the child said and how its process ended."""
    outcome, message = said.get("outcome", ""), said.get("message", "")
    if outcome in ("broken", "executed", "outside"):
        return outcome, message
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGKILL, signal.SIGXCPU):
            return "hung", f"took more than {SECONDS} s"
        return "traceback", f"ended by {signal.Signals(number).name}"
    if megabytes > GIGABYTES * 1024 or "MemoryError" in message or "can't allocate memory" in message:
        return "memory", message or f"{megabytes} MB"
    return (outcome, message) if outcome else ("traceback", "the process ended without a word")


def _in_child(make: Make, rng: random.Random, number: int, place: Path, writer: int) -> None:
    """Makes and calls an attempt, writes what came of it to a pipe, and ends the process."""
    said: dict[str, Any] = {"what": "?"}
    try:
        os.setpgid(0, 0)
        os.chdir(place / "here")
        names = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "LDM_CACHE", "TORCH_HOME", "HF_HOME", "MPLCONFIGDIR")
        for name in names:
            (place / name).mkdir()
            os.environ[name] = str(place / name)
        os.environ["HF_HUB_OFFLINE"] = "1"
        tempfile.tempdir, sys.dont_write_bytecode = None, True
        try:
            attempt = make(rng, number)
        except BaseException:  # noqa: BLE001 (it is reported)
            said |= {"outcome": "broken", "message": traceback.format_exc()}
        else:
            said["what"] = attempt.what
            os.write(writer, json.dumps(said).encode() + b"\n")
            said |= _called(attempt, place)
    finally:
        said["message"] = said.get("message", "")[-20_000:]
        os.write(writer, json.dumps(said).encode())
        os._exit(0)


def _called(attempt: Attempt, place: Path) -> dict[str, str]:
    """Returns the outcome of a call and its message."""
    happened: list[tuple[str, str]] = []
    with _written(place / "words") as words:
        _limit()
        _watch(place, happened)
        result = _ended(attempt, words)
    if happened:
        outcome, event = happened[0]
        return {"outcome": outcome, "message": event}
    return result


def _ended(attempt: Attempt, words: Path) -> dict[str, str]:
    try:
        attempt.call()
        accepted, code = True, 0
    except Serving:
        accepted, code = True, 0
    except Forbidden:
        return {"outcome": "executed", "message": "forbidden"}
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        accepted = code == 0
    except (ValueError, OSError) as error:
        if attempt.command:
            return {"outcome": "traceback", "message": traceback.format_exc()}
        return _of_words(attempt, str(error))
    except BaseException:  # noqa: BLE001 (it is what is counted)
        return {"outcome": "traceback", "message": traceback.format_exc()}
    if accepted:
        return {"outcome": "let through" if attempt.refused else "accepted", "message": ""}
    sys.stdout.flush()
    sys.stderr.flush()
    said = words.read_text(encoding="utf-8", errors="replace")
    if "Traceback (most recent" in said:
        return {"outcome": "traceback", "message": said}
    if found := re.search(r"^(error: |[\w.]+(?: [\w-]+)?: error: )", said, re.MULTILINE):
        return _of_words(attempt, said[found.end() :], helps=found[1] != "error: ")  # argparse shows the usage
    return {"outcome": "unclear", "message": said}


def _of_words(attempt: Attempt, text: str, helps: bool = False) -> dict[str, str]:
    """Returns whether the words of an error are clear; ``helps`` says that the remedy stands above them."""
    line = text.strip("\n")
    named = not attempt.named or any(name and (name in line or readable(name) in line) for name in attempt.named)
    one = "\n" not in line and 0 < len(line) <= MOST and not re.search(r"[\x00-\x1f\x7f-\x9f]", line)
    clear = one and named and (helps or HELP.search(line))
    return {"outcome": "clear" if clear else "unclear", "message": line}


def _limit() -> None:
    """Limits the processor time and the memory of this process."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + SECONDS + 1, int(used) + SECONDS + 2))
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + 2 * GIGABYTES * 1024**3
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024**3, 1024**3))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def _written(file: Path) -> Iterator[Path]:
    """Sends stdout and stderr to a file."""
    with file.open("wb") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115, PTH123
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115, PTH123
        yield file


def _watch(place: Path, happened: list[tuple[str, str]]) -> None:
    """Notes and stops what this process starts, whom it calls, and what it writes outside of a folder."""
    root, own = str(place.resolve()), os.getpid()
    shared = os.environ.get(SHARED, root)

    def inside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return True
        full = os.path.realpath(os.fsdecode(path))
        return full.startswith((f"{root}/", "/dev/", shared)) or full == root

    def stop(outcome: str, event: str, arguments: object) -> None:
        happened.append((outcome, f"{event} {str(arguments)[:300]}"))
        raise Forbidden(event)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if os.getpid() != own or happened:
            return
        if event.startswith("socket.") and any(isinstance(each, str) and "/" in each for each in arguments):
            return  # between processes of this machine
        if event == "socket.bind":
            raise Serving
        if event == "subprocess.Popen" and arguments[0] == sys.executable and "main.py" in str(arguments[1]):
            raise Serving
        if event in STARTS or event in CALLS_OUT:
            stop("executed", event, arguments)
        elif event == "open":
            path, mode, flags = (*arguments, 0, 0)[:3]
            writes = any(letter in (mode or "") for letter in "wax+") or (flags or 0) & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
            )
            if writes and not inside(path):
                stop("outside", event, arguments)
        elif event in CHANGES and not all(inside(arguments[n]) for n in CHANGES[event]):
            stop("outside", event, arguments)

    sys.addaudithook(hook)


def line_of(outcome: Outcome) -> str:
    """Returns the line that stands for an outcome in the file of finished attempts."""
    return json.dumps(asdict(outcome)) + "\n"
