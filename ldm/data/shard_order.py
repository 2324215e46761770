"""The random order in which samples of shards are read: nearly one shard after the other, for disks and networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ShardOrder:
    """An order of samples that lie in shards.

    In each epoch, shards are dealt out at random to lanes. A lane is read shard after shard, and each of its samples is
    moved by a random number of places. There are `devices` x `workers` lanes: a batch takes its samples in turn from
    `devices` of them, and the next batch from the next ones. Each device gets every n-th sample of a batch, and each of
    its loader processes every n-th batch. So if the number of devices divides `devices`, and that of loader processes
    divides `workers`, no shard is read by two of them, except for the last batches, which mix what lanes have left.

    The order depends on the size of whole batches, not on how many devices and loader processes share them.

    Attributes:
        sizes: the number of samples of each shard.
        buffer: the number of places by which a sample is moved at most.
        devices: lanes of a batch.
        workers: batches with lanes of their own. If there are fewer shards than lanes, there are fewer lanes.
    """

    sizes: Sequence[int]
    buffer: int
    devices: int
    workers: int

    def of_epoch(self, seed: int, epoch: int, batch: int) -> np.ndarray:
        """Returns the numbers of all samples in the order of an epoch, `[N] int64`.

        Args:
            seed: of the order, together with the epoch.
            epoch: number of the epoch.
            batch: number of samples in a batch of all devices.
        """
        rng = np.random.default_rng((seed, epoch))
        workers = min(self.workers, len(self.sizes))
        across = max(1, min(self.devices, len(self.sizes) // workers, batch))
        lanes = [self._moved(lane, rng) for lane in self._dealt(across * workers, rng)]
        shares = [len(range(first, batch, across)) for first in range(across)]  # samples of a lane in its batches
        rounds = min(len(lane) // shares[number % across] for number, lane in enumerate(lanes))
        full = np.empty((rounds, workers, batch), dtype=np.int64)
        rest = []
        for number, lane in enumerate(lanes):
            along, first = divmod(number, across)
            taken = rounds * shares[first]
            full[:, along, first::across] = lane[:taken].reshape(rounds, shares[first])
            rest.append(lane[taken:])
        return np.concatenate([full.reshape(-1), self._moved(np.concatenate(rest), rng)])

    def _dealt(self, lanes: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Returns the numbers of the samples of each lane, which gets whole shards; each shard goes to the shortest."""
        ends = np.cumsum(self.sizes)
        dealt: list[list[np.ndarray]] = [[] for _ in range(lanes)]
        lengths = np.zeros(lanes, dtype=np.int64)
        for shard in rng.permutation(len(self.sizes)):
            shortest = int(lengths.argmin())
            dealt[shortest].append(np.arange(ends[shard] - self.sizes[shard], ends[shard]))
            lengths[shortest] += self.sizes[shard]
        return [np.concatenate([np.empty(0, np.int64), *lane]) for lane in dealt]

    def _moved(self, numbers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns numbers in an order where each is at most `buffer` places from its own."""
        return numbers[np.argsort(np.arange(len(numbers)) + rng.uniform(0, self.buffer + 1, len(numbers)))]
