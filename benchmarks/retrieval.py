"""Compares our index with exact search and ScaNN on synthetic databases: recall, time, memory and size.

Every build and every search runs in a process of its own, so that its memory can be measured. The databases and indices
are kept in the folder, and the same command continues an interrupted run. The benchmark prints one line of JSON for
each setting of each way to search, writes the same lines to retrieval.jsonl, and plots them in retrieval.png.

Recall is measured with queries that are not rows of the database. Search times are for 20 neighbours, of single queries
(median) and of a batch of 256 queries. Each query is searched once before it is timed, so that the rows are in the page
cache. `ms_cold` is the median time of other queries with an empty page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.synthetic import CLUSTERS, Space
from ldm.files import atomic_path, write_json
from rdm.retrieval.database.rows import RetrievalDatabase

DIM, K, QUERIES, BATCH, SINGLES = 512, 20, 256, 256, 64
KINDS = ("image", "text", "loose")
WAYS = ("ours", "exact", "scann")
VARIED = (
    (1, 1),
    (1, 2),
    (0.5, 1),
    (0.5, 2),
    (0.25, 2),
    (2, 1),
    (2, 2),
)  # factors on the tuned settings of our index: breadth and candidates
RAM = "1GB"
FIGURES = ("recall@4", "ms_single", "ms_batch", "rss_mb", "build_s", "bytes_per_row")
Search = Callable[[np.ndarray, int], np.ndarray]  # queries [B, D] and k to rows [B, k]


def memory(name: str) -> int:
    """Returns VmRSS or VmHWM of this process in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1000 for line in lines if line.startswith(name + ":"))


def database_in(folder: Path) -> RetrievalDatabase:
    """Opens the database in the folder of its size."""
    return RetrievalDatabase.open(folder / "database")


