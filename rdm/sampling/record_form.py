"""The form of a record from which an image can be made again: its entries and their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rdm.sampling.recorded import ABOUT_A_ROW

NONE = type(None)
_WORDS = {str: "a text", int: "a whole number", float: "a number", NONE: "null", dict: "an object", list: "a list"}
Form = Mapping[str, tuple[type, ...]]
# The entries that each record needs, and those that it may have.
MOST_SEEDS = 1 << 63  # of torch's generators
NEEDED: Form = {"asked": (dict,), "tokens": (str,), "query": (str,), "seed": (int,), "settings": (dict,)}
FURTHER: Form = {
    **{
        "prompt": (str,),
        "database": (str, NONE),
        "config": (str, NONE),
        "edit": (dict,),
        "query_picture": (dict, NONE),
    },
    **{"copy": (dict, NONE), "candidates": (list,), "draft": (dict,), "generator": (dict, NONE)},
}
PARTS: Mapping[str, Form] = {
    "generator": {"pipeline": (str,), "adapter": (str,), "image_encoder": (str, NONE)},
    "edit": {
        **{"picture": (str, NONE), "picture_sha256": (str, NONE), "mask": (str, NONE), "mask_sha256": (str, NONE)},
        "inverted_with_rows": (list, NONE),
    },
    "query_picture": {"file": (str, NONE), "sha256": (str,)},
    "copy": {"rejected_seeds": (list,)},
}
OF_A_ROW: Form = {"row": (int,), "similarity": (float, int, NONE), **dict.fromkeys(ABOUT_A_ROW, (str, NONE))}
OF_A_PICTURE: Form = {"file": (str, NONE), "sha256": (str,), "similarity": (float, int, NONE)}


def check_record(record: Mapping[str, Any]) -> None:
    """Checks that a record has what is needed to make its image again, for records that anybody may have changed.

    Raises:
        ValueError: an entry is missing or of another type; the message names it.
    """
    _check(record, NEEDED, "")
    _check(
        {name: record[name] for name in FURTHER if name in record}, {n: FURTHER[n] for n in FURTHER if n in record}, ""
    )
    if not 0 <= record["seed"] < MOST_SEEDS:
        raise ValueError(f"got a record with seed={record['seed']}, expected 0 to {MOST_SEEDS - 1}; {_REMEDY}")
    for part, form in PARTS.items():
        if record.get(part) is not None:
            _check(record[part], form, f"{part}.")
    if record.get("generator") is None:
        _check(record, {"checkpoint": (str,), "checkpoint_sha256": (str,)}, "")
    if record.get("config"):
        _check(record, {"config_sha256": (str,)}, "")
    if record.get("database") is not None:
        _check(record, {"database_fingerprint": (str,), "neighbours": (list,)}, "")
        if not record["neighbours"]:
            raise ValueError(f"got a record without neighbours, expected at least one; {_REMEDY}")
        for place, each in enumerate(record["neighbours"]):
            form = OF_A_ROW if isinstance(each, Mapping) and "row" in each else OF_A_PICTURE
            _check(each, form, f"neighbours.{place}.")
    _check_settings(record)


_REMEDY = "give an image as the sampling scripts wrote it"


def _check_settings(record: Mapping[str, Any]) -> None:
    """Checks the entries that belong to settings."""
    settings = record["settings"]
    if settings.get("weaker") is not None:
        _check(settings, {"weaker": (str,)}, "settings.")
        _check(record, {"weaker_sha256": (str,)}, "")
    if settings.get("copy_threshold") is not None and record.get("copy") is not None:
        rejected = record["copy"]["rejected_seeds"]
        if not all(isinstance(seed, int) for seed in rejected):
            raise ValueError(f"got copy.rejected_seeds={str(rejected)[:80]}, expected whole numbers; {_REMEDY}")
    if settings.get("best_of") not in (None, 1):
        _check(record, {"candidates": (list,)}, "")
    if settings.get("retrieve_below") is not None:
        _check(record, {"draft": (dict,)}, "")


def _check(part: Any, form: Form, where: str) -> None:
    """Checks the types of the entries of a part of a record."""
    if not isinstance(part, Mapping):
        raise ValueError(f"got {where.rstrip('.')}={str(part)[:80]!r} in a record, expected an object; {_REMEDY}")
    for name, types in form.items():
        expected = " or ".join(_WORDS[each] for each in types)
        if name not in part:
            raise ValueError(f"got a record without {where}{name}, expected {expected}; {_REMEDY}")
        value = part[name]
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"got {where}{name}={str(value)[:80]!r} in a record, expected {expected}; {_REMEDY}")
