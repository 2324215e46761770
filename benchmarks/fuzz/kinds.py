"""The kinds of bad inputs, in the order of the table."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fuzz import arrays, checkpoints, configs, databases, options, pictures, prompts, records, system, tables
from benchmarks.fuzz.attempt import Make

KINDS: dict[str, Make] = {
    "configs": configs.attempt,
    "overrides": options.override,
    "options": options.option,
    "checkpoints": checkpoints.attempt,
    "pictures": pictures.attempt,
    "parquet": tables.parquet,
    "tar": tables.tar,
    "arrays": arrays.attempt,
    "databases": databases.attempt,
    "records": records.attempt,
    "prompts": prompts.attempt,
}


def prepare(folder: Path) -> None:
    """Writes what attempts copy."""
    system.prepare(folder)
