"""The DataModule of a config, with a training loader that a resumed run continues at the exact picture."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, pairwise
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import BatchSampler, DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from ldm.data.hub import Place
from ldm.data.latents import LatentSource
from ldm.data.shard_order import ShardOrder
from ldm.parallel import own, processes, rank
from ldm.util import instantiate_from_config

LOG = logging.getLogger(__name__)
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


def start_worker(number: int) -> None:
    """Starts a loader process: with its own seed, and deaf to signals that the run's process decides on.

    Those of a terminal and of a cluster's scheduler reach all processes of a run, which first needs its next batch. The
    run's process ends its loader processes with a ``SIGTERM`` of its own.
    """
    for told in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(told, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which tells the sender; SIGTERM stays blocked for it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_on_signal_of_parent, daemon=True).start()
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if int(os.environ.get("PL_SEED_WORKERS", 0)):  # Lightning leaves this to whoever names a function
        pl_worker_init_function(number)


def _end_on_signal_of_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class Loader(DataLoader[Any]):
    """A loader whose processes get no signal before :func:`start_worker` has decided about it."""

    def _get_iterator(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which forked processes inherit
        try:
            return super()._get_iterator()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ResumableSampler(DistributedSampler[Any]):
    """A sampler whose order in epoch e depends on (seed, e) alone. It skips the first `start` samples of this process.

    Lightning sets the epoch through `set_epoch`. The epoch can only increase, so that a sampler that was restored to
    the start of the next epoch stays there.
    """

    start = 0

    def __init__(self, dataset: Dataset[Any], batch_size: int = 1, **options: Any) -> None:
        """Accepts the options of `DistributedSampler`.

        Args:
            dataset: if it has an `order` (:class:`ldm.data.shard_order.ShardOrder`), shuffling follows it.
            batch_size: number of samples that this process gets at once.
            options: of the base class.
        """
        super().__init__(dataset, **options)
        self.batch_size = batch_size
        self.order: ShardOrder | None = getattr(dataset, "order", None) if self.shuffle else None

    def set_epoch(self, epoch: int) -> None:
        """Moves to the beginning of an epoch if it is a later one."""
        if epoch > self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[Any]:
        """Yields the remaining samples of this epoch."""
        if self.order is None:
            return islice(super().__iter__(), self.start, None)
        numbers = self.order.of_epoch(self.seed, self.epoch, self.num_replicas * self.batch_size)
        own_numbers: list[int] = numbers[self.rank : self.total_size : self.num_replicas].tolist()
        return islice(own_numbers, self.start, None)


class StreamSampler(ResumableSampler):
    """Requests the rows of a stream one after the other; with ``shuffle``, in an order that the stream draws."""

    def __iter__(self) -> Iterator[Any]:
        """Yields the remaining places of this epoch."""
        seed = self.seed if self.shuffle else None
        places = range(self.rank, self.total_size, self.num_replicas)[self.start :]
        return (Place(position, self.epoch, seed) for position in places)


class ResumableLoader(Loader):
    """A training loader of full batches. Its state is the epoch and the number of samples that it has delivered.

    Lightning stores `state_dict()` in every checkpoint and restores it before training continues, so that a resumed
    run gets exactly the batches that an uninterrupted run would have got.
    """

    sampler: ResumableSampler

    def __init__(self, dataset: Dataset[Any], batch_size: int, sampler: ResumableSampler, **options: Any) -> None:
        """Accepts the options of `DataLoader`. The last batch of an epoch is dropped if it is smaller."""
        super().__init__(dataset, batch_size, sampler=sampler, drop_last=True, **options)
        self.delivered = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: workers start with the first batch
        """Yields the remaining batches of this epoch."""
        self.delivered = self.sampler.start
        for batch in super().__iter__():
            self.delivered += self.batch_size or 0
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch, the number of its samples that were delivered to each process, and that of processes."""
        return {"epoch": self.sampler.epoch, "samples": self.delivered, "processes": processes()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues after the samples that were delivered; after a complete epoch, at the start of the next one.

        They may have been delivered to another number of processes, because all deal out the same order of samples.
        """
        full = len(self) * (self.batch_size or 0)
        delivered = -(-state["samples"] * state.get("processes", processes()) // processes())
        done = delivered >= full
        self.sampler.epoch = state["epoch"] + done
        self.sampler.start = self.delivered = 0 if done else delivered


class SharedBatches(BatchSampler):
    """The batches of a set in its order, spread over several processes so that each sample is in one of them.

    All processes get equally many batches, because they exchange numbers after each. The samples of a last batch that
    is too small to give one to each process are added to the batch before.

    Args:
        dataset: of at least as many samples as there are processes.
        batch_size: number of samples for each process.
        name: of the set, for the error.

    Raises:
        ValueError: the set has fewer samples.
    """

    def __init__(self, dataset: Any, batch_size: int, name: str) -> None:
        self.size, whole = len(dataset), processes() * batch_size
        if self.size < processes():
            raise ValueError(
                f"{name}: got {self.size} pictures for {processes()} processes, expected one for each; lower "
                "lightning.trainer.devices"
            )
        few = 0 < self.size % whole < processes()
        self.edges = [*range(0, self.size, whole)][: -1 if few and self.size > whole else None] + [self.size]
        sampler: DistributedSampler[Any] = DistributedSampler(dataset, processes(), rank(), shuffle=False)
        super().__init__(sampler, batch_size, drop_last=False)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the numbers of the samples of this process' batches."""
        return (list(own(range(start, end))) for start, end in pairwise(self.edges))

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self.edges) - 1


