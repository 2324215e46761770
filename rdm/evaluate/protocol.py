"""What every report records about the software and the machine."""

from __future__ import annotations

import importlib.metadata
import platform
from contextlib import suppress

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
