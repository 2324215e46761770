"""Several concepts of one prompt, whose neighbours are looked up apart, so that each of them has its own."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from rdm.loading import Loaded
from rdm.retrieval.queries import text_queries
from rdm.retrieval.retriever import Retrieved
from rdm.sampling.request import Request
from rdm.sampling.values import WORDS, check_arguments

_BETWEEN = re.compile(r"\s*(?:[,;]|\band\b)\s*", re.IGNORECASE)


def split(prompt: str) -> list[str]:
    """Returns the concepts of a prompt: its parts between commas, semicolons and the word "and"."""
    return list(dict.fromkeys(part for part in _BETWEEN.split(prompt.strip()) if part))


def concepts(
    loaded: Loaded, prompts: Sequence[str], named: Sequence[str] = (), *, k: int | None = None, seed: int = 0
) -> Request:
    """Requests one image for each prompt, with k neighbours of each of its concepts, in the order of the concepts.

    Args:
        loaded: model and database. Of our models, it sees the neighbours; a pipeline of diffusers also sees the prompt.
        prompts: the texts.
        named: the concepts of all prompts; if there are none, each prompt is split, see :func:`split`.
        k: number of neighbours of each concept.
        seed: the seed of the first image.

    Raises:
        ValueError: there is no prompt, the prompts have different numbers of concepts, or the model has no database.
    """
    check_arguments(k=k, seed=seed)
    for text in [*(prompts or [""]), *named]:
        WORDS.check("prompt", text)
    of_each = [list(named) or split(prompt) or [prompt] for prompt in prompts]
    counts = sorted({len(each) for each in of_each})
    if len(counts) > 1:
        found = next(each for each in of_each if len(each) == counts[-1])
        raise ValueError(
            f"got prompts with {' and '.join(map(str, counts))} concepts ({', '.join(found)}), expected equal numbers; "
            "draw them apart, or name the concepts"
        )
    k, (count,), retriever = k or loaded.k, counts, loaded.retriever
    words = list(dict.fromkeys(word for each in of_each for word in each))
    vectors = dict(zip(words, text_queries(retriever.embedder, words), strict=True))
    queries = torch.stack([vectors[word] for each in of_each for word in each])
    near = retriever(queries, k)
    joined = Retrieved(
        near.embeddings.unflatten(0, (-1, count)).flatten(1, 2),
        near.rows.reshape(len(prompts), count * k),
        near.scores.reshape(len(prompts), count * k),
    )
    asked = {"way": "concepts", "k": k, "concepts": list(named) or "split", **retriever.about}
    whole = text_queries(retriever.embedder, list(prompts))
    seeds = range(seed, seed + len(prompts))
    return Request(joined, list(prompts), seeds, asked, queries=whole, query_tokens=whole, prompts=list(prompts))