class DataModule(pl.LightningDataModule):
    """Datasets from `{target, params}` configs, and their loaders."""

    def __init__(
        self,
        batch_size: int,
        train: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
        num_workers: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        latents: Mapping[str, Any] | None = None,
    ) -> None:
        """Stores the configs; `setup` builds the datasets.

        Args:
            batch_size: number of pictures per step and device.
            train: config of the training set.
            validation: config of the validation set.
            test: config of the test set.
            num_workers: number of loader processes for each set; 0 loads in the main process.
            shuffle: whether the training set is read in a random order, which differs in each epoch.
            seed: seed of that order.
            latents: `path` and `first_stage`, if the latents of the training set are computed once before training, see
                :class:`ldm.data.latents.LatentSource`.

        Raises:
            ValueError: `batch_size` is below 1, `num_workers` is below 0, or there is no dataset.
        """
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"got batch_size={batch_size}, num_workers={num_workers}; expected batch_size >= 1, num_workers >= 0"
            )
        configs = {"train": train, "validation": validation, "test": test}
        self.dataset_configs = {name: config for name, config in configs.items() if config is not None}
        if not self.dataset_configs:
            raise ValueError("got no dataset; name at least one of train, validation, test in the data config")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.shuffle = shuffle
        self.seed = seed
        self.latents = LatentSource(latents) if latents else None
        self.datasets: dict[str, Dataset[Any]] = {}

    def prepare_data(self) -> None:
        """Within a trainer, computes what is missing of the latents of the training set."""
        if self.latents is not None and self.trainer is not None and "train" in self.dataset_configs:
            self.latents.prepare(instantiate_from_config(self.dataset_configs["train"]))

    def setup(self, stage: str | None = None) -> None:
        """Builds the datasets for `stage` ("fit", "validate" or "test"; None builds all of them)."""
        wanted = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}
        for name in wanted.get(stage or "", tuple(self.dataset_configs)):
            if name in self.dataset_configs and name not in self.datasets:
                self.datasets[name] = self._images(name)

    def train_dataloader(self) -> ResumableLoader:
        """Returns a loader of full batches, whose order depends on the seed and the epoch.

        Raises:
            ValueError: there is no training set, or it has fewer pictures than a batch, or the latents of its pictures
                are not those that the model would make.
        """
        model = getattr(self.trainer, "lightning_module", None)
        if self.latents is not None and model is not None:
            self.latents.check(model)
        dataset = self._dataset("train")
        sampler = self._sampler(dataset)
        if len(sampler) < self.batch_size:
            raise ValueError(
                f"got {len(sampler)} training images per device, expected at least batch_size={self.batch_size}; "
                "lower batch_size in the data config"
            )
        return ResumableLoader(dataset, self.batch_size, sampler, **self._options())

    def _sampler(
        self, dataset: Dataset[Any], kind: Callable[..., ResumableSampler] = ResumableSampler
    ) -> ResumableSampler:
        kind = StreamSampler if getattr(dataset, "streams", False) else kind
        sampler = kind(
            dataset,
            num_replicas=processes(),
            rank=rank(),
            shuffle=self.shuffle,
            seed=self.seed,
            drop_last=True,
            batch_size=self.batch_size,
        )
        if sampler.order is not None:
            self._check_lanes(sampler.order)
        return sampler

    def _check_lanes(self, order: ShardOrder) -> None:
        """Logs if several devices or loader processes would read the same shards."""
        devices, workers = processes(), max(1, self.num_workers)
        if order.devices % devices or order.workers % workers or len(order.sizes) < devices * workers:
            LOG.warning(
                "lanes: got [%d, %d] and %d shards for %d devices with %d loader processes each, so some of them read "
                "the same shards; use multiples of %d and %d, and at least %d shards",
                *(order.devices, order.workers, len(order.sizes), devices, workers),
                *(devices, workers, devices * workers),
            )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Returns a loader of the validation set in its order, or an empty list if there is no such set."""
        return self._in_order("validation") if "validation" in self.dataset_configs else []

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Returns a loader of the test set in its order, or an empty list if there is no such set."""
        return self._in_order("test") if "test" in self.dataset_configs else []

    def _in_order(self, name: str) -> DataLoader[Any]:
        dataset = self._dataset(name)
        if processes() == 1:
            return Loader(dataset, self.batch_size, shuffle=False, **self._options())
        batches = SharedBatches(dataset, self.batch_size, f"data.params.{name}")
        loader = Loader(dataset, batch_sampler=batches, **self._options())
        object.__setattr__(loader, "sampler", batches.sampler)  # tells Lightning that it need not deal out samples
        return loader

    def _dataset(self, name: str) -> Any:
        if name not in self.dataset_configs:
            raise ValueError(f"the data config has no {name} set; it has {', '.join(self.dataset_configs)}")
        if name not in self.datasets:
            self.datasets[name] = self._images(name)
        return self.datasets[name]

    def _images(self, name: str) -> Any:
        """Returns a data set as its config says, with latents if it is the training set of a trainer."""
        images = instantiate_from_config(self.dataset_configs[name])
        with_latents = name == "train" and self.latents is not None and self.trainer is not None
        return self.latents.added_to(images) if self.latents and with_latents else images

    def _options(self) -> dict[str, Any]:
        """Returns the loader's options. With its own generator, it does not use torch's global random state."""
        return {
            "num_workers": self.num_workers,
            "worker_init_fn": start_worker,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator().manual_seed(self.seed),
        }
