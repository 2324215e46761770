"""Re-ranking of several candidates: which one is kept, what its record says, and that its checks refuse bad input."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import draw
from PIL import Image

from rdm.loading import Loaded
from rdm.retrieval.queries import mix
from rdm.sampling import ways
from rdm.sampling.copies import CopyCheck, compare, further_seed
from rdm.sampling.edit import edit
from rdm.sampling.ranking import STRIDE, candidate_seed, check_best_of, draw_best
from rdm.sampling.record import make_again, read_record, save
from rdm.sampling.samples import Samples
from rdm.sampling.settings import Settings

PROMPTS = ["pirate flag", "white flag", "rainbow flag"]
FAST: dict[str, Any] = {"k": 2, "steps": 2, "copy_threshold": 1.1}  # no sample is flagged as a copy
N = 4


def scores(loaded: Loaded, images: torch.Tensor, query: torch.Tensor) -> list[float]:
    """Returns the cosine similarity of images ``[B, 3, H, W]``, rounded to 8 bits, and a query ``[D]``."""
    pixels = ((images + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    with torch.no_grad():
        return torch.cosine_similarity(loaded.retriever.embedder.images(pixels).float(), query[None].float()).tolist()


def expect_best(loaded: Loaded, samples: Samples, place: int, all_images: torch.Tensor, query: torch.Tensor) -> int:
    """Checks that an image is the candidate with the highest cosine similarity; returns the number of the candidate."""
    found = scores(loaded, all_images, query)
    best = int(np.argmax(found))
    assert torch.equal(samples.images[place], all_images[best])
    assert samples.seeds[place] == samples.candidates[place][best].seed
    assert [each.score for each in samples.candidates[place]] == pytest.approx(found, abs=6e-5)
    return best


def test_the_kept_image_is_the_nearest_to_its_text(loaded: Loaded) -> None:
    samples, kept = draw(ways.texts, loaded, PROMPTS, seed=5, best_of=N, **FAST), []
    for place, prompt in enumerate(PROMPTS):
        seeds = [(5 + place + number * 2654435769) % 2**32 for number in range(N)]
        assert [each.seed for each in samples.candidates[place]] == seeds
        alone = torch.cat([draw(ways.texts, loaded, [prompt], seed=seed, **FAST).images for seed in seeds])
        kept.append(expect_best(loaded, samples, place, alone, loaded.retriever.embedder.texts([prompt])[0]))
    assert set(kept) != {0} and samples.request.labels == PROMPTS and samples.images.shape == (3, 3, 16, 16)


def test_the_best_of_one_is_the_image_alone(loaded: Loaded, tmp_path: Path) -> None:
    plain, one = (draw(ways.texts, loaded, PROMPTS, seed=5, **FAST, **each) for each in ({}, {"best_of": 1}))
    assert torch.equal(plain.images, one.images) and one.seeds == plain.seeds == [5, 6, 7] and one.candidates is None
    save(plain, loaded, tmp_path, "plain")
    save(one, loaded, tmp_path, "one")
    assert (tmp_path / "plain-001.png").read_bytes() == (tmp_path / "one-001.png").read_bytes()
    assert not {"score", "candidates"} & read_record(tmp_path / "one-001.png").keys()


def test_an_image_depends_on_no_other_and_is_made_again(loaded: Loaded, tmp_path: Path) -> None:
    """The image is the same when it is made from its record, and when it is sampled on its own with its seed."""
    together = draw(ways.texts, loaded, PROMPTS, seed=5, best_of=N, **FAST)
    alone = draw(ways.texts, loaded, PROMPTS[1:2], seed=6, best_of=N, **FAST)
    assert torch.equal(together.images[1:2], alone.images) and together.candidates[1] == alone.candidates[0]
    save(together, loaded, tmp_path, "flags")
    record = read_record(tmp_path / "flags-001.png")
    assert record["settings"]["best_of"] == len(record["candidates"]) == N
    assert record["score"] == max(each["score"] for each in record["candidates"])
    assert {"seed": record["seed"], "score": record["score"], "is_copy": False} in record["candidates"]
    save(*make_again(record), tmp_path, "again")
    assert (tmp_path / "again-000.png").read_bytes() == (tmp_path / "flags-001.png").read_bytes()
    assert torch.equal(draw(ways.texts, loaded, PROMPTS[1:2], seed=record["seed"], **FAST).images, alone.images)


def test_more_candidates_begin_with_the_same_and_are_never_worse(loaded: Loaded) -> None:
    few, many = (draw(ways.texts, loaded, PROMPTS, seed=5, best_of=n, **FAST).candidates for n in (2, N))
    for some, more in zip(few, many, strict=True):
        assert more[:2] == some and max(each.score for each in more) >= max(each.score for each in some)


def of_a_class(loaded: Loaded, _: Path, **options: Any) -> tuple[Samples, torch.Tensor]:
    samples = draw(ways.classes, loaded, ["flags/flag"] * 2, pool=2, **options)
    return samples, loaded.retriever.embedder.texts(["An image of a flag."]).expand(2, -1)


def of_a_picture(loaded: Loaded, folder: Path, **options: Any) -> tuple[Samples, torch.Tensor]:
    patch = 255 - loaded.retriever.database.patches([7])[0]
    Image.fromarray(patch).save(folder / "a.png")
    pixels = torch.from_numpy(patch).permute(2, 0, 1)[None].float() / 127.5 - 1
    return draw(ways.image, loaded, folder / "a.png", 2, **options), loaded.retriever.embedder.images(pixels).expand(
        2, -1
    )


def of_an_edit(loaded: Loaded, folder: Path, **options: Any) -> tuple[Samples, torch.Tensor]:
    _, query = of_a_picture(loaded, folder, **options | {"best_of": 1})
    return draw(edit, loaded, folder / "a.png", 2, strength=0.7, sampler="ddim", **options), query


def of_a_mixed_text(loaded: Loaded, _: Path, **options: Any) -> tuple[Samples, torch.Tensor]:
    both = loaded.retriever.embedder.texts(["white flag", "red"])
    samples = draw(ways.texts, loaded, ["white flag"] * 2, negative="red", negative_weight=0.4, **options)
    return samples, mix([both[:1], both[1:]], [1.0, -0.4]).expand(2, -1)


def neighbours_of(loaded: Loaded, samples: Samples) -> torch.Tensor:
    """Returns the mean direction of each sample's neighbours."""
    vectors = torch.from_numpy(loaded.retriever.database.embeddings(samples.request.retrieved.rows)).double()
    return (vectors / vectors.norm(dim=-1, keepdim=True)).mean(1)