def space(rows: int) -> Space:
    """Returns the distribution of the vectors of a database with a number of rows, and of its queries."""
    return Space(DIM, clusters=min(CLUSTERS, max(1, rows // 50)))


def build(way: str, folder: Path, ram: str) -> dict[str, Any]:
    """Builds the index of a way to search, and returns the time, the peak memory and the size on disk."""
    database, output, start = database_in(folder), folder / way, time.perf_counter()
    if way == "scann":
        build_scann(database, output)
    else:
        from rdm.retrieval.index.faiss_index import NeighbourIndex

        NeighbourIndex.build(database, "Flat" if way == "exact" else None, ram=ram).save(output)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in output.rglob("*"))
    return {
        "build_s": round(seconds, 1),
        "build_peak_mb": memory("VmHWM"),
        "bytes_per_row": round(size / len(database), 1),
    }


def build_scann(database: RetrievalDatabase, output: Path) -> None:
    """Builds ScaNN's tree of about sqrt(N) leaves with anisotropic codes, as its documentation recommends."""
    import scann

    vectors = np.empty((len(database), database.dim), np.float32)
    for number, block in enumerate(database.blocks()):
        vectors[number * 65536 : number * 65536 + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    leaves = round(len(database) ** 0.5)
    tree = scann.scann_ops_pybind.builder(vectors, K, "dot_product").tree(leaves, leaves // 20, len(database) // 4)
    output.mkdir(exist_ok=True)
    tree.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(200).build().serialize(str(output))


def searches(way: str, folder: Path, threads: int) -> Iterator[tuple[str, Search]]:
    """Yields setting and search function of a way that was built; the first setting is its usual one."""
    if way == "scann":
        import scann

        searcher = scann.scann_ops_pybind.load_searcher(str(folder / way))
        searcher.set_num_threads(threads)
        leaves = round(len(database_in(folder)) ** 0.5)
        for few, reorder in ((leaves // 10, 200), (leaves // 20, 100), (leaves // 5, 200), (leaves // 40, 100)):

            def search(queries: np.ndarray, k: int, few: int = few, reorder: int = reorder) -> np.ndarray:
                unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
                if len(unit) == 1:
                    return searcher.search(unit[0], k, reorder, few)[0][None]
                return searcher.search_batched_parallel(unit, k, reorder, few)[0]

            yield f"{few} of {leaves} leaves, {reorder} reordered", search
        return
    from rdm.retrieval.index.faiss_index import NeighbourIndex

    index = NeighbourIndex.load(database_in(folder), folder / way)
    tuned = dict(index.card["search"])
    for wider, more in VARIED if index.setting in tuned else ((1, 1),):
        factors = {index.setting: wider, "candidates": more}
        index.card["search"] = {name: max(1, int(value * factors[name])) for name, value in tuned.items()}
        words = [f"{name} {value}" for name, value in index.card["search"].items()]
        yield ", ".join([index.card["factory"], *words]), lambda queries, k: index.search(queries, k).rows


def truth(folder: Path) -> dict[str, Any]:
    """Writes queries of all kinds and their exact neighbours, from a pass over the float16 rows of the database."""
    from rdm.retrieval.index.exact import RowReader, search_exactly, unit_vectors

    database, start = database_in(folder), time.perf_counter()
    vectors = space(len(database))
    queries = {kind: vectors.queries(kind, QUERIES) for kind in KINDS}
    unit = unit_vectors(np.concatenate(list(queries.values())), "query")
    rows = search_exactly(RowReader(database), unit, K).rows.reshape(len(KINDS), QUERIES, K)
    arrays: dict[str, Any] = queries | {f"{kind}_rows": near for kind, near in zip(KINDS, rows, strict=True)}
    arrays["unasked"] = vectors.queries("image", QUERIES + SINGLES)[QUERIES:]
    with atomic_path(folder / "truth.npz") as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)
    return {"queries": len(unit), "seconds": round(time.perf_counter() - start, 1)}


def forget(folder: Path) -> None:
    """Takes the rows of a database out of the page cache."""
    os.sync()
    for file in (folder / "database" / "embeddings").iterdir():
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(way: str, folder: Path, threads: int) -> Iterator[dict[str, Any]]:
    """Yields the figures for each setting of a way that was built."""
    import rdm.retrieval.index.faiss_index  # noqa: F401 (loads the libraries before memory is measured)

    known, before = dict(np.load(folder / "truth.npz")), memory("VmRSS")
    for number, (setting, search) in enumerate(searches(way, folder, threads)):
        figures: dict[str, Any] = {"setting": setting}
        if number == 0:
            forget(folder)
            figures["ms_cold"] = single(search, known["unasked"])
        for kind in KINDS:
            for k in (4, K):
                pairs = zip(search(known[kind], k), known[f"{kind}_rows"][:, :k], strict=True)
                hits = [np.intersect1d(*pair).size for pair in pairs]
                figures[f"recall@{k}_{kind}"] = round(sum(hits) / (k * QUERIES), 4)
        figures["ms_single"] = single(search, known["image"][:SINGLES])
        batch, seconds = np.resize(known["image"], (BATCH, DIM)), []
        for _ in range(5):
            start = time.perf_counter()
            search(batch, K)
            seconds.append(time.perf_counter() - start)
        figures["ms_batch"] = round(1e3 * statistics.median(seconds) / BATCH, 4)
        yield {**figures, "rss_mb": memory("VmRSS"), "rss_of_libraries_mb": before, "peak_mb": memory("VmHWM")}


def single(search: Search, queries: np.ndarray) -> float:
    """Returns the median time of single queries in milliseconds."""
    seconds = []
    for query in queries:
        start = time.perf_counter()
        search(query[None], K)
        seconds.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(seconds), 3)


def why_not(way: str, rows: int) -> str:
    """Returns the reason why a way cannot be measured on this machine, or an empty string."""
    need = {"ours": 0, "exact": 5, "scann": 12}[way] * rows * DIM
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > 0.9 * have:
        return f"needs about {need / 1e9:.0f} GB of memory, this machine has {have / 1e9:.0f} GB"
    if way == "scann":
        try:
            import scann  # noqa: F401
        except ImportError:
            return "not installed"
    return ""


def in_child(task: str, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Runs a task of this module in a process of its own, and returns the lines of JSON that it prints."""
    words = ["--child", task, "--folder", str(folder), "--ram", args.ram, "--threads", str(args.threads)]
    command = [sys.executable, "-m", "benchmarks.retrieval", *words]
    threads = {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads)  # noqa: S603
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def compare(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the figures of all sizes, ways and settings."""
    for rows in args.sizes:
        folder = args.folder / str(rows)
        space(rows).write(folder / "database", rows)
        if not (folder / "truth.npz").is_file():
            in_child("truth", args, folder)
        for way in args.ways:
            head, missing = {"rows": rows, "way": way}, why_not(way, rows)
            if missing:
                yield {**head, "left_out": missing}
                continue
            built = folder / f"{way}.json"
            if not built.is_file():
                write_json(built, in_child(f"build {way}", args, folder)[0])
            for figures in in_child(f"search {way}", args, folder):
                yield {**head, **figures, **json.loads(built.read_text()), "threads": args.threads}


def draw(lines: list[dict[str, Any]], output: Path) -> None:
    """Plots each figure over the number of rows, with a colour for each way in its first setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for axes, name in zip(panels.flat, FIGURES, strict=True):
        for colour, way in enumerate(WAYS):
            firsts: dict[int, dict[str, Any]] = {}
            for line in lines:
                if line["way"] == way and "setting" in line:
                    firsts.setdefault(line["rows"], line)
            for kind, style in zip(KINDS, ("o-", "s--", "^:"), strict=True) if name == "recall@4" else (("", "o-"),):
                column = f"{name}_{kind}" if kind else name
                values = [line[column] for line in firsts.values()]
                axes.plot(list(firsts), values, f"C{colour}{style}", markersize=4, label=f"{way} {kind}".strip())
        axes.set(title=name, xlabel="rows", xscale="log", yscale="linear" if name == "recall@4" else "log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    figure.savefig(output, dpi=110)


def run() -> dict[str, float]:
    """Returns the figures of our index at 10,000 rows, with a small memory limit as for a large database."""
    with tempfile.TemporaryDirectory() as folder:
        args = argparse.Namespace(sizes=[10_000], folder=Path(folder), ways=["ours"], ram="5MB", threads=1)
        return {name: value for name, value in next(compare(args)).items() if isinstance(value, float)}


def main() -> None:
    """Compares the sizes and ways of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--sizes",
        nargs="+",
        type=float,
        default=[1e5, 1e6],
        metavar="ROWS",
        help="numbers of database rows; default: 1e5 1e6",
    )
    p.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=WAYS,
        metavar="WAY",
        help=f"ways to search: {', '.join(WAYS)}; all if not given",
    )
    p.add_argument(
        "--folder",
        type=Path,
        default=Path("outputs/retrieval"),
        help="output folder; it needs 1.1 to 4 kB for each row",
    )
    p.add_argument("--ram", default=RAM, help=f"memory limit that our index is chosen for; {RAM} if not given")
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="number of CPU threads; all if not given")
    p.add_argument("--child", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        import torch

        torch.set_num_threads(args.threads)
        task, _, way = args.child.partition(" ")
        tasks: dict[str, Callable[[], Any]] = {
            "truth": lambda: [truth(args.folder)],
            "build": lambda: [build(way, args.folder, args.ram)],
            "search": lambda: measure(way, args.folder, args.threads),
        }
        for line in tasks[task]():
            print(json.dumps(line), flush=True)
        return
    args.sizes, measured = [round(size) for size in args.sizes], []
    args.folder.mkdir(parents=True, exist_ok=True)
    with (args.folder / "retrieval.jsonl").open("w") as file:
        for line in compare(args):
            measured.append(line)
            print(json.dumps(line), flush=True)
            file.write(json.dumps(line) + "\n")
    draw(measured, args.folder / "retrieval.png")
    print(args.folder / "retrieval.png")


if __name__ == "__main__":
    main()
