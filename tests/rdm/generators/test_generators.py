"""A pipeline of diffusers as the generator: its settings, records, edits, what it refuses, and who imports it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from drawing import draw
from PIL import Image
from tiny_pipelines import SIDE, Tiny, write_adapter, write_clip

import rdm
from ldm.stopping import Stopped
from rdm.generators.memory import check_memory, forecast, parameters_of, tile_side
from rdm.loading import with_database
from rdm.sampling import ways
from rdm.sampling.edit import edit
from rdm.sampling.neighbours import with_neighbours
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import make_again, read_record, save
from rdm.sampling.samples import sample
from rdm.sampling.settings import DIFFUSERS, OPTIONS, Settings

PROMPT = "a red flag"
FEW: dict[str, Any] = {"k": 2, "seed": 3, "steps": 3, "copy_threshold": None}
# A value of each setting that is not its default, and with it others that it needs to show.
CHANGED: dict[str, dict[str, Any]] = {
    "height": {"height": 24},
    "width": {"width": 24},
    "scale": {"scale": 1.0},
    "sampler": {"sampler": "unipc"},
    "steps": {"steps": 2},
    "eta": {"eta": 1.0, "sampler": "ddim"},
    "precision": {"precision": "bf16"},
    "tile": {"tile": 16, "height": 32, "width": 32},
    "best_of": {"best_of": 3},
    "retrieve_below": {"retrieve_below": -1.0},
    "neighbour_scale": {"neighbour_scale": 1.5},
    "combine": {"combine": "mean"},
    "negative_prompt": {"negative_prompt": "blue"},
}
ELSEWHERE = {"batch_size", "copy_threshold", "reject_copies", "offload"}  # batches, copies, and what needs a GPU


def test_every_setting_of_a_pipeline_is_tried() -> None:
    assert {*CHANGED, *ELSEWHERE} == {name for name, known in OPTIONS.items() if DIFFUSERS in known.kinds}


@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_changes_what_is_made_and_does_not_last(name: str, drawn_by: Pipeline) -> None:
    options = CHANGED[name]
    without = {key: value for key, value in options.items() if key != name}
    before = draw(ways.texts, drawn_by, [PROMPT], **FEW | without)
    changed = draw(ways.texts, drawn_by, [PROMPT], **FEW | options)
    after = draw(ways.texts, drawn_by, [PROMPT], **FEW | without)
    assert torch.equal(before.images, after.images)
    assert changed.images.shape != before.images.shape or not torch.equal(changed.images, before.images)
    assert changed.settings.record(DIFFUSERS)[name] != before.settings.record(DIFFUSERS)[name]
    assert bool(changed.images.isfinite().all()) and float(changed.images.abs().max()) <= 1


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "plms", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_our_names_of_samplers_are_schedulers_of_diffusers(sampler: str, drawn_by: Pipeline, sdxl: Tiny) -> None:
    made = [
        draw(ways.texts, model, [PROMPT], sampler=sampler, **FEW).images
        for model in (drawn_by, rdm.load(**sdxl.arguments))
    ]
    assert all(bool(images.isfinite().all()) for images in made)
    drawing: Any = drawn_by.model
    assert not torch.equal(made[0], draw(ways.texts, drawn_by, [PROMPT], **FEW | {"steps": 4}).images)
    assert type(drawing._schedule).__name__ == "DDIMScheduler"  # its own is kept


def test_usual_values_are_those_of_the_pipelines_own_call(drawn_by: Pipeline, sdxl: Tiny) -> None:
    model: Any = drawn_by.model
    usual = Settings().for_model(model)
    assert (usual.scale, usual.steps, usual.batch_size, usual.sampler) == (7.5, 50, 1, None)
    assert Settings().for_model(rdm.load(**sdxl.arguments).model).scale == 5.0
    assert drawn_by.k == 4 and model.image_size == (SIDE, SIDE)


def test_bf16_is_close_and_the_weights_are_loaded_again_in_full(drawn_by: Pipeline) -> None:
    full, half, again = (
        draw(ways.texts, drawn_by, [PROMPT], precision=precision, **FEW).images for precision in ("32", "bf16", "32")
    )
    assert torch.equal(full, again) and 0 < float((full - half).abs().mean()) < 0.1


@pytest.mark.parametrize("which", ["adapter", "plus"])
def test_an_image_is_made_again_from_its_record(sd: Tiny, tmp_path: Path, which: str) -> None:
    model = rdm.load(**{**sd.arguments, "adapter": getattr(sd, which)})
    options = {**FEW, "best_of": 2, "negative_prompt": "blue", "copy_threshold": 0.99}
    samples = draw(ways.texts, model, [PROMPT, "a cross"], **options)
    save(samples, model, tmp_path, "a", neighbours=True)
    record = read_record(tmp_path / "a-001.png")
    named = record["generator"]
    assert named["class"] == "StableDiffusionPipeline" and named["pipeline"] == sd.pipeline
    assert named["adapter"] == getattr(sd, which) and named["image_encoder"] == sd.encoder
    assert named["neighbours_as"] == ("vectors" if which == "adapter" else "pictures")
    hashes = [named[f"{part}_sha256"] for part in ("pipeline", "adapter", "image_encoder")]
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in hashes) and len(set(hashes)) == 3
    assert record["prompt"] == "a cross" and len(record["neighbours"]) == 2 and record["settings"]["scale"] == 7.5
    again, _ = make_again(record)
    assert torch.equal(again.images[0], samples.images[1])
    assert (tmp_path / "a-grid.png").is_file() and (tmp_path / "a-001-neighbour-1.png").is_file()


def test_a_record_of_other_weights_is_refused(moved: dict[str, str], tmp_path: Path) -> None:
    model = rdm.load(**moved)
    save(draw(ways.texts, model, [PROMPT], **FEW), model, tmp_path, "a")
    record = read_record(tmp_path / "a-000.png")
    other = {**record["generator"], "adapter_sha256": "0" * 64}
    with pytest.raises(ValueError, match=f"adapter {moved['adapter']} has fingerprint.*{'0' * 64}"):
        make_again({**record, "generator": other})
    with pytest.raises(ValueError, match="pipeline .*has fingerprint"):
        make_again({**record, "generator": {**record["generator"], "pipeline_sha256": "0" * 64}})


def test_copies_are_found_and_drawn_again(drawn_by: Pipeline) -> None:
    options = {**FEW, "copy_threshold": -1.0, "reject_copies": 1}
    samples = draw(ways.texts, drawn_by, [PROMPT], **options)
    assert samples.copies is not None and samples.copies[0].is_copy and samples.copies[0].rejected == (3,)
    alone = draw(ways.texts, drawn_by, [PROMPT], **FEW | {"seed": samples.seeds[0]})
    assert torch.equal(samples.images, alone.images)


def test_every_way_to_ask_is_drawn(sd: Tiny, drawn_by: Pipeline, tmp_path: Path) -> None:
    Image.fromarray(drawn_by.retriever.database.patches([7])[0]).save(tmp_path / "a.png")
    settings = Settings(steps=2, copy_threshold=None)
    ends = [Image.fromarray(patch) for patch in drawn_by.retriever.database.patches([0, 20])]
    row = drawn_by.retriever.database.metadata([0])[0]
    only = with_database(drawn_by, only=[f"image_id={row['image_id']}"])
    requests = [
        ways.between(drawn_by, *ends, 3, k=2),
        ways.image(drawn_by, tmp_path / "a.png", 2, k=2),
        ways.rows(drawn_by, [3, str(tmp_path / "a.png")], 2),
        ways.classes(drawn_by, ["flags/flag"], k=2, pool=2),
        ways.texts(drawn_by, [PROMPT], k=2, negative="blue"),
        with_neighbours(drawn_by, ways.texts(drawn_by, [PROMPT], k=2), 0, [5]),
        edit(drawn_by, tmp_path / "a.png", 1, strength=0.6, k=2),
    ]
    made = [sample(drawn_by, request, settings).images for request in requests]
    assert [len(images) for images in made] == [3, 2, 2, 1, 1, 1, 1]
    assert not torch.equal(made[0][0], made[0][2])
    found = ways.texts(only, [PROMPT], k=1).retrieved.rows
    assert found.tolist() == [[0]] and len(sample(only, ways.texts(only, [PROMPT], k=1), settings).images) == 1
    by_picture = ways.rows(drawn_by, [str(tmp_path / "a.png")], 1)
    by_row = ways.rows(drawn_by, [7], 1)
    apart = (sample(drawn_by, by_picture, settings).images - sample(drawn_by, by_row, settings).images).abs().mean()
    assert float(apart) < 0.05  # the picture of a row counts as the row
    with pytest.raises(ValueError, match="made by embedder.*other_clip"):
        with_database(drawn_by, sd.other)


def test_a_watcher_is_told_of_each_step_and_can_stop(drawn_by: Pipeline) -> None:
    told: list[tuple[int, int]] = []

    def watch(done: int, steps: int, preview: Any) -> None:
        told.append((done, steps))
        assert preview().shape == (1, 3, SIDE, SIDE)
        if len(told) == 5:
            raise Stopped(15, "enough")

    request = ways.texts(drawn_by, [PROMPT, "a cross"], k=2)
    with pytest.raises(Stopped):
        sample(drawn_by, request, Settings(steps=3, copy_threshold=None), watch)
    assert told == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6)]


def test_python_calls_it_like_our_own_models(drawn_by: Pipeline, tmp_path: Path) -> None:
    images = drawn_by([PROMPT, "a cross"], neighbours=2, seed=3, steps=2, neighbour_scale=0.7)
    assert [image.size for image in images] == [(SIDE, SIDE)] * 2
    images[0].save(tmp_path / "a.png")
    assert drawn_by.edit(tmp_path / "a.png", PROMPT, strength=0.5, steps=4)[0].size == (SIDE, SIDE)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"tokens": "both"}, "tokens 'both'.*neighbours or text"),
        ({"rescale": 0.5}, "rescale=0.5.*a diffusion model.*pipeline of diffusers"),
        ({"compile": True}, "compile=True.*pipeline of diffusers"),
        ({"eta": 0.5}, "eta=0.5 with sampler=None"),
        ({"height": 17}, "17x16 pixels.*multiples of 2"),
        ({"offload": "model"}, "offload=model.*without a GPU"),
        ({"tile": 4}, "tile=4.*at least 16"),
        ({"width": 2**20, "height": 2**20}, "needs about .* GB of memory.*--tile 512"),
    ],
)
def test_what_a_pipeline_has_not_is_refused_in_one_line(drawn_by: Pipeline, options: dict, facts: str) -> None:
    with pytest.raises(ValueError, match=facts) as error:
        draw(ways.texts, drawn_by, [PROMPT], **FEW | options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"invert": True}, "is a pipeline of diffusers, expected a diffusion model of this project"),
        ({"mask": True, "repeats": 2}, "repeats=2"),
        ({"strength": 0.1}, "strength=0.1 with steps=3"),
    ],
)
def test_edits_that_a_pipeline_has_not(drawn_by: Pipeline, options: dict, facts: str) -> None:
    picture = Image.new("RGB", (SIDE, SIDE), "red")
    options = {name: Image.new("L", (SIDE, SIDE), 255) if name == "mask" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=facts):
        draw(edit, drawn_by, picture, 1, prompt=PROMPT, **FEW, **options)


def test_pipelines_adapters_and_databases_that_do_not_fit(sd: Tiny, sdxl: Tiny, tmp_path: Path) -> None:
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    (tmp_path / "adapters").mkdir()
    from diffusers import UNet2DConditionModel

    own = UNet2DConditionModel.from_pretrained(Path(sd.pipeline) / "unet")
    write_adapter(tmp_path / "adapters" / "wide.safetensors", own, 16, width=12)
    write_adapter(tmp_path / "adapters" / "alone.safetensors", own, 16)
    (tmp_path / "adapters" / "none.safetensors").write_bytes(
        (Path(sd.pipeline) / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    wide, alone = (str(tmp_path / "adapters" / f"{name}.safetensors") for name in ("wide", "alone"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"generator": str(tmp_path / "ddpm")}, "is a DDPMPipeline, which takes no image prompts"),
        ({"generator": str(tmp_path)}, "no model_index.json"),
        ({"generator": "nobody/nothing"}, "no pipeline at .*nobody/nothing, and none of this name"),
        ({"adapter": sdxl.adapter}, "makes tokens of width 24, pipeline .* sees tokens of width 16"),
        ({"adapter": str(tmp_path / "no.bin")}, "no adapter at"),
        ({"adapter": None}, "without --adapter"),
        ({"database": None}, "without --database"),
        ({"adapter": str(tmp_path / "adapters" / "none.safetensors")}, "holds no image_proj and ip_adapter"),
        ({"adapter": wide, "image_encoder": sd.encoder}, r"width 8 \(projection_dim\), adapter .* takes 12"),
        ({"adapter": sd.plus, "image_encoder": "database"}, "takes hidden states, which a database does not hold"),
        ({"image_encoder": str(tmp_path)}, "no image encoder at"),
        ({"checkpoint": "models/rdm/emoji"}, "checkpoint models/rdm/emoji and generator"),
    ]
    for changed, words in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
            rdm.load(**{**sd.arguments, **changed})
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="adapter=x without a generator"):
        rdm.load(adapter="x")
    # Of these, only the first image can tell.
    lacking = rdm.load(**{**sd.arguments, "adapter": alone, "database": sd.other})
    with pytest.raises(ValueError, match="has no image encoder.*other_clip, width 8"):
        draw(ways.texts, lacking, [PROMPT], **FEW)
    trusting = rdm.load(**{**sd.arguments, "adapter": wide, "image_encoder": "database"})
    with pytest.raises(ValueError, match="vectors of width 8 by .*clip, adapter .* takes 12"):
        draw(ways.texts, trusting, [PROMPT], **FEW)


def test_the_embedder_of_the_database_can_be_named_as_the_encoder(sd: Tiny, drawn_by: Pipeline, tmp_path: Path) -> None:
    """The adapter then needs no encoder of its own; the image is the same."""
    (tmp_path / "alone").mkdir()
    file = tmp_path / "alone" / "ip-adapter.safetensors"
    file.write_bytes(Path(sd.adapter).read_bytes())
    model = rdm.load(**{**sd.arguments, "adapter": str(file), "image_encoder": "database"})
    made = [draw(ways.texts, each, [PROMPT], **FEW) for each in (drawn_by, model)]
    assert torch.equal(made[0].images, made[1].images)
    save(made[1], model, tmp_path, "a")
    record = read_record(tmp_path / "a-000.png")
    assert record["generator"]["image_encoder"] == "database" and "image_encoder_sha256" not in record["generator"]
    assert torch.equal(make_again(record)[0].images, made[1].images)


def test_pictures_that_are_lost_are_named_with_the_reason_why_they_are_needed(sd: Tiny, tmp_path: Path) -> None:
    import shutil

    from pictures import QUIET, write_pictures

    from rdm.retrieval.builder.build import build_database
    from rdm.retrieval.config import embedder_config, load_embedder

    write_clip(tmp_path / "clip", 5)
    source = write_pictures(tmp_path / "pictures", 6)
    build_database(tmp_path / "db", source, load_embedder(embedder_config(str(tmp_path / "clip"))), **QUIET)
    shutil.rmtree(tmp_path / "pictures")
    model = rdm.load(**{**sd.arguments, "database": str(tmp_path / "db")})
    with pytest.raises((ValueError, OSError), match="another encoder .*clip. than the adapter's"):
        draw(ways.texts, model, [PROMPT], **FEW)


def test_memory_is_computed_from_the_weights_and_the_images(sd: Tiny, drawn_by: Pipeline) -> None:
    draw(ways.texts, drawn_by, [PROMPT], **FEW)
    model: Any = drawn_by.model
    pipe, counted = model._loaded[1], parameters_of(Path(sd.pipeline))
    for name in ("unet", "vae", "text_encoder"):
        own = sum(p.numel() for key, p in getattr(pipe, name).named_parameters() if "_ip" not in key)
        own -= sum(p.numel() for p in pipe.unet.encoder_hid_proj.parameters()) if name == "unet" else 0
        assert abs(counted[name] - own) <= 16  # position numbers of the text encoder
    weights, common = {"a": 1000, "b": 3000}, {"channels": 16, "batch": 2, "itemsize": 2}
    image = 4 * 16 * 2 * 100
    for offload, expected in {"none": 4000, "model": 3000, "sequential": 60}.items():
        assert forecast(weights, (10, 10), offload=offload, **common) == 2 * (expected + image)
    assert tile_side(64, channels=16, batch=1, itemsize=4, multiple=8) == 64
    assert tile_side("2MB", channels=16, batch=1, itemsize=4, multiple=8) == 88  # 88.4 pixels
    check_memory("a", 10, None, "")
    check_memory("a", 10, 10, "")
    with pytest.raises(ValueError, match=r"a needs about 2\.0 GB .*1\.0 GB are free; less"):
        check_memory("a", 2 * 10**9, 10**9, "less")


def test_without_the_extra_everything_else_works_and_the_message_says_what_to_install(sd: Tiny) -> None:
    """Sampling with our own models imports nothing of the extra."""
    code = f"""
import sys
sys.modules["diffusers"] = None  # as if it were not installed
import rdm
try:
    rdm.load(generator={sd.pipeline!r}, adapter={sd.adapter!r}, database={sd.database!r})
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "needs the package diffusers" in done.stdout and "[generators]" in done.stdout
    code = "import sys, rdm.sampling.record, rdm.generators; print([m for m in ('diffusers',) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pictures_are_embedded_alone_and_once(sd: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rdm.load(**{**sd.arguments, "adapter": sd.plus})
    drawing: Any = model.model
    seen, embed = [], type(drawing.image_encoder()).embed
    monkeypatch.setattr(
        type(drawing.image_encoder()), "embed", lambda self, picture: seen.append(picture) or embed(self, picture)
    )
    samples = draw(ways.texts, model, [PROMPT] * 3, batch_size=3, **FEW)
    assert len(seen) == len(np.unique(samples.request.retrieved.rows)) == 2