def of_a_label(loaded: Loaded, _: Path, **options: Any) -> tuple[Samples, torch.Tensor]:
    samples = draw(ways.classes, loaded, ["flags"] * 2, by="label", **options)
    return samples, neighbours_of(loaded, samples)


def of_nothing(loaded: Loaded, _: Path, **options: Any) -> tuple[Samples, torch.Tensor]:
    samples = draw(ways.popular, loaded, 2, top_m=1.0, weighted=False, **options)
    return samples, neighbours_of(loaded, samples)


def of_rows(loaded: Loaded, _: Path, **options: Any) -> tuple[Samples, torch.Tensor]:
    samples = draw(ways.rows, loaded, [3, 9, 20], 2, **{key: value for key, value in options.items() if key != "k"})
    return samples, neighbours_of(loaded, samples)


@pytest.mark.parametrize(
    "ask", [of_a_class, of_a_picture, of_an_edit, of_a_mixed_text, of_a_label, of_nothing, of_rows]
)
def test_what_an_image_is_asked_to_be_near_to(
    loaded: Loaded, tmp_path: Path, ask: Callable[..., tuple[Samples, torch.Tensor]]
) -> None:
    samples, queries = ask(loaded, tmp_path, seed=5, best_of=3, **FAST | {"copy_threshold": None})
    save(samples, loaded, tmp_path, "best")
    record = read_record(tmp_path / "best-001.png")
    alone = []
    for each in samples.candidates[1]:
        assert each.is_copy is None
        alone.append(make_again({**record, "seed": each.seed})[0].images)
    expect_best(loaded, samples, 1, torch.cat(alone), queries[1])


