"""The search of faiss on GPUs and on the CPU."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from benchmarks.gpu.timing import Bench, attempt

DIM, QUERIES, K = 512, 256, 20


def gpus_of_faiss() -> int:
    """Returns the number of GPUs that faiss can use."""
    return int(getattr(faiss, "get_num_gpus", int)())


def search(bench: Bench) -> dict[str, Any]:
    """Returns the milliseconds a query of exact search and of an index of lists among 10^6 vectors, CPU and GPU."""
    rows, lists = (10**4, 64) if bench.tiny else (10**6, 4096)
    rng = np.random.default_rng(0)
    vectors, queries = (rng.standard_normal((n, DIM), dtype=np.float32) for n in (rows, QUERIES))
    for each in (vectors, queries):
        faiss.normalize_L2(each)
    exact = faiss.IndexFlatIP(DIM)
    exact.add(vectors)
    inverted: Any = faiss.index_factory(DIM, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    if gpus_of_faiss():
        inverted.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(DIM))
    inverted.train(vectors[: 50 * lists])
    inverted.add(vectors)
    inverted.nprobe = lists // 16
    found: dict[str, Any] = {"rows": rows, "queries": QUERIES}
    for name, index in {"exact": exact, "lists": inverted}.items():
        found[f"{name}, CPU"] = _ms_a_query(index, queries)

        def on_gpus(index: Any = index) -> dict[str, Any]:
            if not gpus_of_faiss():
                raise ValueError("this build of faiss has no GPUs")
            return _ms_a_query(faiss.index_cpu_to_all_gpus(index), queries)

        found[f"{name}, GPU"] = attempt(on_gpus)
    return found


def _ms_a_query(index: Any, queries: np.ndarray) -> dict[str, Any]:
    seconds = Bench("cpu", tiny=False, repeats=3).seconds(lambda: index.search(queries, K), 1)
    return {"ms_a_query": round(1000 * seconds / len(queries), 4)}
