"""What retrieval costs beside sampling: medians of seconds, and bytes."""

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
from benchmarks.claims.spaces import SHIPPED
from ldm.files import file_hash
from ldm.models.diffusion.samplers import USUAL, USUAL_STEPS
from rdm.loading import Loaded, load
from rdm.retrieval.queries import text_queries
from rdm.sample import generate

LOG = logging.getLogger(__name__)
REPEATS = 5
BATCHES = (1, 64)
TOKENS = (1, 4, 16)  # of context
PROMPT = "a red rose"


def seconds(do: Callable[[], Any]) -> float:
    """Returns the median of a call's seconds, the first one left out."""
    found = []
    for _ in range(REPEATS + 1):
        wait()
        start = time.perf_counter()
        do()
        wait()
        found.append(time.perf_counter() - start)
    return round(median(found[1:]), 6)


def wait() -> None:
    """Waits until the GPU is done, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.inference_mode()
def costs(loaded: Loaded) -> dict[str, float]:
    """Returns seconds of a whole batch, and bytes."""
    model, retriever = loaded.diffusion, loaded.retriever
    database, k = retriever.database, model.conditioner.k
    options: dict[str, Any] = {"sampler": USUAL, "steps": USUAL_STEPS[USUAL], "scale": 2.0}
    found: dict[str, float] = {}
    for batch in BATCHES:
        prompts = [PROMPT] * batch
        queries = text_queries(retriever.embedder, prompts).cpu()
        rows = retriever.index.search(queries.numpy(), k).rows
        context = model.conditioner(retriever(queries, k).embeddings, include_query=False)
        done = {
            "embed": lambda prompts=prompts: text_queries(retriever.embedder, prompts),
            "search": lambda queries=queries: retriever.index.search(queries.numpy(), k),
            "read": lambda rows=rows: database.embeddings(rows),
            "sample": lambda context=context, batch=batch: generate(
                model, context, loaded.latent_shape, range(SEED, SEED + batch), batch_size=batch, **options
            ),
        }
        found |= {f"{name}_{batch}": seconds(do) for name, do in done.items()}
        retrieval = sum(found[f"{name}_{batch}"] for name in ("embed", "search", "read"))
        found[f"retrieval_share_{batch}"] = round(retrieval / (retrieval + found[f"sample_{batch}"]), 5)
        latents = torch.randn(batch, *loaded.latent_shape, device=model.device)
        times = torch.full((batch,), 500, device=model.device)
        for tokens in TOKENS:
            wide = context[:, :1].expand(-1, tokens, -1).contiguous().to(model.device)
            network = model.model.diffusion_model
            found[f"step_{tokens}_tokens_{batch}"] = seconds(
                lambda x=latents, t=times, c=wide, f=network: f(x, t, context=c)
            )
    found["index_bytes"] = sum(file.stat().st_size for file in (database.path / "index").glob("*"))
    found["embeddings_bytes"] = sum(file.stat().st_size for file in (database.path / "embeddings").glob("*"))
    found["rows"], found["k"] = len(database), k
    return found


def measure_cost(bench: Bench) -> tuple[dict[str, str], list[str]]:
    """Measures what is there of the compared models and the shipped one; returns what broke and what is missing."""
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
