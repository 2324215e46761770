"""The DataModule that a config describes, and a training loader that resumes at the exact picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from ldm.util import instantiate_from_config


class ResumableSampler(DistributedSampler[Any]):
    """The order of epoch e is a function of (seed, e) alone; the first `start` samples of this process are left out.

    Lightning names the epoch through `set_epoch`. Epochs only go forward, so that a sampler restored to the start
    of the next epoch stays there.
    """

    start = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of a later epoch."""
        if epoch > self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[Any]:
        """The samples that remain of this epoch."""
        return islice(super().__iter__(), self.start, None)


class ResumableLoader(DataLoader[Any]):
    """A training loader of full batches whose state is how much of which epoch has been delivered.

    Lightning stores `state_dict()` in every checkpoint and hands it back before training goes on, so a resumed run
    sees exactly the batches that an uninterrupted one would have seen.
    """

    sampler: ResumableSampler

    def __init__(self, dataset: Dataset[Any], batch_size: int, sampler: ResumableSampler, **options: Any) -> None:
        """Take the options of `DataLoader`; the last, smaller batch of an epoch is dropped."""
        super().__init__(dataset, batch_size, sampler=sampler, drop_last=True, **options)
        self.delivered = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: workers start with the first batch
        """The batches that remain of this epoch."""
        self.delivered = self.sampler.start
        for batch in super().__iter__():
            self.delivered += self.batch_size or 0
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and samples of it delivered to this process."""
        return {"epoch": self.sampler.epoch, "samples": self.delivered}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue after the samples that were delivered; after a whole epoch, with the next one."""
        full = len(self) * (self.batch_size or 0)
        done = state["samples"] >= full
        self.sampler.epoch = state["epoch"] + done
        self.sampler.start = self.delivered = 0 if done else state["samples"]


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
    ) -> None:
        """Keep the configs.

        Args:
            batch_size: pictures per step and device.
            train: config of the training set.
            validation: config of the validation set.
            test: config of the test set.
            num_workers: loader processes for each set; 0 loads in the main process.
            shuffle: whether the training set is read in an order drawn anew each epoch.
            seed: of that order.

        Raises:
            ValueError: `batch_size` below 1, `num_workers` below 0, or no dataset at all.
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
        self.datasets: dict[str, Dataset[Any]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Build the datasets that `stage` ("fit", "validate", "test"; None: all) reads."""
        wanted = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}
        for name in wanted.get(stage or "", tuple(self.dataset_configs)):
            if name in self.dataset_configs and name not in self.datasets:
                self.datasets[name] = instantiate_from_config(self.dataset_configs[name])

    def train_dataloader(self) -> ResumableLoader:
        """Full batches in an order given by the seed and the epoch.

        Raises:
            ValueError: no training set, or it has fewer pictures than a batch.
        """
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
        parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
        return kind(
            dataset,
            num_replicas=torch.distributed.get_world_size() if parallel else 1,
            rank=torch.distributed.get_rank() if parallel else 0,
            shuffle=self.shuffle,
            seed=self.seed,
            drop_last=True,
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The validation set in order; an empty list where there is none."""
        return self._in_order("validation") if "validation" in self.dataset_configs else []

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The test set in order; an empty list where there is none."""
        return self._in_order("test") if "test" in self.dataset_configs else []

    def _in_order(self, name: str) -> DataLoader[Any]:
        return DataLoader(self._dataset(name), self.batch_size, shuffle=False, **self._options())

    def _dataset(self, name: str) -> Any:
        if name not in self.dataset_configs:
            raise ValueError(f"the data config has no {name} set; it has {', '.join(self.dataset_configs)}")
        if name not in self.datasets:
            self.datasets[name] = instantiate_from_config(self.dataset_configs[name])
        return self.datasets[name]

    def _options(self) -> dict[str, Any]:
        """Loader options; the generator keeps the loader from drawing on the global random state."""
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator().manual_seed(self.seed),
        }
