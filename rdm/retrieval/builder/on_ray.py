"""Builds on the machines of a Ray cluster. Only this file uses ray.

Ray Data deals out shards, and what comes back of each, in order, is its line of the shard table: the machines read the
source and write the shard themselves, in folders that all of them see. A shard is the smallest part that can be dealt
out without changing a vector: batches start anew with each, and where they end in it is known only once its pictures
are read, as each gives a number of patches of its own. So the database has the bytes of a build by one process where
the machines compute the same numbers as that one: processors or GPUs of one kind, and as many threads.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import os
import socket
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.files import read_json
from ldm.util import instantiate_from_config, trust, trusted
from rdm.retrieval.builder.plan import Plan, WrittenShard
from rdm.retrieval.builder.read_ahead import chunks_of, read_chunks
from rdm.retrieval.builder.shard import embed_shard, write_content
from rdm.retrieval.builder.work import Build, Work
from rdm.retrieval.config import on_this_machine
from rdm.retrieval.embedder import Embedder
from rdm.retrieval.patches.policy import Patches

LOG = logging.getLogger(__name__)
_SHARED = "all machines have to see the source and the database, in the same folders"


@dataclass(frozen=True)
class Job:
    """What a machine has to know to write any shard of a build: a :class:`Build` without its open data set.

    Attributes:
        path: folder of the database, absolute.
        file: name of the plan's file.
        plan: of the build, as it is before these shards.
        items: numbers of the pictures to embed.
        pictures: what :func:`outline` says of the source.
        embedder: makes the vectors; on the CPU.
        work: how the build is carried out.
        cores: that a machine has for this.
        folder: relative paths start from it.
        trusted: packages that configs may name.
    """

    path: Path
    file: str
    plan: Plan
    items: Sequence[int]
    pictures: str
    embedder: Embedder
    work: Work
    cores: int
    folder: str
    trusted: tuple[str, ...]


def shards_on_ray(build: Build, ranges: Sequence[tuple[int, int]]) -> Generator[WrittenShard, None, None]:
    """Has the machines of a cluster write shards; yields what became of each, in order.

    Args:
        build: the build; ``work.ray`` is the address of the cluster, and each machine gets a copy of the embedder.
        ranges: the first picture and the one behind the last of each shard, see :meth:`Plan.ranges`.

    Raises:
        ValueError: ray is not installed, a machine does not see what it has to, or see
            :func:`rdm.retrieval.builder.build.build_database`.
        OSError: no cluster answers, or a shard cannot be written.
    """
    if not ranges:
        return
    embedder, address = build.embedder, str(build.work.ray)
    if isinstance(embedder, torch.nn.Module):
        embedder = copy.deepcopy(embedder).cpu()
    with _cluster(address):
        import ray.data
        from ray.exceptions import RayError

        count, cores, gpus = places(ray.nodes())
        size = min(count, len(ranges))
        LOG.info("%d shards, for %d of the %d embedders that the cluster has room for", len(ranges), size, count)
        job = Job(
            path=build.path.absolute(),
            file=build.file,
            plan=build.plan,
            items=build.items,
            pictures=outline(build.images),
            embedder=embedder,
            work=build.work,
            cores=cores,
            folder=str(Path.cwd()),
            trusted=trusted(),
        )
        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        with ray.data.DataContext.current(context):
            rows = [{"start": start, "stop": stop} for start, stop in ranges]
            dealt_out: Any = ray.data.from_items(rows, override_num_blocks=len(rows))
            written = dealt_out.map(
                ShardWriter,
                fn_constructor_args=(job,),
                compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
                num_cpus=cores,
                num_gpus=gpus,
            )
            try:
                for batch in written.iter_batches(batch_size=1, prefetch_batches=0):  # noted as soon as it is written
                    done = json.loads(batch["done"][0])
                    if "error" in done:
                        raise OSError(done["error"]) if done["system"] else ValueError(done["error"])
                    yield WrittenShard(**done)
            except RayError as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise ConnectionError(
                    f"the build on the Ray cluster '{address}' stopped ({lines[-1]}); run the same command again"
                ) from error


class ShardWriter:
    """Writes shards on one of the machines, with an embedder of its own.

    Args:
        job: what to do.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """Returns what became of a shard, as JSON: also an error, so that errors come in order and keep their kind."""
        try:
            done = asdict(self.write(row["start"], row["stop"]))
        except (ValueError, OSError) as error:
            done = {"error": f"{socket.gethostname()}: {error}", "system": isinstance(error, OSError)}
        return {"done": json.dumps(done)}

    def write(self, start: int, stop: int) -> WrittenShard:
        """Writes the shard of some pictures, if it has rows.

        Raises:
            ValueError: the source is another one here, or see :func:`rdm.retrieval.builder.build.build_database`.
            OSError: the folder of the database is not seen here, or cannot be written to.
        """
        build = self.build
        read_json(build.path / build.file, _SHARED)
        chunks = chunks_of(build.items[start:stop])
        stream = read_chunks(build.images, build.patches, chunks, build.work.readers(len(chunks), self.job.cores))
        return write_content(build, start, embed_shard(build, stream))

    @functools.cached_property
    def build(self) -> Build:
        """The build, with the source opened and the embedder ready on this machine."""
        job = self.job
        trust(*job.trusted)
        with contextlib.suppress(FileNotFoundError):  # absolute paths need no such folder
            os.chdir(job.folder)
        try:
            images, patches = instantiate_from_config(job.plan.source), Patches(job.plan.patches)
        except OSError as error:
            raise ValueError(f"{error}; {_SHARED}") from error
        if (pictures := outline(images)) != job.pictures:
            raise ValueError(f"the source has {pictures}, expected {job.pictures}; {_SHARED}")
        embedder = on_this_machine(job.embedder)
        return Build(job.path, job.file, job.plan, images, job.items, patches, embedder, job.work)


