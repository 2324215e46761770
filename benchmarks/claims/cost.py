"""Measures the cost of retrieval in comparison with sampling: median seconds and bytes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.claims.measure import SEED, Bench, torch_device
from benchmarks.claims.runs import is_trained
from ldm.files import file_hash
from ldm.models.diffusion.condition import Hybrid
from rdm.loading import SHIPPED, Loaded, load
from rdm.retrieval.queries import text_queries
from rdm.sampling.conditions import condition_of
from rdm.sampling.generate import generate
from rdm.sampling.settings import Settings

LOG = logging.getLogger(__name__)
REPEATS = 5
BATCHES = (1, 64)
TOKENS = (1, 4, 16)  # numbers of context tokens
PROMPT = "a red rose"


def seconds(do: Callable[[], Any]) -> float:
    """Returns the median seconds of a call, without the first one."""
    times = []
    for _ in range(REPEATS + 1):
        wait()
        start = time.perf_counter()
        do()
        wait()
        times.append(time.perf_counter() - start)
    return round(median(times[1:]), 6)


def wait() -> None:
    """Waits until the GPU, if there is one, has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def calls(loaded: Loaded, batch: int) -> dict[str, Callable[[], Any]]:
    """Returns the calls to time for a batch: the steps of retrieval, sampling, and the denoiser by context length."""
    model, retriever = loaded.diffusion, loaded.retriever
    k = model.conditioner.k
    settings, shape = Settings(batch_size=batch).for_model(model), loaded.latent_shape_of()
    prompts, seeds = [PROMPT] * batch, range(SEED, SEED + batch)
    queries = text_queries(retriever.embedder, prompts).cpu()
    rows = retriever.index.search(queries.numpy(), k).rows
    context = condition_of(loaded, retriever(queries, k))
    latents = torch.randn(batch, *shape, device=model.device)
    times = torch.full((batch,), 500, device=model.device)

    def step(tokens: int) -> Callable[[], Any]:
        shown = context.tokens if isinstance(context, Hybrid) else context
        wide = shown[:, :1].expand(-1, tokens, -1).contiguous().to(model.device)
        condition = context._replace(tokens=wide) if isinstance(context, Hybrid) else wide
        return lambda: model.model(latents, times, condition)

    return {
        "embed": lambda: text_queries(retriever.embedder, prompts),
        "search": lambda: retriever.index.search(queries.numpy(), k),
        "read": lambda: retriever.database.embeddings(rows),
        "sample": lambda: generate(model, context, shape, seeds, settings),
        **{f"step_{tokens}_tokens": step(tokens) for tokens in TOKENS},
    }


@torch.inference_mode()
def costs(loaded: Loaded) -> dict[str, float]:
    """Returns the seconds of whole batches, and the bytes of index and embeddings."""
    database = loaded.retriever.database
    figures: dict[str, float] = {}
    for batch in BATCHES:
        figures |= {f"{name}_{batch}": seconds(do) for name, do in calls(loaded, batch).items()}
        retrieval = sum(figures[f"{name}_{batch}"] for name in ("embed", "search", "read"))
        figures[f"retrieval_share_{batch}"] = round(retrieval / (retrieval + figures[f"sample_{batch}"]), 5)
    for kind in ("index", "embeddings"):
        figures[f"{kind}_bytes"] = sum(file.stat().st_size for file in (database.path / kind).glob("*"))
    return {**figures, "rows": len(database), "k": loaded.diffusion.conditioner.k}


def measure_cost(bench: Bench) -> tuple[dict[str, str], list[str]]:
    """Measures the trained and the shipped models; returns the errors by model, and the runs that are not trained."""
    models = {"neighbours": bench.folder / "models" / "neighbours-0", "plain": bench.folder / "models" / "plain-0"}
    models["shipped"] = SHIPPED
    missing = [folder.name for folder in list(models.values())[:2] if not is_trained(folder.name, bench.folder)]
    broken: dict[str, str] = {}
    for name, folder in models.items():
        if folder.name not in missing:
            try:
                _one(bench, name, folder)
            except Exception as error:
                LOG.exception("cost, %s", name)
                broken[f"cost, {name}"] = f"{type(error).__name__}: {error}"
    return broken, missing


def _one(bench: Bench, name: str, folder: Path) -> None:
    settings = {"ask": "cost", "repeats": REPEATS, "threads": torch.get_num_threads(), "device": torch_device()}
    label: dict[str, Any] = {"question": "cost", "case": name, "run": "" if folder == SHIPPED else folder.name}
    label |= {"sha256": file_hash(folder / "model.safetensors"), "settings": settings}
    if any(label.items() <= line.items() for line in bench.lines):
        return
    start = time.perf_counter()
    figures = costs(load(str(folder)))
    bench.add({**label, "figures": figures, "seconds": round(time.perf_counter() - start, 2), "device": torch_device()})
