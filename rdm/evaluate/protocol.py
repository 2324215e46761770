"""What every report records about the software and the machine, and how figures are printed."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

LIBRARIES = ("torch", "torchvision", "torchmetrics", "open_clip_torch", "numpy", "pillow")
OPTIONAL = ("torch-fidelity",)


def versions() -> dict[str, str]:
    """Returns the versions of the installed libraries that figures depend on."""
    installed = {name: importlib.metadata.version(name) for name in LIBRARIES}
    for name in OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def machine(device: torch.device) -> dict[str, str | int]:
    """Returns the properties of the machine that may change the last bits of a figure."""
    return {"python": platform.python_version(), "device": str(device), "threads": torch.get_num_threads()}


def lines_of(figures: Mapping[str, Any]) -> list[str]:
    """Returns a line to print for each figure, with its name; a figure may have several named parts."""
    lines = []
    for name, value in figures.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        lines.append(f"{name:18s}{', '.join(f'{part} {number:.5g}'.strip() for part, number in parts)}")
    return lines
