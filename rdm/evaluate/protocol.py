"""What every report states of where it was made."""

from __future__ import annotations

import importlib.metadata
import platform
from contextlib import suppress

import torch

LIBRARIES = ("torch", "torchvision", "torchmetrics", "open_clip_torch", "numpy", "pillow")
OPTIONAL = ("torch-fidelity",)


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that figures depend on, as far as they are installed."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    for name in OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine(device: torch.device) -> dict[str, str | int]:
    """Returns what figures may depend on in their last bits."""
    return {"python": platform.python_version(), "device": str(device), "threads": torch.get_num_threads()}
