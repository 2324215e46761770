"""Builds a database on the machines of a Ray cluster.

Ray Data distributes the shards. Each machine reads the source and writes its shards itself, in folders that all
machines see, and returns only the line of the shard table. Lines come back in the order of the shards.

A shard is the smallest unit of work that does not change a vector. Each shard starts a new batch, and the limits of its
further batches are known only after its pictures were read, because pictures give different numbers of patches. The
database therefore has the same bytes as a build by one process, provided that the machines compute the same numbers:
they need processors or GPUs of the same kind and the same number of threads.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import os
import socket
from collections.abc import Generator, Sequence
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
from rdm.retrieval.cluster import cluster
from rdm.retrieval.config import on_this_machine
from rdm.retrieval.embedder import Embedder
from rdm.retrieval.patches.policy import Patches

LOG = logging.getLogger(__name__)
_SHARED = "all machines must see the source and the database in the same folders"


@dataclass(frozen=True)
class Job:
    """What a machine must know to write any shard of a build: a :class:`Build` without its open data set.

    Attributes:
        path: folder of the database, absolute.
        file: name of the plan's file.
        plan: the plan of the build before these shards are written.
        items: numbers of the pictures to embed.
        pictures: the result of :func:`outline` for the source.
        embedder: makes the vectors; on the CPU.
        work: the options of the build.
        cores: number of cores that a machine uses for this.
        folder: the working directory, from which relative paths start.
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
    """Lets the machines of a cluster write shards and yields the result of each, in order.

    Args:
        build: the build; ``work.ray`` is the address of the cluster, and each machine gets a copy of the embedder.
        ranges: the first picture and the one behind the last of each shard, see :meth:`Plan.ranges`.

    Raises:
        ValueError: ray is not installed, a machine does not see the source or the database, or see
            :func:`rdm.retrieval.builder.build.build_database`.
        OSError: no cluster answers, or a shard cannot be written.
    """
    if not ranges:
        return
    embedder, address = build.embedder, str(build.work.ray)
    if isinstance(embedder, torch.nn.Module):
        embedder = copy.deepcopy(embedder).cpu()
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # our progress bar and log lines suffice
    with cluster(address, "ray.data"):
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
                for batch in written.iter_batches(
                    batch_size=1, prefetch_batches=0
                ):  # so that each shard is noted as soon as it is written
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
    """Writes shards on one of the machines with its own copy of the embedder.

    Args:
        job: the build.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """Writes a shard and returns its :class:`WrittenShard` as JSON.

        An error is returned in the same way, so that errors arrive in order and keep their type.
        """
        try:
            done = asdict(self.write(row["start"], row["stop"]))
        except (ValueError, OSError) as error:
            done = {"error": f"{socket.gethostname()}: {error}", "system": isinstance(error, OSError)}
        return {"done": json.dumps(done)}

    def write(self, start: int, stop: int) -> WrittenShard:
        """Writes the shard of some pictures, unless it has no rows.

        Raises:
            ValueError: the source differs on this machine, or see :func:`rdm.retrieval.builder.build.build_database`.
            OSError: this machine does not see the folder of the database, or cannot write to it.
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
    """Returns a line that distinguishes a data set from other ones and from parts of it."""
    return f"{len(images)} pictures from {images.uri(0)} to {images.uri(len(images) - 1)}"


def places(nodes: Sequence[dict[str, Any]]) -> tuple[int, int, int]:
    """Returns how many embedders a cluster has room for, and how many cores and GPUs each of them uses.

    In a cluster with GPUs each embedder uses one GPU and its share of that machine's cores. Otherwise each uses as many
    cores as the smallest machine has.

    Args:
        nodes: Ray's description of the machines.

    Raises:
        ValueError: no machine has a core.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    gpus_of = [(int(machine["GPU"]), int(machine.get("CPU", 0))) for machine in machines if machine.get("GPU", 0) >= 1]
    if gpus_of:
        return sum(gpus for gpus, _ in gpus_of), min(cores // gpus for gpus, cores in gpus_of), 1
    cores_of = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
    if not cores_of:
        raise ValueError(f"got a Ray cluster of {len(machines)} machines without cores, expected at least one core")
    return sum(cores // min(cores_of) for cores in cores_of), min(cores_of), 0