def test_the_best_is_chosen_from_those_that_are_no_copies(loaded: Loaded) -> None:
    """A flagged candidate is kept only if all are flagged. The best candidate here is the picture of a row."""
    retriever = loaded.retriever
    vectors = torch.from_numpy(retriever.database.embeddings([[7], [7]]))
    row = torch.from_numpy(retriever.database.patches([7])[0]).permute(2, 0, 1).float() / 127.5 - 1
    pictures = {6: row, candidate_seed(6, 1): -row, candidate_seed(6, 2): 0 * row, further_seed(6, 1): 0.5 * row}
    drawn = []

    def draw(places: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
        drawn.append((list(places), list(seeds)))
        return torch.stack([pictures.get(seed, 0 * row) for seed in seeds])

    def best(seeds: list[int], check: CopyCheck | None, n: int = 3) -> tuple[int, list[bool | None], bool]:
        _, (_, seed), found, of = draw_best(draw, seeds, vectors, retriever, check, n, vectors[:, 0])
        return seed, [each.is_copy for each in of[1]], bool(found and found[1].is_copy)

    assert best([2, 6], None) == (6, [None] * 3, False)
    assert drawn == [([0, 0, 0, 1, 1, 1], [2, *(candidate_seed(2, n) for n in (1, 2)), *list(pictures)[:3]])]
    of = draw_best(draw, [2, 6], vectors, retriever, None, 3, vectors[:, 0])[3][1]
    second = max(of[1:], key=lambda each: each.score)
    likeness = [compare(pictures[each.seed], vectors[0].numpy(), retriever, 1.0).similarity for each in of]
    threshold = (max(likeness[1:]) + 1) / 2
    assert best([2, 6], CopyCheck(threshold)) == (second.seed, [True, False, False], False)
    assert best([2, 6], CopyCheck(-1.0)) == (6, [True] * 3, True)
    again = compare(pictures[further_seed(6, 1)], vectors[0].numpy(), retriever, 1.0).similarity
    redrawn = best([2, 6], CopyCheck((again + 1) / 2, 1))
    assert redrawn[1:] == ([False] * 3, False) and drawn[-1] == ([1], [further_seed(6, 1)])


def test_candidates_that_are_copies_are_drawn_again(loaded: Loaded, tmp_path: Path) -> None:
    samples = draw(
        ways.texts, loaded, PROMPTS, seed=5, best_of=2, **FAST | {"copy_threshold": -1.0, "reject_copies": 1}
    )
    for place, candidates in enumerate(samples.candidates):
        first = [5 + place, candidate_seed(5 + place, 1)]
        assert [each.seed for each in candidates] == [further_seed(seed, 1) for seed in first]
        assert samples.copies[place].rejected == (first[samples.seeds[place] != candidates[0].seed],)
    save(samples, loaded, tmp_path, "flags")
    save(*make_again(read_record(tmp_path / "flags-002.png")), tmp_path, "again")
    assert (tmp_path / "again-000.png").read_bytes() == (tmp_path / "flags-002.png").read_bytes()


def test_no_two_images_of_a_call_share_a_seed() -> None:
    """Two images share a candidate seed only if a multiple of the stride is nearer to zero than there are images."""
    assert candidate_seed(7, 0) == 7 and candidate_seed(2**32 + 1, 0) == 2**32 + 1
    seeds = [candidate_seed(seed, number) for seed in range(1000, 3000) for number in range(64)]
    assert len(set(seeds)) == len(seeds) and max(seeds) < 2**32
    for number in range(1, 10_000):
        near = min(number * STRIDE % 2**32, -number * STRIDE % 2**32)
        assert near * (number + 1) > 1e9


@pytest.mark.parametrize("n", [0, -3, 2.5])
def test_a_number_of_candidates_that_is_none_is_refused(loaded: Loaded, n: float) -> None:
    with pytest.raises(ValueError, match=f"got best_of={n}, expected a whole number of at least 1"):
        draw(ways.texts, loaded, PROMPTS, seed=5, best_of=n, **FAST)


def test_candidates_that_would_be_one_image_are_refused(loaded: Loaded, tmp_path: Path) -> None:
    Image.fromarray(loaded.retriever.database.patches([7])[0]).save(tmp_path / "a.png")
    for way, got in (({"invert": True}, "invert=True"), ({"strength": 0.0}, "strength=0")):
        with pytest.raises(ValueError, match=f"best_of=2 with {got}.*leave out best_of"):
            draw(edit, loaded, tmp_path / "a.png", seed=5, best_of=2, **way, **FAST)
    with pytest.raises(ValueError, match="best_of=2 .*one seed"):
        draw(ways.between, loaded, "white flag", "pirate", 3, seed=4, best_of=2, **FAST)
    request = edit(loaded, tmp_path / "a.png", 2, k=2, invert=True)
    check_best_of(Settings(temperature=0.0), request)  # accepted, as there is one candidate for each image
    with pytest.raises(ValueError, match="best_of=2 with temperature=0"):
        check_best_of(Settings(best_of=2, temperature=0.0), replace(request, canvas=None))