def outline(images: Any) -> str:
    """Returns what tells a data set from another one or from a part of it."""
    return f"{len(images)} pictures from {images.uri(0)} to {images.uri(len(images) - 1)}"


def places(nodes: Sequence[dict[str, Any]]) -> tuple[int, int, int]:
    """Returns how many embedders a cluster has room for, and how many cores and GPUs each takes.

    Where there are GPUs an embedder takes one, with its share of the machine's cores, else all cores of the smallest
    machine.

    Args:
        nodes: what Ray says of the machines.

    Raises:
        ValueError: none has a core to spare.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    gpus_of = [(int(machine["GPU"]), int(machine.get("CPU", 0))) for machine in machines if machine.get("GPU", 0) >= 1]
    if gpus_of:
        return sum(gpus for gpus, _ in gpus_of), min(cores // gpus for gpus, cores in gpus_of), 1
    cores_of = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
    if not cores_of:
        raise ValueError(f"got a Ray cluster of {len(machines)} machines without cores, expected one at least")
    return sum(cores // min(cores_of) for cores in cores_of), min(cores_of), 0


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Connects this process to a Ray cluster.

    Args:
        address: ``local`` for one that starts and ends with this, ``auto`` for that of this machine, or host and port.

    Raises:
        ValueError: ray is not installed, or the address is of another form.
        OSError: no cluster answers there.
    """
    remedy = "'ray start' starts one, and --ray local one on this machine alone"
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ValueError(f"ray '{address}' needs {error.name}: pip install -e '.[ray]'") from error
    host, colon, port = address.rpartition(":")
    if address not in ("local", "auto") and not (colon and port.isdigit() and "/" not in host):
        expected = "local, auto, or HOST:PORT of a cluster that this machine is part of"
        raise ValueError(f"ray: got '{address}', expected {expected}")
    if colon:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would try for minutes
        except (OSError, OverflowError) as error:
            raise ConnectionError(f"no Ray cluster answers at {address} ({error}); {remedy}") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the bar and our own lines say the rest
    dashboard = False if address == "local" else None
    try:
        ray.init(address, logging_level=logging.WARNING, log_to_driver=False, include_dashboard=dashboard)
    except Exception as error:  # of a node that does not come up, Ray raises no narrower one
        message = " ".join(str(error).split())
        raise ConnectionError(f"no Ray cluster answers at '{address}' ({message}); {remedy}") from error
    try:
        yield
    finally:
        ray.shutdown()
