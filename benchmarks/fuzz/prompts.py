"""Bad prompts: empty, long, of control characters, of other scripts, that no text can hold."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.fuzz.attempt import Attempt, bad_text, command
from benchmarks.fuzz.system import TREE, copied

TEXTS = (
    *(
        "",
        " ",
        "\t",
        "\n",
        "\u3000",
        "\u200b",
        "\ufeff",
        "a" * 100_000,
        "word " * 20_000,
        "\x1b[2J\x1b[31m",
        "\x07\x08",
    ),
    *(
        "\u202etxet",
        "\u202a\u202b\u202c",
        "שלום",
        "مرحبا",
        "नमस्ते",
        "你好",
        "\U0001f600",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    ),
    *(
        "é" * 77,
        "e" + "\u0301" * 5000,
        "\ud800",
        "\udfff\ud800",
        "\udcff",
        "a\ud83d",
        "<end_of_text>",
        "<start_of_text>",
    ),
    *(
        "--prompt",
        "-1",
        "-",
        "@file",
        "%s%s%s",
        "{}",
        "${x}",
        "'; drop",
        "<script>",
        "&lt;&amp;&#0;",
        "\\x00",
        "\\",
        '"',
    ),
    *(
        "\x85\u2028\u2029",
        "a\r\nb",
        "\x7f",
        "\xa0",
        "\U0010ffff",
        "\ufffe",
        "0",
        "nan",
        "None",
        "../../x",
        "/etc/passwd",
    ),
)
BYTES = (
    *(b"", b"\n\n\n", b"\0", b"a\0b\n", b"\xff\xfe", b"\xff\xfea\0\n\0", b"\xef\xbb\xbfa flag\n", b"a" * 200_000),
    *(b"\r\r\r", b"a\rb", b"\x1b[31m\n", b"\xed\xa0\x80\n", b"#\n", b"  \n a flag \n", b"\x0c\x0b\x1c\x1d\x85\n"),
)
MODEL = ("--ckpt", f"{TREE}/model", "--steps", "1", "--n_samples", "1", "--outdir", "out")


def attempt(rng: random.Random, number: int) -> Attempt:
    """Returns an attempt to sample a bad prompt."""
    copied()
    if number < len(TEXTS):
        text = TEXTS[number]
        return command(f"a prompt of {text[:40]!r}", "scripts/txt2img.py", f"--prompt={text}", *MODEL)
    number -= len(TEXTS)
    if number < len(BYTES):
        Path("bad.txt").write_bytes(BYTES[number])
        what = f"a file of {BYTES[number][:40]!r}"
        return command(what, "scripts/txt2img.py", "--from-file", "bad.txt", *MODEL)
    text = rng.choice((bad_text(rng), rng.choice(TEXTS)))
    option = rng.choice(("negative", "to", "concept", "caption", "class", "prompt", "only", "licence"))
    what = f"--{option} {text[:40]!r}"
    if option == "class":
        return command(what, "scripts/class2img.py", f"--class={text}", *MODEL)
    if option == "caption":
        return command(what, "scripts/sample.py", f"--caption={text}", *MODEL)
    if option == "licence":
        adding = ("scripts/build_database.py", "add", f"{TREE}/database", f"{TREE}/pictures/class0/000.png")
        return command(what, *adding, f"--licence={text}", "--embedder", f"{TREE}/clip")
    if option == "prompt":
        words = ("--image", f"{TREE}/pictures/class0/000.png", "--strength", "0.5", f"--prompt={text}")
        return command(f"edit.py {what}", "scripts/edit.py", *words, *MODEL)
    return command(what, "scripts/txt2img.py", "--prompt", "a flag", f"--{option}={text}", *MODEL)
