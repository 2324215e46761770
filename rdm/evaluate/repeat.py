"""Repeats a report of images from its own protocol and compares the figures."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.files import read_json, write_json
from rdm.evaluate.images import measure, prepare
from rdm.retrieval.config import require

LOG = logging.getLogger(__name__)
TOLERANCE = 1e-3  # relative difference up to which two figures count as equal


def repeat(file: str) -> dict[str, Any]:
    """Repeats a report: computes everything again from its protocol, and compares the figures.

    The new report is written to the folder ``repeat`` next to the old one.

    Args:
        file: a ``results.json`` of :func:`evaluate_images`.

    Returns:
        the new report, with ``repeated``: each figure ``before`` and ``after``, and whether they are ``equal``.

    Raises:
        ValueError: the file is no such report, or pictures, model or features have changed since.
        FileNotFoundError: pictures, model or features no longer exist.
    """
    before = read_json(Path(file), "give a results.json of scripts/evaluate.py")
    protocol = before.get("protocol")
    if not isinstance(protocol, dict) or protocol.get("command") not in ("images", "samples"):
        raise ValueError(f"{file} is no report of 'images' or 'samples', expected one of scripts/evaluate.py")
    outdir = Path(file).parent / "repeat"
    cache = outdir / "features"
    require(before, ("figures",), file)
    require(protocol, ("arguments", "pictures", "reference", "features", "versions"), f"the protocol of {file}")
    plan = prepare({**protocol["arguments"], "outdir": str(outdir), "cache": str(cache)})
    now = json.loads(json.dumps(plan.protocol()))
    check_same(protocol, now, file)
    report = measure(plan)
    report["repeated"] = compare_figures(before["figures"], report["figures"])
    write_json(outdir / "results.json", report)
    shutil.rmtree(cache)  # so that the next repetition computes all features again
    return report


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], file: str) -> None:
    """Checks that two protocols have the same pictures and features; other library versions are logged.

    Raises:
        ValueError: they differ; the message names the first difference.
    """
    for old, new in zip(before["features"], now["features"], strict=True):
        if old["fingerprint"] != new["fingerprint"]:
            raise ValueError(
                f"features {new['name']} have fingerprint {new['fingerprint']}, {file} was made with "
                f"{old['fingerprint']}; figures of different features cannot be compared"
            )
    for what in ("pictures", "reference"):
        if before[what] is None:
            continue
        for key, value in before[what].items():
            got = now[what].get(key)
            if key == "sha256" and "settings" in now[what]:  # the hash of the other keys, which are compared one by one
                continue
            if key == "settings":  # reports of earlier versions hold fewer settings
                got, value = (
                    {n: v for n, v in settings.items() if n in got and n in value} for settings in (got, value)
                )
            if got != value:
                raise ValueError(f"{what}: got {key} {got}, {file} was made with {value}; restore them")
    for name, version in before["versions"].items():
        if now["versions"].get(name) != version:
            LOG.warning("%s is %s, was %s", name, now["versions"].get(name), version)


def compare_figures(before: Mapping[str, Any], after: Mapping[str, Any], name: str = "") -> dict[str, dict[str, Any]]:
    """Compares two nested dictionaries of figures.

    Args:
        before: the figures of the old report.
        after: the figures of the new report.
        name: prefix of the paths.

    Returns:
        each figure by its path: ``before``, ``after``, and whether they are ``equal``.
    """
    pairs: dict[str, dict[str, Any]] = {}
    for key, value in before.items():
        path = f"{name} {key}".strip()
        if isinstance(value, Mapping):
            pairs |= compare_figures(value, after[key], path)
        else:
            equal = abs(value - after[key]) <= TOLERANCE * max(abs(value), abs(after[key])) + 1e-9
            pairs[path] = {"before": value, "after": after[key], "equal": equal}
    return pairs


def summary(repeated: Mapping[str, Any]) -> list[str]:
    """Returns a line to print for each figure of a repeated report, before and after; a last one if all are equal."""
    lines = [
        f"{name:60s}{figure['before']:.6g}  {figure['after']:.6g}  {'equal' if figure['equal'] else 'DIFFERS'}"
        for name, figure in repeated.items()
    ]
    every = all(figure["equal"] for figure in repeated.values())
    return [*lines, f"all {len(repeated)} figures are equal"] if every else lines


def check_equal(repeated: Mapping[str, Any]) -> None:
    """Checks that no figure of a repeated report differs.

    Raises:
        ValueError: some figures differ; the error names them.
    """
    if differing := [name for name, figure in repeated.items() if not figure["equal"]]:
        raise ValueError(f"{len(differing)} of {len(repeated)} figures differ: {', '.join(differing)}")
