"""The studio: places, limits, and drawing with a preview, a stop, and no file left."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.pictures import to_uint8
from rdm.loading import with_database
from rdm.sampling import ways
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.samples import sample
from rdm.sampling.settings import Settings
from rdm.web import drawing
from rdm.web.asking import Ask, Between, between, jobs, settings_of
from rdm.web.drawing import Drawn, Step
from rdm.web.editing import Edit, cropped, job
from rdm.web.inspection import again, inspected
from rdm.web.studio import Studio

TWO = {"steps": 2}


def images_of(studio: Studio, asked: list[drawing.Job]) -> list[Drawn]:
    return [event for event in studio.draw(asked) if isinstance(event, Drawn)]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def expected(images: torch.Tensor) -> list[np.ndarray]:
    return [to_uint8(image).permute(1, 2, 0).numpy() for image in images]


def test_a_database_divides_into_the_parts_that_its_values_make(studio: Studio) -> None:
    places = studio.places()
    assert places[0] == "flags" and "flags: style=noto" in places and "flags: style=*" in places
    assert "flags: category=flags" not in places  # all rows have it
    styles = [place for place in places if place.startswith("flags: style=") and "*" not in place]
    assert studio.expanded(["flags: style=*"]) == styles and len(styles) == 5
    assert studio.expanded([]) == ["flags"]
    noto = studio.pipeline("flags: style=noto")
    assert set(noto.retriever.database.values("style", noto.retriever.rows)) == {"noto"}
    assert noto.model is studio.pipeline().model and studio.pipeline("flags: style=noto") is noto
    for place, words in (("none", "database 'none'.*flags"), ("flags: style=none", "style=none"), ("flags: x", "'x'")):
        with pytest.raises(ValueError, match=words):
            studio.pipeline(place)
    with pytest.raises(ValueError, match="column among style"):
        studio.expanded(["flags: caption=*"])


def test_the_same_words_and_seeds_make_the_bits_of_python_in_every_place(studio: Studio, loaded: Pipeline) -> None:
    ask = Ask(words=["a flag", " ", "the sun"], n=2, seed=5, places=["flags", "flags: style=noto"], settings=TWO)
    drawn = images_of(studio, jobs(studio, ask))
    assert [(image.place, image.number) for image in drawn] == [(place, n) for place in ask.places for n in range(4)]
    for place, images in ((place, [each for each in drawn if each.place == place]) for place in ask.places):
        rules = [place.partition(": ")[2]] if ": " in place else []
        request = ways.texts(with_database(loaded, only=rules), ["a flag", "a flag", "the sun", "the sun"], seed=5)
        made = sample(loaded, request, Settings(steps=2))
        for image, wanted in zip(images, expected(made.images), strict=True):
            np.testing.assert_array_equal(pixels(image.png), wanted)
        assert [image.record["seed"] for image in images] == [5, 6, 7, 8]
        assert all(len(image.neighbours) == len(image.record["neighbours"]) == loaded.k for image in images)
    assert list(studio.folder.iterdir()) == []


def test_every_way_asks_what_python_asks(studio: Studio, loaded: Pipeline) -> None:
    picture = Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3))
    wanted = [
        (Ask(way="class", words=["flag"], by="label", seed=2), ways.classes(loaded, ["flag"], by="label", seed=2)),
        (Ask(way="class", words=["flag"], tokens="both"), ways.classes(loaded, ["flag"], tokens="both")),
        (Ask(way="picture", picture=picture, n=2), ways.image(loaded, picture, 2)),
        (Ask(way="popular", n=2, top_m=0.5), ways.popular(loaded, 2, top_m=0.5)),
        (Ask(words=["a flag"], negative="red"), ways.texts(loaded, ["a flag"], negative="red")),
    ]
    for ask, request in wanted:
        made = expected(sample(loaded, request, Settings(steps=2)).images)
        for image, image_of_python in zip(
            images_of(studio, jobs(studio, replace(ask, settings=TWO))), made, strict=True
        ):
            np.testing.assert_array_equal(pixels(image.png), image_of_python)


def test_edits_and_strips_have_the_bits_of_python(studio: Studio, loaded: Pipeline) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    mask = Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), 4)).convert("RGB")
    small = cropped(picture, 16)
    shared = {"picture": picture, "settings": {"steps": 3}, "prompt": "a flag", "seed": 1}
    wanted = [
        (Edit(way="inpaint", mask=mask, **shared), {"mask": mask}),
        (Edit(way="outpaint", outpaint=(0, 8, 0, 0), **shared), {"outpaint": [0, 8, 0, 0]}),
        (Edit(way="vary", strength=0.5, **shared), {"strength": 0.5}),
        (Edit(way="invert", **shared), {"invert": True}),
    ]
    for ask, options in wanted:
        (image,) = images_of(studio, [job(studio, ask)])
        (of_python,) = loaded.edit(small, "a flag", seed=1, steps=3, **options)
        np.testing.assert_array_equal(pixels(image.png), np.asarray(of_python))
        assert image.edited is not None and pixels(image.edited).shape == pixels(image.png).shape
        assert list(image.sources) == (["picture", "mask"] if ask.way == "inpaint" else ["picture"])
        made_again = again(studio, inspected(studio, image.png), list(image.sources.values()))
        (same,) = images_of(studio, [made_again])
        np.testing.assert_array_equal(pixels(same.png), pixels(image.png))
    np.testing.assert_array_equal(pixels(image.sources["picture"]), np.asarray(small))
    strip = images_of(studio, [between(studio, Between(start="a flag", end="the sun", n=3, seed=4, settings=TWO))])
    made = sample(loaded, ways.between(loaded, "a flag", "the sun", 3, seed=4), Settings(steps=2))
    for image, wanted_image in zip(strip, expected(made.images), strict=True):
        np.testing.assert_array_equal(pixels(image.png), wanted_image)


def test_a_mask_is_kept_only_if_its_pixels_are_those_of_the_record(studio: Studio) -> None:
    picture = Image.radial_gradient("L").convert("RGB").resize((16, 16))
    soft = Image.linear_gradient("L").resize((16, 16))
    for mask, kept in ((soft, ["picture", "mask"]), (Image.merge("RGB", [soft, soft, soft.rotate(90)]), ["picture"])):
        ask = Edit(way="inpaint", picture=picture, mask=mask.convert("RGB"), prompt="a flag", settings={"steps": 2})
        (image,) = images_of(studio, [job(studio, ask)])
        assert list(image.sources) == kept


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"words": []}, "no text"),
        ({"words": ["x" * 61]}, "61 characters in a prompt, expected at most 60"),
        ({"words": [5]}, "prompt=5"),
        ({"n": 9}, "9 images in a request, expected at most 8"),
        ({"n": 2, "places": ["flags: style=*"]}, "10 images"),
        ({"n": 0}, "n=0"),
        ({"k": 9}, "9 neighbours"),
        ({"k": "4"}, "k='4'"),
        ({"seed": -1}, "seed=-1"),
        ({"way": "dream"}, "'dream'"),
        ({"way": "class", "words": []}, "no class"),
        ({"way": "class", "words": ["unicorn"]}, "no class 'unicorn'"),
        ({"way": "picture"}, "no picture"),
        ({"tokens": "all"}, "'all'"),
        ({"places": ["none"]}, "'none'"),
        ({"settings": {"steps": 101}}, "101 denoising steps of an image, expected at most 100"),
        ({"settings": {"sampler": "ddpm"}}, "denoising steps"),  # which takes all 1000 by itself
        ({"settings": {"height": 64, "steps": 2}}, "64 pixels at a side"),
        ({"settings": {"best_of": 9, "steps": 2}}, "9 images"),
        ({"settings": {"reject_copies": 8, "steps": 2}}, "9 images"),
        ({"n": 5, "settings": {"retrieve_below": 0.3, "steps": 2}}, "10 images"),
        ({"settings": {"weaker": "models/rdm/emoji"}}, "weaker.*does not have"),
        ({"settings": {"compile": True}}, "compile"),
        ({"settings": {"stepz": 3}}, "stepz.*steps"),
        ({"settings": {"steps": "many"}}, "steps='many'"),
    ],
)
def test_what_is_wrong_or_too_much_is_refused_in_one_line(studio: Studio, changed: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        jobs(studio, replace(Ask(words=["a flag"], settings=TWO), **changed))
    assert "\n" not in str(caught.value)


def test_edits_that_lack_something_are_refused(studio: Studio) -> None:
    picture = Image.new("RGB", (16, 16))
    ask = Edit(way="inpaint", picture=picture, settings=TWO)
    for changed, words in (
        ({}, "nothing is painted"),
        ({"mask": Image.new("RGB", (16, 16))}, "nothing is painted"),
        ({"picture": None}, "no picture"),
        ({"way": "smear"}, "'smear'"),
        ({"way": "outpaint"}, "outpaint"),
        ({"way": "outpaint", "outpaint": (0, 0, 0, 40)}, "pixels at a side"),
        ({"way": "vary", "side": 64}, "64 pixels at a side"),
        ({"way": "vary", "strength": 2}, "strength=2"),
        ({"way": "outpaint", "outpaint": (0, 0, 0, 8), "repeats": 2, "settings": {"steps": 60}}, "120 denoising steps"),
        ({"repeats": 0}, "repeats=0"),
        ({"way": "vary", "strength": 0.5, "prompt": "x" * 61}, "61 characters"),
    ):
        with pytest.raises(ValueError, match=words):
            job(studio, replace(ask, **changed))
    with pytest.raises(ValueError, match="one text, expected two"):
        between(studio, Between(start="a flag", end=" "))


def test_a_preview_is_shown_and_a_stop_ends_sampling_at_the_next_step(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "PREVIEW", 0.0)
    asked = jobs(studio, Ask(words=["a flag"], n=3, settings={"steps": 4}))
    events = list(studio.draw(asked))
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.share for step in steps] == pytest.approx([number / 12 for number in range(1, 13)])
    assert [step.preview is None for step in steps] == [number == 12 for number in range(1, 13)]
    assert pixels(steps[0].preview or b"").shape == (16, 16, 3)
    seen: list[Step | Drawn] = []
    for event in studio.draw(asked, "somebody"):
        seen.append(event)
        assert not studio.stop("somebody else")
        if isinstance(event, Drawn):
            assert studio.stop("somebody")
    assert sum(isinstance(event, Drawn) for event in seen) < 3
    assert not studio.stop("somebody")
    assert len(images_of(studio, asked)) == 3  # the lock is free again


def test_an_abandoned_drawing_frees_the_model(studio: Studio) -> None:
    asked = jobs(studio, Ask(words=["a flag"], n=6, settings={"steps": 20}))
    events = studio.draw(asked)
    next(events)
    events.close()
    assert studio.lock.acquire(timeout=10)
    studio.lock.release()


def test_settings_are_those_of_the_one_record() -> None:
    assert settings_of({"steps": 3, "interval": [0, 500], "scale": 3}) == Settings(steps=3, interval=(0, 500), scale=3)
    assert settings_of({"copy_threshold": None}).copy_threshold is None


def test_a_studio_removes_its_folder_and_refuses_what_it_cannot_serve(loaded: Pipeline) -> None:
    with Studio({"flags": loaded}) as opened, opened.temporary() as folder:
        (folder / "file").write_text("x")
        assert folder.is_relative_to(opened.folder)
    assert not opened.folder.exists()
    for pipelines, words in (({}, "no database"), ({"a: b": loaded}, "without a colon"), ({"": loaded}, "''")):
        with pytest.raises(ValueError, match=words):
            Studio(pipelines)
