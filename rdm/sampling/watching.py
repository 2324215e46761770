"""Watching a request as it is sampled: how many steps are done, what the images look like so far, and an end to it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ldm.models.diffusion.stepping import Watch


class Progress:
    """Counts the steps of all images of a request for its watcher.

    The model samples batch by batch, and every batch of a request takes the same number of steps. Images that are drawn
    again, because they are flagged as copies, add their batches to the number of all steps when that is known.

    Args:
        watch: the watcher.
        batches: number of batches if no image is drawn again.
    """

    def __init__(self, watch: Watch, batches: int = 0) -> None:
        self.watch = watch
        self.done, self.all, self.later = 0, batches, batches

    def part(self, batches: int) -> None:
        """Begins a part of the request, whose images are first drawn in this number of batches."""
        self.later -= batches

    def draw(self, batches: int) -> None:
        """Begins to draw images in this number of batches."""
        self.all = self.done + batches + self.later

    def batch(self, finish: Callable[[Tensor], Tensor]) -> Watch:
        """Returns the watcher of the next batch.

        Args:
            finish: turns what the model returns for the batch into its images.
        """

        def tell(done: int, steps: int, preview: Callable[[], Tensor]) -> None:
            before = self.done * steps
            if done == steps:
                self.done += 1
            self.watch(before + done, self.all * steps, lambda: finish(preview()))

        return tell
