"""The cases that are measured: a case is one model, one way to sample from it, and the settings."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.claims.runs import SEEDS

TOP_M = 0.2  # the default of scripts/sample.py
K = 4
SCALE = 2.0  # guidance scale for texts and classes
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
TOP_MS = (0.01, 0.03, 0.1, 0.3, 1.0)
TOKENS = ("text", "neighbours", "both")
NEIGHBOURS = tuple(f"neighbours-{seed}" for seed in SEEDS)
CONTEXTS = {"embeddings": "neighbours", "tokens": "tokens", "references": "references", "both": "both"}


class Case(NamedTuple):
    """One set of images.

    Attributes:
        question: the question that it belongs to.
        name: its name within the question.
        run: the model.
        settings: ``ask`` (``popular``, ``text``, ``class``), ``k``, ``scale``, ``top_m``, ``tokens``, ``rows`` of the
            database (a share, or ``train``), ``names`` of the prompts (``train``, ``held``, ``all``).
    """

    question: str
    name: str
    run: str
    settings: dict[str, Any]


def popular(k: int = K, scale: float = 1.0, top_m: float = TOP_M, rows: float | str = 1.0) -> dict[str, Any]:
    """Returns the settings of unconditional images."""
    return {"ask": "popular", "k": k, "scale": scale, "top_m": top_m, "rows": rows}


def text(
    names: str, k: int = K, scale: float = SCALE, tokens: str = "neighbours", rows: float | str = 1.0
) -> dict[str, Any]:
    """Returns the settings of images by text."""
    return {"ask": "text", "names": names, "k": k, "scale": scale, "tokens": tokens, "rows": rows}


def by_class(tokens: str, k: int = K, scale: float = SCALE) -> dict[str, Any]:
    """Returns the settings of images by class."""
    return {"ask": "class", "k": k, "scale": scale, "tokens": tokens, "rows": 1.0}


def all_cases() -> dict[str, list[Case]]:
    """Returns the cases of every question; ``cost`` has none, because it is measured in another way."""
    cases: dict[str, list[Case]] = {}

    def add(question: str, name: str, run: str, settings: dict[str, Any]) -> None:
        cases.setdefault(question, []).append(Case(question, name, run, settings))

    for seed in SEEDS:
        for scale in (1.0, 2.0):
            add("retrieval", f"neighbours scale {scale:g}", f"neighbours-{seed}", popular(scale=scale))
        for kind in ("plain", "plain-large"):
            add("retrieval", kind, f"{kind}-{seed}", popular())
    for k, run in ((1, "k1-0"), (2, "k2-0"), (4, "neighbours-0"), (8, "k8-0")):
        add("k_train", f"k {k}", run, popular(k))
    for k in (1, 2, 4, 8, 16):
        add("k_test", f"k {k}", "neighbours-0", popular(k))
        add("k_test", f"k {k} scale 2", "neighbours-0", popular(k, scale=2.0))
    for dropped, run in (("0", "uncond0-0"), ("0.1", "neighbours-0"), ("0.3", "uncond3-0")):
        for scale in SCALES if dropped != "0" else SCALES[:1]:
            add("guidance", f"p_uncond {dropped} scale {scale:g}", run, popular(scale=scale))
            add("guidance", f"p_uncond {dropped} scale {scale:g} text", run, text("held", scale=scale))
    for top_m in TOP_MS:
        add("top_m", f"top_m {top_m:g}", "neighbours-0", popular(top_m=top_m))
    for run in NEIGHBOURS:
        add("concepts", "trained", run, text("train"))
        add("concepts", "held out, in database", run, text("held"))
        add("concepts", "held out, not in database", run, text("held", rows="train"))
    for run in NEIGHBOURS:
        for tokens in TOKENS:
            add("synthesis", f"text, {tokens}", run, text("all", tokens=tokens))
            add("synthesis", f"class, {tokens}", run, by_class(tokens))
    for shown, kind in CONTEXTS.items():
        for seed in SEEDS:
            add("contexts", f"trained, {shown}", f"{kind}-{seed}", text("train"))
            add("contexts", f"held out, {shown}", f"{kind}-{seed}", text("held"))
    for run in ("neighbours-0", "v-0", "flat-0"):
        for scale in (1.0, 2.0):
            add("objective", f"{run.removesuffix('-0')} scale {scale:g}", run, popular(scale=scale))
    for share in SHARES:
        add("database_size", f"{share:.0%}", "neighbours-0", popular(rows=share))
        add("database_size", f"{share:.0%} text", "neighbours-0", text("all", rows=share))
    return cases


QUESTIONS = (*all_cases(), "cost")
