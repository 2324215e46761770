"""Measures when a draft without neighbours suffices: ``python -m benchmarks.drafts --n 139 --precision bf16``.

Concepts are drawn by name with the same seeds: from the text alone, as the drafts of ``--retrieve_below`` are, and with
neighbours. The judge says of each image whether the concept is among the five likeliest. For thresholds that divide the
drafts into equal parts, the figures are the share of images that neighbours are retrieved for, and the share of images
that are right if each draft of at least this similarity is kept. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import Tensor

from ldm.command_line import positive
from ldm.util import evenly, instantiate_from_config
from rdm.evaluate.concepts import TOP, data_configs, judgement, split_concepts
from rdm.evaluate.sources import size_of
from rdm.loading import Loaded, load
from rdm.models.judge import Judge, load_judge
from rdm.sampling import ways
from rdm.sampling.copies import as_written
from rdm.sampling.samples import Samples, sample
from rdm.sampling.settings import Settings
from rdm.sampling.values import PRECISIONS

PARTS = 5  # thresholds divide the drafts into so many parts
KEEP_ALL = -2.0  # below every similarity


def is_right(judge: Judge, samples: Samples, concepts: list[str]) -> Tensor:
    """Returns whether the judge finds the concept of each image among the five likeliest, ``[N] bool``."""
    places, _ = judgement(judge, torch.stack([as_written(image) for image in samples.images]), concepts)
    return places < TOP["top5"]


def at_thresholds(scores: Tensor, drafts: Tensor, others: Tensor) -> list[dict[str, float]]:
    """Returns the figures of each threshold.

    Args:
        scores: the similarity of each draft to its text, ``[N]``.
        drafts: whether each draft is right, ``[N] bool``.
        others: whether each image with neighbours is right, ``[N] bool``.
    """
    inner = torch.quantile(scores, torch.arange(1, PARTS) / PARTS).tolist()
    found = []
    for threshold in (KEEP_ALL, *inner, -KEEP_ALL):
        kept = scores >= threshold
        right = torch.where(kept, drafts, others).float().mean().item()
        again = 1 - kept.float().mean().item()
        found.append({"below": round(threshold, 3), "retrieved": round(again, 3), "right": round(right, 3)})
    return found


def measure(loaded: Loaded, judge: Judge, n: int, k: int | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of n trained and of n held-out concepts."""
    configs = data_configs(judge.data_configs, None, size_of(loaded, Settings()))
    known = split_concepts(judge, [instantiate_from_config(config) for config in configs.values()])
    figures = {}
    for group, of_group in known.items():
        chosen = [of_group[place] for place in evenly(len(of_group), min(n, len(of_group)))]
        request = ways.texts(loaded, [judge.concepts[concept] for concept in chosen], k=k)
        drafts = sample(loaded, request, Settings(copy_threshold=None, retrieve_below=KEEP_ALL, **settings))
        others = sample(loaded, request, Settings(copy_threshold=None, **settings))
        scores = torch.tensor([draft.score for draft in drafts.drafts or []])
        right = [is_right(judge, samples, chosen) for samples in (drafts, others)]
        figures[group] = {"n": len(chosen), "thresholds": at_thresholds(scores, *right)}
    return figures


def main() -> None:
    """Measures the model of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="models/rdm/emoji", help="checkpoint or run folder")
    parser.add_argument("--judge", default="models/judge/emoji", help="the judge")
    parser.add_argument("--n", type=positive, default=139, help="concepts of each group; default: 139")
    parser.add_argument("--knn", type=positive, help="number of neighbours; if not given, as many as in training")
    parser.add_argument("--precision", choices=PRECISIONS, default="32", help="precision of the networks; default: 32")
    args = parser.parse_args()
    settings = {"precision": args.precision, "batch_size": 8}
    figures = measure(load(args.ckpt), load_judge(args.judge), args.n, args.knn, settings)
    print(json.dumps({"benchmark": "drafts", "knn": args.knn, **settings, **figures}))


if __name__ == "__main__":
    main()
