"""Bad configs: of training, of sampling, of a database; and files that are no config at all."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from benchmarks.fuzz.attempt import MARK, Attempt, command, mutated, replaced
from benchmarks.fuzz.system import TREE, copied, model_config, plain_data
from ldm.config import read_config

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
# (what, text, whether it must be refused)
FILES: tuple[tuple[str, str | bytes, bool], ...] = (
    ("empty file", "", False),
    ("a comment alone", "# nothing\n", False),
    ("a text", "just words\n", True),
    ("a number", "42\n", True),
    ("a list", "- a\n- b\n", True),
    ("null", "null\n", False),
    ("two documents", "a: 1\n---\nb: 2\n", True),
    ("tabs", "model:\n\ttarget: x\n", True),
    ("duplicate keys", "model: {k: 1}\nmodel: {k: 2}\n", True),
    ("no UTF-8", b"model: \xff\xfe\xfa\n", True),
    ("UTF-16", "model: {k: 1}\n".encode("utf-16"), False),
    ("NUL", b"model: \0\n", True),
    ("control characters", "model: {k: \x07}\n", True),
    ("an open bracket", "model: {k: [1, 2\n", True),
    ("cyclic interpolation", "a: ${b}\nb: ${a}\n", True),
    ("interpolation of itself", "a: ${a}\n", True),
    ("a missing interpolation", "a: ${none.such}\n", True),
    ("an unknown resolver", "a: ${system:ls}\n", True),
    ("the environment", "a: ${oc.env:NO_SUCH_VARIABLE}\n", True),
    ("an alias without anchor", "a: *none\n", True),
    ("an anchor of itself", "a: &a [*a]\n", True),
    ("a mapping of itself", "a: &a {b: *a}\n", True),
    ("a bomb of aliases", LAUGHS, True),
    ("a python object", f"a: !!python/object/apply:os.system ['touch {MARK}']\n", True),
    ("a python name", "a: !!python/name:os.system\n", True),
    ("a python module", "a: !!python/object/new:os.system ['touch executed']\n", True),
    ("an unknown tag", "a: !thing 1\n", True),
    ("10,000 brackets", "a: " + "[" * 10_000, True),
    ("1,000 nested mappings", "".join(" " * n + "a:\n" for n in range(1000)), True),
    ("a number as key", "1: a\n2: b\n", False),
    ("null as key", "null: a\n", False),
    ("a list as key", "? [a, b]\n: 1\n", True),
    ("a huge integer", "a: " + "9" * 5000 + "\n", False),
    ("a huge float", "a: 1e99999\n", False),
    ("not a number", "a: .nan\nb: .inf\n", False),
    ("a missing value", "a: ???\n", False),
    ("a date", "a: 2001-01-01\n", False),
    ("binary", "a: !!binary aGVsbG8=\n", False),
    ("a set", "a: !!set {b, c}\n", True),
    ("a long line", "a: " + "x" * 2_000_000 + "\n", False),
    ("a merge key", "a: &a {b: 1}\nc: {<<: *a, d: 2}\n", False),
    ("a merge of a text", "a: {<<: text}\n", True),
    ("a path beside of numbers", "a: 'beside:'\n", False),
    ("a byte-order mark", "\ufeffa: 1\n", False),
)
TARGETS = (
    *("os.system", "builtins.eval", "subprocess.Popen", "ldm.files.os.system", "torch.nn", "torch.nn.", ".", "", "ldm"),
    *(
        "ldm..data",
        "ldm.data.ImageFolder.read",
        "ldm.config.read_config",
        "rdm.load",
        "torch.nn.Module.__init__",
        "x y",
    ),
    *("torchvision.datasets.utils.download_url", "open_clip.load_openai_model", "pytorch_lightning.Trainer", "ldm.é.x"),
    *("torch.nn.modules.os.system", "kornia.utils.os", "main.pdb.Pdb", "ldm.data.images.Path", "ldm.util.importlib.x"),
    *("torch.optim.Adam", "torch.nn.Linear", "ldm.data.ImageFoldr", "taming.data.none.X", "ldm.a/b.c", "ldm.\0.x"),
)
HOLDERS = ("model", "data.params.train", "model.params.lossconfig", "lightning.callbacks.mine", "lightning.logger.mine")


def attempt(rng: random.Random, number: int) -> Attempt:
    """Returns an attempt to read or to use a bad config."""
    if number < len(FILES):
        what, text, refused = FILES[number]
        Path("bad.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return Attempt(what, lambda: read_config(["bad.yaml"]), ("bad.yaml",), refused)
    number -= len(FILES)
    if number < len(TARGETS):
        return _target(TARGETS[number], rng.choice(HOLDERS))
    way = rng.randrange(4)
    if way == 0:
        copied("train.yaml", "pictures")
        data, what = mutated(Path(TREE, "train.yaml").read_bytes(), rng)
        Path("bad.yaml").write_bytes(data)
        return command(f"main.py, bytes of a config: {what}", "main.py", "--base", "bad.yaml", "--no-test")
    if way == 1:
        copied("model", "clip", "database")
        config, what, key = replaced(model_config(), rng)
        _write(config, Path(TREE, "model", "config.yaml"))
        words = ("--prompt", "a flag", "--ckpt", f"{TREE}/model", "--steps", "1", "--n_samples", "1")
        return command(f"config of a model: {what}", "scripts/txt2img.py", *words, named=_names(key))
    copied("pictures")
    if way == 2:
        copied("clip")
        parts = model_config()["data"]["params"]
        config, what, key = replaced({"embedder": parts["embedder"], "database": parts["database"]}, rng)
        _write(config, Path("bad.yaml"))
        building = ("scripts/build_database.py", "build", "--config", "bad.yaml")
        return command(f"config of a database: {what}", *building, named=_names(key))
    copied("train.yaml")
    config, what, key = replaced(read_config([f"{TREE}/train.yaml"]), rng)
    _write(config, Path("bad.yaml"))
    return command(f"config of training: {what}", "main.py", "--base", "bad.yaml", "--no-test", named=_names(key))


def _names(key: str) -> tuple[str, ...]:
    """Returns what the error of a changed key may name: the key, or the file."""
    return () if key.isdigit() else (key, "bad.yaml", "config", "ldm.", "rdm.")


def _target(target: str, place: str) -> Attempt:
    copied("pictures", "train.yaml")
    config: Any = read_config([f"{TREE}/train.yaml"])
    part = config
    *folders, last = place.split(".")
    for name in folders:
        part[name] = part = part.get(name) or {}
    params = {} if target.startswith(("ldm.", "torch")) else {"command": f"touch {MARK}"}
    part[last] = {"target": target, "params": params}
    config["data"] = config.get("data") or plain_data()
    _write(config, Path("bad.yaml"))
    what = f"target {target!r} at {place}"
    return command(what, "main.py", "--base", "bad.yaml", "--no-test", named=(target, "target"))


def _write(config: Any, file: Path) -> None:
    """Writes a config as JSON, which YAML contains, but for numbers that are not finite."""
    text = json.dumps(config, indent=1).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")
    file.write_text(text, encoding="utf-8", errors="replace")
