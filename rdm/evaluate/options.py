"""The options of the evaluations, typed.

A report stores its command line as ``arguments``, by the names of the command line. The records here are read from it
once, where an evaluation begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from rdm.retrieval.config import require

T = TypeVar("T", bound="Options")


@dataclass(frozen=True)
class Options:
    """A record whose fields have the names of command-line options."""

    @classmethod
    def of_command_line(cls: type[T], arguments: Mapping[str, Any]) -> T:
        """Returns the options of a command line by name, such as ``vars(args)`` or the ``arguments`` of a report.

        Raises:
            ValueError: an option is missing.
        """
        names = [each.name for each in fields(cls) if each.default is MISSING or each.name in arguments]
        return cls(**dict(zip(names, require(arguments, names, "the command line"), strict=True)))


@dataclass(frozen=True)
class Comparison(Options):
    """What ``images`` and ``samples`` share.

    Attributes:
        command: ``images`` or ``samples``.
        reference: path of the reference pictures, if any.
        reference_split: split of Parquet files.
        reference_n: number of reference pictures; None takes all.
        features: names of the feature networks, see :func:`rdm.evaluate.features.feature_network`.
        metrics: names of the metrics; None computes all that the inputs allow.
        kid_size: pictures in each subset of the kernel distance; None derives it from the sets.
        num_workers: processes that read pictures.
        cache: folder that keeps features.
        outdir: folder of the report.
    """

    command: str
    reference: str | None
    reference_split: str | None
    reference_n: int | None
    features: Sequence[str]
    metrics: Sequence[str] | None
    kid_size: int | None
    num_workers: int
    cache: str
    outdir: str


@dataclass(frozen=True)
class FileOptions(Options):
    """Which pictures in files ``images`` measures.

    Attributes:
        path: folder of pictures, Parquet files or tar shards.
        split: split of Parquet files.
        size: side or height and width in pixels; None takes the shorter side of the first picture.
        n: number of pictures; None takes all.
        num_workers: processes that read pictures.
    """

    path: str
    split: str | None
    size: int | list[int] | None
    n: int | None
    num_workers: int


@dataclass(frozen=True)
class SampleOptions(Options):
    """Which model ``samples`` samples from, and what; the options of sampling itself are in ``Settings``.

    Attributes:
        ckpt: checkpoint or run folder; None takes the newest run or the shipped model.
        database: another database than the model's.
        only: conditions ``COLUMN=VALUE`` on the rows of neighbours.
        config: config of the model, if it is not next to the checkpoint.
        n: number of images; None takes one for each prompt, or 1000.
        from_file: file of prompts.
        captions: pictures whose captions are the prompts.
        captions_split: their split of Parquet files.
        knn: number of neighbours; None takes as many as in training.
        seed: seed of the first image.
        top_m: share or number of the most popular rows, without prompts.
        use_weights: whether rows are drawn in proportion to their popularity.
        tokens: context of the model for a prompt.
        same_outline: see :func:`rdm.loading.load`; reports of earlier versions lack it.
        agree: see there; reports of earlier versions lack it.
    """

    ckpt: str | None
    database: str | None
    only: Sequence[str]
    config: str | None
    n: int | None
    from_file: str | None
    captions: str | None
    captions_split: str | None
    knn: int | None
    seed: int
    top_m: float | int
    use_weights: bool
    tokens: str
    same_outline: float | None = None
    agree: int | None = None


@dataclass(frozen=True)
class ReconstructionOptions(Options):
    """The options of ``reconstruction``.

    Attributes:
        data: path of the pictures; None takes the validation set of the config.
        split: split of Parquet files.
        size: side or height and width in pixels; None takes that of the config.
        n: number of pictures, from the first on; None takes all.
        by: metadata column whose values have figures of their own.
        perceptual: network of the perceptual distance, or ``none``.
        features: CLIP model of the rFID, or ``none``.
        tile: side of tiles in pixels, or a size of memory that they fit; None takes pictures whole.
        batch_size: pictures that are reconstructed together.
        num_workers: processes that read pictures.
        rows: examples in the picture.
        outdir: folder of the report.
    """

    data: str | None
    split: str | None
    size: int | list[int] | None
    n: int | None
    by: str | None
    perceptual: str
    features: str
    tile: int | str | None
    batch_size: int
    num_workers: int
    rows: int
    outdir: str


@dataclass(frozen=True)
class MemorisationOptions(Options):
    """The options of ``memorisation``; those of sampling are in ``Settings``.

    Attributes:
        images: folder of existing samples; None samples the model.
        ways: how to sample, of :data:`rdm.evaluate.choices.WAYS`.
        n: number of samples of each way (None: 256), or of existing ones (None: all).
        n_real: largest number of held-out and of training pictures.
        rows: most similar pairs of each feature in the picture.
        top_m: share or number of the most popular rows, without prompts.
        knn: number of neighbours; None takes as many as in training.
        seed: seed of the first sample.
        outdir: folder of samples, report and pictures.
    """

    images: str | None
    ways: Sequence[str]
    n: int | None
    n_real: int
    rows: int
    top_m: float | int
    knn: int | None
    seed: int
    outdir: str


@dataclass(frozen=True)
class ConceptOptions(Options):
    """The options of ``concepts``; those of sampling are in ``Settings``.

    Attributes:
        judge: folder of the judge.
        data: pictures of all concepts; None takes those that the judge was trained with.
        n: number of trained and of held-out concepts.
        n_real: number of real pictures.
        tokens: context of the model for a prompt.
        knn: number of neighbours; None takes as many as in training.
        seed: seed of the first sample of each group.
        outdir: folder of samples, report and pictures.
    """

    judge: str
    data: str | None
    n: int
    n_real: int
    tokens: str
    knn: int | None
    seed: int
    outdir: str
