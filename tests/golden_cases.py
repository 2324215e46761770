"""Reads reference cases: inputs, weights and outputs of the original code."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

GOLDEN = Path(__file__).resolve().parent / "golden"


@dataclass(frozen=True)
class GoldenCase:
    """One reference case; weights are float32 although stored smaller."""

    card: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors under ``prefix.``, without the prefix."""
        start = f"{prefix}."
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The full state dict of the module, in float32 where floating."""
        return {name: t.float() if t.is_floating_point() else t for name, t in self.part("sd").items()}

    def build(self) -> nn.Module:
        """Returns the module the case's config names, with the case's weights, in eval mode."""
        module, _, name = self.card["config"]["target"].rpartition(".")
        model = getattr(importlib.import_module(module), name)(**self.card["config"]["params"])
        model.load_state_dict(self.weights, strict=True)
        return model.eval()


def load_golden(name: str) -> GoldenCase:
    """Reads one case by name."""
    card = json.loads((GOLDEN / f"{name}.json").read_text())
    return GoldenCase(card, load_file(GOLDEN / f"{name}.safetensors"))


def golden_names(prefix: str) -> list[str]:
    """Returns the sorted names of all cases which start with ``prefix``."""
    return sorted(path.stem for path in GOLDEN.glob(f"{prefix}*.json"))


def error_of(got: Tensor, expected: Tensor) -> float:
    """Returns max |got - expected| / max |expected|, the measure the cases state their tolerance in."""
    assert got.shape == expected.shape, f"got shape {list(got.shape)}, expected {list(expected.shape)}"
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((got.detach().double() - expected.double()).abs().max() / scale)
