"""Bad words on command lines: settings of main.py, and every option of every script."""

from __future__ import annotations

import argparse
import random
import runpy
import sys
from typing import Any, NoReturn

from benchmarks.fuzz.attempt import ROOT, Attempt, bad_text, command
from benchmarks.fuzz.system import TREE, copied, model_config, plain_data

MODEL = ("--ckpt", f"{TREE}/model", "--steps", "1", "--n_samples", "1", "--outdir", "out")
DATABASE, PICTURES, PICTURE = f"{TREE}/database", f"{TREE}/pictures", f"{TREE}/pictures/class0/000.png"
# What each command line has beside the bad option. It is as little work as possible.
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("main.py", "--base", f"{TREE}/train.yaml", "--no-test"),
    ("scripts/txt2img.py", "--prompt", "a flag", *MODEL),
    ("scripts/class2img.py", "--class", "flag", *MODEL),
    ("scripts/sample.py", *MODEL),
    ("scripts/edit.py", "--image", PICTURE, "--strength", "0.5", *MODEL),
    ("scripts/web.py", "--ckpt", f"{TREE}/model"),
    ("scripts/demo.py", "--outdir", "out", "--minutes=x"),
    ("scripts/own.py", PICTURES, "--outdir", "out", "--forecast"),
    ("scripts/check_checkpoint.py", f"{TREE}/model"),
    ("scripts/export_checkpoint.py", f"{TREE}/model", "--output", "out"),
    ("scripts/search_neighbors.py", "--database", DATABASE, "--images", PICTURES, "--embedder", f"{TREE}/clip"),
    *(("scripts/build_database.py", name, DATABASE) for name in ("show", "verify", "compact", "remove")),
    ("scripts/build_database.py", "build", "--source", PICTURES, "--output", "out", "--embedder", f"{TREE}/clip"),
    ("scripts/build_database.py", "append", "--source", PICTURES, "--output", DATABASE, "--embedder", f"{TREE}/clip"),
    ("scripts/build_database.py", "add", DATABASE, PICTURE, "--licence", "x", "--embedder", f"{TREE}/clip"),
    ("scripts/build_database.py", "merge", DATABASE, DATABASE, "--output", "out"),
    ("scripts/build_database.py", "import", "none.npz", "--output", "out"),
    (
        "scripts/evaluate.py",
        "images",
        PICTURES,
        "--reference",
        PICTURES,
        "--features",
        f"{TREE}/clip",
        "--outdir",
        "out",
    ),
    ("scripts/evaluate.py", "samples", "--ckpt", f"{TREE}/model", "--n", "2", "--steps", "1", "--outdir", "out"),
    ("scripts/evaluate.py", "reconstruction", f"{TREE}/model", "--data", PICTURES, "--n", "2", "--outdir", "out"),
    ("scripts/evaluate.py", "memorisation", "--ckpt", f"{TREE}/model", "--n", "2", "--steps", "1", "--outdir", "out"),
    ("scripts/evaluate.py", "concepts", "--ckpt", f"{TREE}/model", "--n", "1", "--steps", "1", "--outdir", "out"),
    ("scripts/evaluate.py", "repeat", "none.json"),
)
# Much work that was asked for is no fault, so that counts are never huge.
_COUNTS = ("99999999999999999999", "٣")


class _CaughtError(BaseException):
    """Carries a parser out of a script."""


def parser_of(script: str) -> argparse.ArgumentParser:
    """Returns the parser of a script, which ends before it does anything."""
    original = argparse.ArgumentParser.parse_known_args

    def catch(parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        raise _CaughtError(parser)

    before, sys.argv = sys.argv, [script]
    argparse.ArgumentParser.parse_known_args = catch  # type: ignore[assignment, method-assign]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except _CaughtError as caught:
        found: argparse.ArgumentParser = caught.args[0]
        return found
    finally:
        sys.argv = before
        argparse.ArgumentParser.parse_known_args = original  # type: ignore[method-assign]
    raise ValueError(f"{script} parses no command line")


def actions_of(words: tuple[str, ...]) -> list[argparse.Action]:
    """Returns the options of the command that some words begin."""
    parser = parser_of(words[0])
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parser = action.choices[words[1]]
    return [each for each in parser._actions if not isinstance(each, argparse._HelpAction)]


def option(rng: random.Random, number: int) -> Attempt:
    """Returns an attempt with one bad option; the numbers go through all commands in turn."""
    words = COMMANDS[number % len(COMMANDS)]
    actions = actions_of(words)
    action = actions[(number // len(COMMANDS)) % len(actions)] if rng.random() < 0.7 else rng.choice(actions)
    copied()
    if not action.option_strings:
        return _positional(words, rng)
    name, values = action.option_strings[-1], _values(action, rng)
    if rng.random() < 0.1:
        name += rng.choice(("x", "-", "=", "é"))
    given = [f"{name}={values[0]}"] if len(values) == 1 and rng.random() < 0.7 else [name, *values]
    if action.nargs == 0 and rng.random() < 0.7:
        given = [name, *rng.choice(_pairs(actions))]
    return command(f"{words[0]} {words[1]} {' '.join(given)}", *words, *given)


def _positional(words: tuple[str, ...], rng: random.Random) -> Attempt:
    """Returns an attempt with a bad word in the place of one of the command's own."""
    has_commands = words[0] in ("scripts/build_database.py", "scripts/evaluate.py")
    places = range(2 if has_commands else 1, len(words))
    place = rng.choice(list(places))
    text = bad_text(rng)
    changed = [*words[:place], text, *words[place + 1 :]]
    return command(f"{' '.join(words[:2])}: {text!r} for {words[place]!r}", *changed)


def _pairs(actions: list[argparse.Action]) -> list[list[str]]:
    """Returns further options without values, which may exclude one another."""
    return [[]] + [[each.option_strings[-1]] for each in actions if each.option_strings and each.nargs == 0]


def _values(action: argparse.Action, rng: random.Random) -> list[str]:
    count = action.nargs if isinstance(action.nargs, int) else rng.choice((0, 1, 2)) if action.nargs else 1
    values = [bad_text(rng) for _ in range(count)]
    return [rng.choice(_COUNTS) if value.isdigit() and len(value) > 6 else value for value in values]


def override(rng: random.Random, number: int) -> Attempt:
    """Returns an attempt with bad settings of ``main.py`` or of another command that takes them."""
    copied()
    of_training: Any = {"model": {"params": {"embed_dim": 3, "n_embed": 16, "monitor": None, "ddconfig": {}}}}
    content: Any = {**of_training, "data": plain_data(), "lightning": {"trainer": {"max_steps": 1, "precision": "32"}}}
    if number % 3 == 2:
        content = {name: model_config()["data"]["params"][name] for name in ("embedder", "database")}
    keys: list[str] = []

    def walk(part: Any, path: str) -> None:
        for key, value in part.items():
            keys.append(f"{path}{key}")
            if isinstance(value, dict):
                walk(value, f"{path}{key}.")

    walk(content, "")
    words = []
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice(keys)
        way = rng.random()
        if way < 0.2:
            key = rng.choice(
                (key + "x", key + ".deeper", key + ".", "." + key, key + "[0]", key.replace(".", ".."), "")
            )
        words.append(f"{key}={bad_text(rng)}")
    if number % 3 == 2:
        config = f"{TREE}/database.yaml"
        return command(f"database {words}", "scripts/build_database.py", "build", "--config", config, *words)
    return command(f"main.py {words}", "main.py", "--base", f"{TREE}/train.yaml", "--no-test", *words)
