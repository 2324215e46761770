"""Does a sample show its prompt? A judge that knows nothing of CLIP names the concepts of samples and of real pictures.

Concepts are sampled by name: a number of those that the model was trained on, and a number of held-out ones. The judge
also errs on real pictures. So the report has its accuracy on real pictures that it never saw, and on their
reconstructions by the model's first stage, beside the accuracy on samples, and the ratio of samples to real pictures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.data.decode import Size
from ldm.data.identity import ids_hash, images_hash
from ldm.files import file_hash, write_json
from ldm.pictures import image_grid, save_png
from ldm.util import evenly, instantiate_from_config
from rdm.evaluate.memorisation import captioned
from rdm.evaluate.nearest import SampleFiles
from rdm.evaluate.options import ConceptOptions
from rdm.evaluate.plain_samples import samples_of
from rdm.evaluate.protocol import machine, versions
from rdm.evaluate.sources import FirstStageCopies, size_of, write_samples
from rdm.loading import Loaded
from rdm.models.judge import Judge, judge_file, rank
from rdm.retrieval.config import source_config
from rdm.sampling.settings import Settings

SPLITS = {"trained": "train", "held-out": "val"}  # groups of concepts, and their value in the column `split`
REAL, COPIES = "real", "reconstructions"
TOP = {"top1": 1, "top5": 5}
DIGITS = 4
_BATCH = 64
_PER_ROW = 8  # samples in a row of a grid


def concepts(judge: Judge, loaded: Loaded, arguments: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Samples concepts by name and judges the samples; writes the report and its pictures, and returns it.

    Args:
        judge: the judge.
        loaded: the model with its database.
        arguments: the command line of ``scripts/evaluate.py concepts``, by name.
        settings: how samples are drawn.

    Raises:
        ValueError: the pictures show other concepts than the judge knows, a split is missing, the model cannot be
            prompted, or an option is missing.
        FileNotFoundError: there are no pictures.
    """
    options = ConceptOptions.of_command_line(arguments)
    file, size = judge_file(options.judge), size_of(loaded, settings)
    configs = data_configs(judge.data_configs, options.data, size)
    real = instantiate_from_config(configs["validation"])
    known = split_concepts(
        judge, [real, *(instantiate_from_config(configs[name]) for name in configs if name == "train")]
    )
    outdir, figures, judged, samples = Path(options.outdir), {}, {}, {}
    for group, of_group in known.items():
        chosen = [of_group[i] for i in evenly(len(of_group), min(options.n, len(of_group)))]
        prompts = [judge.concepts[concept] for concept in chosen]
        drawn = samples_of(
            loaded, len(prompts), prompts, settings=settings, k=options.knn, seed=options.seed, tokens=options.tokens
        )
        files = write_samples(outdir / "samples" / group, drawn)
        images = torch.stack([SampleFiles(files, size)[i]["image"] for i in range(len(files))])
        places, said = judgement(judge, images, chosen)
        figures[group] = shares(places)
        judged[group] = [
            {"prompt": prompt, "rank": place + 1, "judged": answer, "sample": str(path)}
            for prompt, place, answer, path in zip(prompts, places.tolist(), said, files, strict=True)
        ]
        save_png(grid_of(images, judged[group]), outdir / f"{group}.png")
        samples[group] = {**drawn.about, "files_sha256": ids_hash(map(file_hash, files)), "of": len(of_group)}
    numbers = evenly(len(real), min(options.n_real, len(real)))
    shown = [real.metadata(i)["concept"] for i in numbers]
    for name, pictures in {REAL: real, COPIES: FirstStageCopies(real, loaded)}.items():
        images = torch.stack([pictures[i]["image"] for i in tqdm(numbers, name, unit="img")])
        figures[name] = shares(judgement(judge, images, shown)[0])
    ratios = {group: {top: _ratio(figures, group, top) for top in TOP} for group in known}
    report = {
        "figures": {**figures, "ratio to real": ratios},
        "samples": judged,
        "protocol": {
            "command": "concepts",
            "arguments": dict(arguments),
            "judge": {"path": str(file), "sha256": file_hash(file), "concepts": len(judge.concepts)},
            "model": {"path": str(loaded.path), "sha256": file_hash(loaded.path), "class": type(loaded.model).__name__},
            "samples": samples,
            REAL: {
                "config": configs["validation"],
                "n": len(numbers),
                "of": len(real),
                "ids_sha256": images_hash(real),
            },
            "judging": f"pictures of {size} pixels and 8 bits, scaled to {judge.size}; every concept with the name of "
            "the prompt counts as right; concepts and real pictures are spread evenly over all",
            "versions": versions(),
            "machine": machine(loaded.model.device),
        },
    }
    write_json(outdir / "results.json", report)
    return report


