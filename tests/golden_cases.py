"""Reads reference cases: inputs, weights and outputs of the original code."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

GOLDEN = Path(__file__).resolve().parent / "golden"
# What a run compared, for its last line: every case's worst error over tolerance and where that was; layouts built.
WORST: dict[str, tuple[float, str]] = {}
LAYOUTS_BUILT: set[str] = set()


@dataclass(frozen=True)
class GoldenCase:
    """One reference case; weights are float32 although stored smaller."""

    name: str
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

    def check(self, name: str, got: Tensor, kind: str = "forward", rounding: Tensor | None = None) -> None:
        """Asserts that ``got`` is the original's ``out.name``, to the tolerance that the case states for the kind.

        ``rounding``, of the output's shape, is how far correct processors may differ; the tolerance is for the rest.
        """
        expected, stated = self.tensors[f"out.{name}"], self.card["tolerance"]
        if rounding is not None:
            got = torch.where((got - expected).abs() <= rounding, expected, got)
        if "exact" in stated or not expected.is_floating_point():
            ratio = 0.0 if got.dtype == expected.dtype and torch.equal(got, expected) else math.inf
        elif "elementwise_rel" in stated:
            ratio = error_of(got, expected, elementwise=True) / stated["elementwise_rel"]
        else:
            ratio = error_of(got, expected) / stated.get("rtol_of_max", stated.get(f"rtol_of_max_{kind}"))
        ratio = math.inf if math.isnan(ratio) else ratio
        note(self.name, ratio, name)
        assert ratio <= 1, f"{self.name}: the error of {name} is {ratio:.3g} of its tolerance"


def load_golden(name: str) -> GoldenCase:
    """Reads one case by name."""
    card = json.loads((GOLDEN / f"{name}.json").read_text())
    return GoldenCase(name, card, load_file(GOLDEN / f"{name}.safetensors"))


def golden_names(prefix: str) -> list[str]:
    """Returns the sorted names of all cases which start with ``prefix``."""
    return sorted(path.stem for path in GOLDEN.glob(f"{prefix}*.json"))


def note(case: str, ratio: float, name: str) -> None:
    """Keeps the worst error of a case."""
    WORST[case] = max(WORST.get(case, (0.0, name)), (ratio, name))


def compared() -> dict[str, Any]:
    """Returns what was compared so far, for another process."""
    return {"worst": dict(WORST), "layouts": sorted(LAYOUTS_BUILT)}


def add(other: dict[str, Any]) -> None:
    """Adds what another process compared."""
    for case, (ratio, name) in other.get("worst", {}).items():
        note(case, ratio, name)
    LAYOUTS_BUILT.update(other.get("layouts", []))


def summary() -> str:
    """Returns one line on what was compared so far, empty if nothing was."""
    parts = []
    if WORST:
        worst, (ratio, name) = max(WORST.items(), key=lambda item: item[1])
        parts += [f"{len(WORST)} of {len(golden_names(''))} golden cases compared"]
        parts += [f"worst error {ratio:.2f} of its tolerance ({worst}: {name})"]
    if LAYOUTS_BUILT:
        parts += [f"{len(LAYOUTS_BUILT)} released layouts built"]
    return ", ".join(parts)


def error_of(got: Tensor, expected: Tensor, *, elementwise: bool = False) -> float:
    """Returns max |got - expected| / max |expected|, or max |got - expected| / |expected|: what tolerances mean."""
    assert got.shape == expected.shape, f"got shape {list(got.shape)}, expected {list(expected.shape)}"
    expected = expected.double()
    scale = (expected.abs() if elementwise else expected.abs().max()).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((got.detach().double() - expected).abs() / scale).max())
