"""Computes what larger databases and trainings would need, from what was measured here: ``python -m benchmarks.scale``.

Prints the tables of docs/scale.md. Every constant is a measurement of benchmarks/README.md or docs/compvis.md, or an
assumption that the page states. Nothing is measured by this program.
"""

from __future__ import annotations

from collections.abc import Sequence

from rdm.retrieval.index.factory import choose_factory, index_bytes

ROWS = (2 * 10**7, 10**8, 10**9)
GPUS = (1, 8, 64, 256)
DIM = 512  # numbers of a vector, each of two bytes
EMBEDDED = 26.6  # pictures a second by a network of the size of ViT-B/32, on two cores
INDEXED = 72e-6  # seconds a row when the index of 10^7 rows with 16,384 lists was built
INDEXED_LISTS = 16384
WARM_MS, WARM_ROWS = 3.31, 2 * 10**7  # a single search
EXPONENTS = (0.15, 0.34)  # of its growth: from 10^6 and from 10^5 to 2*10^7 rows
PER_LIST = 42  # rows that the centres of a list are trained with
PICTURE_TFLOP = 3 * 0.209  # a training step for one picture: forward, and twice as much backward; RDM of ImageNet
PARAMETERS = 400.9e6
GPU_TFLOPS = 0.35 * 312  # assumed: 35 % of the peak of an A100 in bfloat16
LINK = 25e9  # assumed: bytes a second between machines for each GPU
BATCH = 16  # pictures of a GPU in a step
LATENT = 64 * 64 * 3 * 2 + 4 * DIM * 2  # bytes of a picture's latents, and of the vectors of its four neighbours


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table of Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def size(number: float) -> str:
    """Returns a number of bytes in words."""
    return f"{number / 1e12:.1f} TB" if number >= 1e12 else f"{number / 1e9:.3g} GB"


def time(seconds: float) -> str:
    """Returns a duration in words."""
    for limit, unit in ((2 * 86400, "days"), (2 * 3600, "h"), (120, "min")):
        if seconds >= limit:
            number = seconds / {"days": 86400, "h": 3600, "min": 60}[unit]
            return f"{number:.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
    return f"{seconds:.2g} s"


def databases() -> str:
    """Returns the table of databases, a column for each of :data:`ROWS`."""
    lines: dict[str, list[str]] = {}
    for rows in ROWS:
        factory = choose_factory(rows, DIM, 10**12)
        lists = int(factory.split("IVF")[1].split(",")[0])
        growth = [(rows / WARM_ROWS) ** exponent for exponent in EXPONENTS]
        slow = max(1.0, lists / INDEXED_LISTS)
        of_rows = {
            "vectors on the disk": size(2 * DIM * rows),
            "index in memory": size(index_bytes(factory, rows, DIM)),
            "lists of the index": f"{lists:,}",
            "memory while its centres are trained": size(4 * DIM * PER_LIST * lists),
            "building it, two cores": " to ".join(dict.fromkeys(time(INDEXED * rows * by) for by in (1, slow))),
            "embedding the pictures, two cores": time(rows / EMBEDDED),
            "a search, one core": " to ".join(dict.fromkeys(f"{WARM_MS * by:.2g} ms" for by in growth)),
        }
        for name, value in of_rows.items():
            lines.setdefault(name, []).append(value)
    return table(
        ["", *(f"{rows // 10**6:,} M rows" for rows in ROWS)], [[name, *values] for name, values in lines.items()]
    )


def training() -> str:
    """Returns the table of trainings of the RDM of ImageNet, a line for each of :data:`GPUS`."""
    lines = []
    for gpus in GPUS:
        rate, step = gpus * GPU_TFLOPS / PICTURE_TFLOP, BATCH * PICTURE_TFLOP / GPU_TFLOPS
        sent = 2 * 4 * PARAMETERS * (gpus - 1) / gpus / LINK
        lines.append(
            [
                str(gpus),
                f"{BATCH * gpus:,}",
                f"{rate:,.0f}",
                time(100e6 / rate),
                f"{1000 * step:.0f} ms",
                f"{1000 * sent:.0f} ms",
                f"{rate * LATENT / 1e9:.2g} GB/s, {4 * rate:,.0f}",
            ]
        )
    head = ["GPUs", "batch", "pictures a second", "100 M pictures", "computing a step", "sending its gradients"]
    return table([*head, "reading, and neighbours a second"], lines)


def main() -> None:
    """Prints the tables."""
    print(databases(), training(), sep="\n\n")


if __name__ == "__main__":
    main()
