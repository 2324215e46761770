"""Records in images: forged, of other formats, too large, of wrong types."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from benchmarks.fuzz.attempt import MARK, Attempt, command, mutated, replaced
from benchmarks.fuzz.system import TREE, copied
from rdm.sampling.record import KEYWORD, read_record

TEXTS: dict[str, str] = {
    "no JSON": "hello",
    "cut": '{"format": 2, ',
    "a list": "[1]",
    "a number": "2",
    "null": "null",
    "a text": '"text"',
    "no format": '{"query": "x"}',
    "a later format": '{"format": 3}',
    "a format of true": '{"format": true}',
    "a format of 2.0": '{"format": 2.0}',
    "a format of text": '{"format": "2"}',
    "a format of a list": '{"format": [2]}',
    "a format of a mapping": '{"format": {"a": 1}}',
    "format 1 alone": '{"format": 1}',
    "format 1 of other types": '{"format": 1, "settings": [], "asked": 1, "query": {}}',
    "format 1 without settings": '{"format": 1, "asked": {"way": "text"}, "query": "a"}',
    "format 1 with a bad copy": '{"format": 1, "settings": {}, "copy": 5, "asked": {"way": "x"}}',
    "format 2 alone": '{"format": 2}',
    "a huge number": '{"format": 2, "seed": ' + "9" * 5000 + "}",
    "NaN": '{"format": NaN}',
    "deep": "[" * 100_000,
    "20 MB": '{"format": 2, "x": "' + "a" * 20_000_000 + '"}',
    "duplicate keys": '{"format": 2, "format": 3}',
    "surrogates": '{"format": "\\ud800"}',
    "control characters": '{"format": "\\u001b[31m"}',
}


def attempt(rng: random.Random, number: int) -> Attempt:
    """Returns an attempt to read a bad record, or to make its image again."""
    if number < 2 * len(TEXTS):
        what, text = list(TEXTS.items())[number // 2]
        _write(text)
        if number % 2:
            return _again(f"again: {what}", refused=True)
        return Attempt(what, lambda: read_record("bad.png"), ("bad.png",))
    copied()
    if rng.random() < 0.2:
        data, what = mutated(Path(TREE, "made", "txt2img-000.png").read_bytes(), rng)
        Path("bad.png").write_bytes(data)
        return _again(what)
    record = json.loads(Image.open(Path(TREE, "made", "txt2img-000.png")).text[KEYWORD])  # type: ignore[attr-defined]
    if rng.random() < 0.25:
        what, changed = _forged(record, rng)
    else:
        changed, what, _ = replaced(record, rng)
    _write(json.dumps(changed))
    return _again(what)


def _forged(record: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Returns a record that names what no record should."""
    forged: dict[str, Any] = rng.choice(
        (
            {"checkpoint": "/etc/passwd"},
            {"checkpoint": "../../../../../../etc"},
            {"checkpoint": "hf:a/b"},
            {"config": "/etc/passwd"},
            {"config": "evil.yaml"},
            {"database": "/etc"},
            {"generator": {"pipeline": ".", "adapter": "x", "image_encoder": "y"}},
            {"neighbours": [{"row": 10**6, "similarity": 1}]},
            {"neighbours": [{"row": -1, "similarity": 1}]},
            {"neighbours": [{"file": "/etc/passwd", "sha256": "0" * 64, "similarity": 1}]},
            {"neighbours": []},
            {"neighbours": record["neighbours"] * 5000},
            {"edit": {"picture": "/etc/passwd"}},
            {"query_picture": {"file": "/etc/passwd", "sha256": "x"}},
            {"settings": {**record["settings"], "weaker": "/etc/passwd"}},
            {"settings": {**record["settings"], "compile": True, "tile": "x"}},
            {"settings": {**record["settings"], "height": 10**9}},
            {"settings": {**record["settings"], "steps": 10**12}},
            {"seed": 2**200},
            {"seed": "x"},
            {"tokens": "all"},
        )
    )
    Path("evil.yaml").write_text(f"model: {{target: os.system, params: {{command: touch {MARK}}}}}\n", encoding="utf-8")
    return f"forged {str(forged)[:150]}", {**record, **forged}


def _write(text: str) -> None:
    """Writes a picture with a record."""
    info = PngImagePlugin.PngInfo()
    if text.isascii():
        info.add_text(KEYWORD, text, zip=len(text) > 10_000)
    else:
        info.add_itxt(KEYWORD, text)
    Image.new("RGB", (16, 16)).save("bad.png", pnginfo=info)


def _again(what: str, refused: bool = False) -> Attempt:
    return command(what, "scripts/sample.py", "--from-image", "bad.png", "--outdir", "out", refused=refused)
