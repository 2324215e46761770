"""What a machine has, trainings by ``main.py``, and the tests that need a GPU."""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.search import gpus_of_faiss, search
from benchmarks.gpu.timing import GPU, Bench
from benchmarks.training import CONFIGS, ROOT, running, write_pictures
from ldm.modules.attention import _xformers_attention

PACKAGES = ("torch", "xformers", "triton", "faiss-gpu", "faiss-gpu-cu12", "faiss-cpu", "diffusers", "open_clip_torch")


def machine(bench: Bench) -> dict[str, Any]:
    """Returns what there is, and ``missing``: what is not there, and what the figures lack without it."""
    versions = {name: _version(name) for name in PACKAGES}
    found: dict[str, Any] = {name: version for name, version in versions.items() if version is not None}
    missing = []
    if bench.device != GPU:
        missing.append("a GPU that this torch can use; all sizes are tiny, and the times say only that everything runs")
    else:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
        }
        if _xformers_attention() is None:
            missing.append("kernels of xformers for this torch; attention uses those of torch")
        if versions["triton"] is None:
            missing.append("triton; nothing is compiled")
    if not gpus_of_faiss():
        missing.append("a build of faiss for GPUs; searches run on the CPU")
    if versions["diffusers"] is None:
        missing.append("diffusers; its networks are not measured")
    return {**found, "missing": missing}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main_py(bench: Bench) -> dict[str, Any]:
    """Returns the seconds of a step of ``main.py`` with the model of the emoji of embeddings alone, with its loader."""
    turns = 2 if bench.tiny else 30
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = write_pictures(folder / "pictures.parquet")
        precision = "bf16-mixed" if bench.device == GPU else "32-true"
        arguments = [CONFIGS["diffusion"], str(folder), precision, str(pictures)]
        with running("ours", ROOT, arguments, torch.get_num_threads()) as step:
            steps = [step() for _ in range(turns + 2)][2:]
    parts = {part: statistics.median(each[part] for each in steps) for part in steps[0] if part != "cpu"}
    whole = statistics.median(sum(value for part, value in each.items() if part != "cpu") for each in steps)
    rounded = {f"{part}_ms": round(1000 * value, 2) for part, value in parts.items()}
    return {"batch": 64, "step_ms": round(1000 * whole, 2), "pictures_per_s": round(64 / whole, 1), **rounded}


def gpu_tests(bench: Bench) -> dict[str, Any]:
    """Returns the last line of the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    if bench.tiny:
        command.append("--collect-only")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)  # noqa: S603 (our tests)
    lines = done.stdout.strip().splitlines() or ["nothing was printed"]
    return {"rc": done.returncode, "says": lines[-1].strip("= ")}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {"main.py": main_py, "search": search, "tests": gpu_tests}
"""The parts by name."""
