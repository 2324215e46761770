"""The comparison of databases of one style each, with a tiny model and real pictures."""

from pathlib import Path

import pytest
import torch
from toy import STYLES, rdm_config, ship

from benchmarks.style_classifier import cached, confusion, predict, train
from benchmarks.styles import WHOLE, choose_prompts, content, measure, tables
from ldm.checkpoint import read_weights, write_weights
from ldm.pictures import from_uint8, to_uint8
from ldm.util import instantiate_from_config
from rdm.loading import Loaded, load


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A tiny model that depends on its neighbours more than random weights do."""
    folder = tmp_path_factory.mktemp("system")
    file = ship(folder / "model", rdm_config(folder)) / "model.safetensors"
    write_weights(file, {name: (30 if ".attn2." in name else 1) * value for name, value in read_weights(file).items()})
    return load(str(file))


def test_bytes_and_floats_are_the_same_pictures() -> None:
    pictures = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(pictures)), pictures)
    assert to_uint8(torch.tensor([-1.5, 0.0, 1.5])).tolist() == [0, 128, 255]


def test_the_classifier_learns_what_is_in_the_pixels_and_repeats_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (120, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.arange(120) % 3
    pictures[labels == 1] //= 2  # darker
    pictures[labels == 2] = pictures[labels == 2][..., ::2].repeat_interleave(2, dim=3)  # coarser
    first, again = (train(pictures[:90], labels[:90], 3, epochs=40) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    counts = confusion(labels[90:], predict(first, pictures[90:]), 3)
    assert counts.sum(1).tolist() == [10, 10, 10] and counts.trace() >= 27


def test_rows_of_a_confusion_are_labels_and_columns_what_was_found() -> None:
    counts = confusion(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 1, 1]), 3)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]


def test_prompts_are_the_listed_ones_and_names_that_are_not_among_them() -> None:
    listed, names = ["a rose", "an airplane"], ["rose", "comet", "airplane", "comet", "hook", "salt"]
    assert choose_prompts(listed, names, 4) == [*listed, "comet", "salt"]
    assert choose_prompts(listed, names, 99) == [*listed, "comet", "hook", "salt"]
    assert choose_prompts(listed, names, 1) == listed


def test_content_is_the_cosine_of_each_picture_and_its_prompt_and_the_place_of_that(system: Loaded) -> None:
    images = instantiate_from_config(system.data.dataset_configs["train"])
    pictures = torch.stack([to_uint8(images[n]["image"]) for n in range(7)])
    features = torch.nn.functional.normalize(system.retriever.embedder.images(from_uint8(pictures)), dim=1)
    figures = content(system, pictures, torch.arange(7), features)  # each picture's own vector as its text
    assert figures == {"n": 7, "clip_score": 1.0, "first": 1.0, "in_five": 1.0}
    figures = content(system, pictures[:1].expand(7, -1, -1, -1), torch.arange(7), features)
    cosines = features @ features[0]
    assert figures["clip_score"] == pytest.approx(float(cosines.mean()), abs=1e-4)
    assert figures["first"] == pytest.approx(1 / 7, abs=1e-4) and figures["in_five"] == pytest.approx(5 / 7, abs=1e-4)


def test_what_is_kept_is_made_again_for_other_settings_only(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, torch.Tensor]:
        made.append(len(made))
        return {"number": torch.tensor(made[-1])}

    found = [int(cached(tmp_path / "a.safetensors", {"steps": steps}, make)["number"]) for steps in (1, 1, 2, 2, 1)]
    assert found == [0, 0, 1, 1, 2]


def test_all_of_it_is_measured_once(system: Loaded, tmp_path: Path) -> None:
    prompts, folder = tmp_path / "prompts.txt", tmp_path / "styles"
    prompts.write_text("a pirate flag\n\nwhite flag\n")

    def run(steps: int) -> dict:
        options = {"sampler": "dpmpp_2m", "steps": steps, "scale": 2.0}
        return measure(str(system.path), folder, [str(prompts)], 4, 2, 1, styles=STYLES, **options)

    results = run(2)
    assert results["protocol"]["prompts"][:2] == ["a pirate flag", "white flag"]
    assert len(results["protocol"]["prompts"]) == 4
    assert [results["classifier"][name]["n"] for name in ("pictures", "reconstructions")] == [40, 40]
    assert list(results["databases"]) == [*STYLES, WHOLE]
    for name, figures in results["databases"].items():
        assert sum(figures["called"]) == figures["samples"]["n"] == 8
        assert figures["real"]["n"] == (20 if name == WHOLE else 4)
    cards = sorted(folder.glob("databases/*/database.json"))
    assert [card.parent.name for card in cards] == sorted(STYLES)
    images = {name: kept_images(folder, name) for name in (STYLES[0], STYLES[4], WHOLE)}
    assert not torch.equal(images[STYLES[0]], images[STYLES[4]])

    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    (folder / "samples" / f"{WHOLE}.safetensors").unlink()
    assert run(2) == results and torch.equal(kept_images(folder, WHOLE), images[WHOLE])
    made_again = [file.stem for file, time in times.items() if file.stat().st_mtime_ns != time]
    assert len(times) == 8 and made_again == [WHOLE]

    run(1)
    made_again = {file.parent.name for file, time in times.items() if file.stat().st_mtime_ns != time}
    assert made_again == {"samples"} and not torch.equal(kept_images(folder, WHOLE), images[WHOLE])


def kept_images(folder: Path, name: str) -> torch.Tensor:
    return read_weights(folder / "samples" / f"{name}.safetensors")["images"]


def test_tables_show_shares_and_the_classifiers_own_counts() -> None:
    figures = {"n": 4, "clip_score": 0.5, "first": 0.25, "in_five": 1.0}
    results = {
        "chance": {"style": 0.5, "first": 0.05, "in_five": 0.25},
        "styles": ["thin", "bold"],
        "classifier": {"pictures": {"confusion": [[5, 0], [1, 4]]}, "reconstructions": {"confusion": [[4, 1], [2, 3]]}},
        "databases": {"thin": {"called": [3, 1], "samples": figures, "real": {**figures, "clip_score": 0.75}}},
    }
    assert tables(results).splitlines() == [
        "| database / called | thin | bold | CLIP score | right prompt first | in five |",
        "| --- | --- | --- | --- | --- | --- |",
        "| thin | **75%** | 25% | 0.500 (0.750) | 25% (25%) | 100% (100%) |",
        "| chance | 50% | 50% |  | 5.0% | 25.0% |",
        "",
        "| held out / called | thin | bold |",
        "| --- | --- | --- |",
        "| thin | 5 / 4 | 0 / 1 |",
        "| bold | 1 / 2 | 4 / 3 |",
    ]