def data_configs(configs: Mapping[str, Any], path: str | None, size: Size) -> dict[str, Any]:
    """Returns the configs of a judge's data sets for pictures of another size, and at another path if one is given.

    Raises:
        ValueError: there are no validation pictures.
    """
    if "validation" not in configs:
        raise ValueError(
            f"got the judge's data sets {', '.join(configs) or 'none'}, expected validation; train it anew"
        )
    found = {}
    for name, config in configs.items():
        params = config.get("params", {})
        inner = params.get("images", config)
        inner = {**inner, "params": {**inner["params"], "size": size}} if path is None else source_config(path, size)
        found[name] = {**config, "params": {**params, "images": inner}} if "images" in params else inner
    return found


def split_concepts(judge: Judge, datasets: Iterable[Any]) -> dict[str, list[str]]:
    """Returns the trained and the held-out concepts, each sorted.

    Raises:
        ValueError: the judge does not know a concept, or there are no concepts of a split.
    """
    items = [images.metadata(i) for images in datasets for i in range(len(images))]
    found = {group: sorted({i["concept"] for i in items if i.get("split") == s}) for group, s in SPLITS.items()}
    for group, names in found.items():
        if not names:
            raise ValueError(f"got no picture of the split '{SPLITS[group]}', expected {group} concepts; give --data")
        judge.targets(names)
    return found


@torch.no_grad()
def judgement(judge: Judge, images: Tensor, shown: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Returns how many concepts the judge finds likelier than the right one, ``[N] int64``, and the likeliest names.

    Args:
        judge: the judge.
        images: ``[N, 3, H, W]`` in [-1, 1].
        shown: the right concepts. Others with the same name are right, too.
    """
    of_name: dict[str, list[int]] = defaultdict(list)
    names = list(judge.concepts.values())
    for place, name in enumerate(names):
        of_name[name].append(place)
    logits = torch.cat([judge(part.to(judge.device)).float().cpu() for part in images.split(_BATCH)])
    targets = judge.targets(shown).tolist()
    places = [rank(line[None], torch.tensor([of_name[names[t]]])) for line, t in zip(logits, targets, strict=True)]
    return torch.cat(places), [names[i] for i in logits.argmax(1).tolist()]


def shares(places: Tensor) -> dict[str, float]:
    """Returns the number of pictures, and the shares whose concept is the likeliest or among the likeliest five.

    Args:
        places: ``[N] int64``, see :func:`judgement`.
    """
    return {"n": len(places), **{name: round((places < k).float().mean().item(), DIGITS) for name, k in TOP.items()}}


def _ratio(figures: Mapping[str, Mapping[str, float]], group: str, top: str) -> float | None:
    """Returns the accuracy on samples as a share of that on real pictures, or None if that is zero."""
    return round(figures[group][top] / figures[REAL][top], DIGITS) if figures[REAL][top] else None


def grid_of(images: Tensor, judged: Sequence[Mapping[str, Any]]) -> Tensor:
    """Returns a picture ``[3, H', W'] uint8`` of samples over their prompts; below, what they were mistaken for."""
    tiles = torch.stack(
        [
            captioned(captioned(image, one["prompt"]), "" if one["rank"] == 1 else f"> {one['judged']}")
            for image, one in zip(images, judged, strict=True)
        ]
    )
    missing = -len(tiles) % _PER_ROW
    tiles = torch.cat([tiles, tiles.new_ones(missing, *tiles.shape[1:])])
    return image_grid({"samples": tiles.unflatten(0, (-1, _PER_ROW))})


def summary(report: Mapping[str, Any]) -> list[str]:
    """Returns a table to print, with a standard error for each accuracy."""
    lines = [f"{'':18s}{'pictures':>8s}{'top-1':>16s}{'top-5':>16s}"]
    figures = dict(report["figures"])
    ratios = figures.pop("ratio to real")
    for name, found in figures.items():
        cells = [f"{found[top]:.1%} +- {(found[top] * (1 - found[top]) / found['n']) ** 0.5:.1%}" for top in TOP]
        lines.append(f"{name:18s}{found['n']:8d}" + "".join(f"{cell:>16s}" for cell in cells))
    for name, found in ratios.items():
        cells = ["-" if found[top] is None else f"{found[top]:.2f}" for top in TOP]
        lines.append(f"{name + ' / real':26s}" + "".join(f"{cell:>16s}" for cell in cells))
    return lines
