"""Edits of pictures with a tiny model and database, and their reproduction from records."""

import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import draw
from PIL import Image
from toy import ROOT, rdm_config, ship

from ldm.metrics import psnr
from rdm.loading import Loaded, load
from rdm.retrieval.queries import mix
from rdm.sampling import ways
from rdm.sampling.canvas import open_canvas
from rdm.sampling.edit import edit, fidelity
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import make_again, read_record, save

FAST = {"k": 2, "seed": 3, "steps": 4, "scale": 2.0, "sampler": "ddim"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("system")
    return Pipeline.load(str(ship(folder / "model", rdm_config(folder))))


@pytest.fixture
def files(loaded: Loaded, tmp_path: Path) -> Path:
    """Returns a folder with the picture of database row 7, and a mask that is white in its right half."""
    Image.fromarray(loaded.retriever.database.patches([7])[0]).save(tmp_path / "a.png")
    write_mask(tmp_path / "mask.png", 0, 255)
    return tmp_path


def write_mask(path: Path, left: int, right: int) -> None:
    Image.fromarray(np.repeat(np.uint8([[left] * 8 + [right] * 8]), 16, axis=0)).save(path)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_what_the_mask_keeps_is_the_pictures_own_to_the_bit(loaded: Loaded, files: Path) -> None:
    samples = draw(edit, loaded, files / "a.png", 2, mask=files / "mask.png", repeats=2, **FAST)
    grid = save(samples, loaded, files, "edit")
    source, made = pixels(files / "a.png"), [pixels(files / f"edit-00{i}.png") for i in (0, 1)]
    for each in made:
        assert np.array_equal(each[:, :8], source[:, :8]) and not np.array_equal(each[:, 8:], source[:, 8:])
    assert not np.array_equal(*made)
    assert np.array_equal(pixels(grid)[2:18, 2:18], source) and np.array_equal(pixels(grid)[2:18, 20:36], made[0])


def test_masks_that_keep_all_nothing_or_half(loaded: Loaded, files: Path) -> None:
    def images(left: int, right: int, **options: object) -> torch.Tensor:
        write_mask(files / "mask.png", left, right)
        options = {"prompt": "white flag", **FAST, **options}
        return draw(edit, loaded, files / "a.png", mask=files / "mask.png", **options).images

    picture = open_canvas(files / "a.png", strength=0.0).picture
    assert torch.equal(images(0, 0), picture)
    anew = images(255, 255)
    assert torch.equal(anew, draw(ways.texts, loaded, ["white flag"], **FAST).images)
    half = images(0, 255)
    torch.testing.assert_close(images(0, 204), picture + 0.8 * (half - picture))  # a grey mask blends both
    alone = loaded.model.to_image(loaded.model.to_latent(picture)).clamp(-1, 1)  # a mask below 0.5 keeps the latent
    torch.testing.assert_close(images(51, 51), picture + 0.2 * (alone - picture))


def test_strength_goes_from_the_picture_to_a_sample(loaded: Loaded, files: Path) -> None:
    def images(strength: float) -> torch.Tensor:
        return draw(edit, loaded, files / "a.png", prompt="white flag", strength=strength, **FAST).images

    picture, model = open_canvas(files / "a.png", strength=0.0).picture, loaded.model
    assert torch.equal(images(0.0), model.to_image(model.to_latent(picture)).clamp(-1, 1))
    assert torch.equal(images(1.0), draw(ways.texts, loaded, ["white flag"], **FAST).images)
    assert not torch.equal(images(0.5), images(1.0)) and not torch.equal(images(0.5), images(0.0))


def test_a_canvas_is_extended_on_each_side(loaded: Loaded, files: Path) -> None:
    samples = draw(edit, loaded, files / "a.png", outpaint=(2, 0, 6, 4), **FAST)
    save(samples, loaded, files, "edit")
    made = pixels(files / "edit-000.png")
    assert made.shape == (20, 24, 3)
    assert np.array_equal(made[:16, 2:18], pixels(files / "a.png"))
    assert Image.open(files / "edit-grid.png").size == (2 + 4 * 26, 2 + 22)
    assert samples.request.retrieved.rows[0, 0] == 7  # there is no prompt, and the kept part is row 7


def write_odd(folder: Path, height: int = 17, width: int = 23) -> np.ndarray:
    """Writes a picture with sides that the model cannot halve, and a mask whose white area touches two borders."""
    down, across = np.mgrid[:height, :width]
    picture = np.stack([12 * down, 9 * across, 255 - 5 * (down + across)], axis=2).astype(np.uint8)
    paint = np.zeros((height, width), dtype=np.uint8)
    paint[9:, 12:] = 255
    Image.fromarray(picture).save(folder / "odd.png")
    Image.fromarray(paint).save(folder / "odd-mask.png")
    edges = ((0, 1), (0, 1))  # the same two, continued to even sides
    Image.fromarray(np.pad(picture, (*edges, (0, 0)), mode="edge")).save(folder / "even.png")
    Image.fromarray(np.pad(paint, edges, mode="edge")).save(folder / "even-mask.png")
    return picture.astype(int)


ODD = {
    "mask": {"mask": "mask", "repeats": 2},
    "strength": {"strength": 0.6},
    "tiles": {"strength": 0.6, "tile": 16},
}


@pytest.mark.parametrize("way", ODD)
@pytest.mark.parametrize("model", ["loaded", "with_references"])
def test_sides_that_do_not_divide_are_padded_inside_and_cut_back(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, way: str
) -> None:
    used, source = request.getfixturevalue(model), write_odd(tmp_path)

    def images(name: str) -> torch.Tensor:
        options = dict(ODD[way])
        if way == "mask":
            options["mask"] = tmp_path / f"{name}-mask.png"
        return draw(edit, used, tmp_path / f"{name}.png", prompt="white flag", **FAST, **options).images

    made = images("odd")
    assert made.shape == (1, 3, 17, 23)
    assert torch.equal(made, images("even")[..., :17, :23])
    if way == "mask":
        shown = ((made[0].permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(int)
        kept = np.asarray(Image.open(tmp_path / "odd-mask.png")) == 0
        assert np.array_equal(shown[kept], source[kept]) and not np.array_equal(shown[~kept], source[~kept])


def test_a_canvas_that_does_not_divide_is_extended_inverted_and_made_again(loaded: Loaded, tmp_path: Path) -> None:
    source = write_odd(tmp_path)
    samples = draw(edit, loaded, tmp_path / "odd.png", outpaint=(2, 0, 6, 4), prompt="white flag", **FAST)
    grid = save(samples, loaded, tmp_path, "edit")
    made = pixels(tmp_path / "edit-000.png")
    assert made.shape == (21, 31, 3) and np.array_equal(made[:17, 2:25], source)
    assert Image.open(grid).size == (2 + 4 * 33, 2 + 23)
    again, with_ = make_again(read_record(tmp_path / "edit-000.png"))
    save(again, with_, tmp_path, "again")
    assert (tmp_path / "again-000.png").read_bytes() == (tmp_path / "edit-000.png").read_bytes()
    back = draw(edit, loaded, tmp_path / "odd.png", invert=True, **FAST | {"steps": 20})
    even = open_canvas(tmp_path / "even.png", strength=0.0).picture
    alone = loaded.model.to_image(loaded.model.to_latent(even)).clamp(-1, 1)[..., :17, :23]
    assert float((back.images - alone).abs().mean()) < 0.01
    expected = float(psnr(alone, open_canvas(tmp_path / "odd.png", strength=0.0).picture))
    assert fidelity(back, loaded) == pytest.approx([expected] * 2, abs=0.1)


def test_an_inversion_gives_the_picture_back(loaded: Loaded, files: Path) -> None:
    options = FAST | {"steps": 20}
    samples = draw(edit, loaded, files / "a.png", invert=True, **options)
    other = draw(edit, loaded, files / "a.png", invert=True, prompt="white flag", **options)
    alone = loaded.model.to_image(loaded.model.to_latent(samples.request.canvas.picture)).clamp(-1, 1)
    errors = [float((each.images - alone).abs().mean()) for each in (samples, other)]
    assert errors[0] < 0.01 < errors[1]
    assert fidelity(samples, loaded) == pytest.approx([float(psnr(alone, samples.request.canvas.picture))] * 2, abs=0.1)
    assert other.request.canvas.about["inverted_with_rows"] == samples.request.retrieved.rows[0].tolist()
    with pytest.raises(ValueError, match="without a picture"):
        fidelity(draw(ways.texts, loaded, ["white flag"], **FAST), loaded)


def test_neighbours_are_those_of_what_stays_or_of_the_prompt(loaded: Loaded, files: Path) -> None:
    embedder, options = loaded.retriever.embedder, {"mask": files / "mask.png", **FAST}
    canvas = open_canvas(files / "a.png", mask=files / "mask.png")
    assert torch.equal(canvas.visible(), canvas.picture[..., :8])
    own, text, red = embedder.images(canvas.visible()), embedder.texts(["white flag"]), embedder.texts(["red"])
    for given, wanted in (
        ({}, own),
        ({"negative": "red"}, mix([own, red], [1.0, -0.5])),
        ({"prompt": "white flag"}, text),
        ({"prompt": "white flag", "negative": "red", "negative_weight": 0.3}, mix([text, red], [1.0, -0.3])),
    ):
        samples = draw(edit, loaded, files / "a.png", **options, **given)
        assert samples.request.retrieved.rows.tolist() == loaded.retriever(wanted, 2).rows.tolist()
    both = draw(edit, loaded, files / "a.png", prompt="white flag", tokens="both", **options)
    assert not torch.equal(both.images, samples.images)


def test_an_edited_image_is_the_same_in_any_batch(loaded: Loaded, files: Path) -> None:
    def images(n: int, seed: int) -> torch.Tensor:
        options = FAST | {"seed": seed, "sampler": "ddpm", "repeats": 2, "batch_size": 2}
        return draw(edit, loaded, files / "a.png", n, mask=files / "mask.png", **options).images

    assert torch.equal(images(3, 3)[2:], images(1, 5))


WAYS = {
    "mask": {"repeats": 2, "strength": 0.9},
    "outpaint": {"outpaint": (0, 2, 0, 0)},
    "strength": {"strength": 0.6, "prompt": "white flag", "tokens": "both"},
    "invert": {"invert": True, "prompt": "white flag", "only": ["licence=MIT"]},
}


def test_open_pictures_are_edited_like_their_files(loaded: Pipeline, files: Path) -> None:
    """Neither the picture nor the mask has to be in a file; only a file can be read again from a record."""
    common = {"n": 1, "neighbours": 2, "seed": 3, "steps": 2, "repeats": 2}
    with Image.open(files / "a.png") as picture, Image.open(files / "mask.png") as mask:
        opened = loaded.edit(picture, mask=mask, **common)[0]
        turned = loaded.edit(picture.convert("P"), mask=mask.convert("1"), **common)[0]
        samples = draw(edit, loaded, picture, mask=mask, repeats=2, **FAST)
    filed = loaded.edit(files / "a.png", mask=files / "mask.png", **common)[0]
    assert opened.tobytes() == filed.tobytes() and turned.size == filed.size
    save(samples, loaded, files, "open")
    record = read_record(files / "open-000.png")
    assert record["edit"]["picture"] is None and len(record["edit"]["picture_sha256"]) == 64
    with pytest.raises(ValueError, match="picture in memory.*in a file"):
        make_again(record)
    with Image.open(files / "a.png") as picture:
        seen = draw(ways.image, loaded, picture, 1, tokens="both", **FAST)
        mixed = draw(ways.texts, loaded, ["flag"], image=picture, **FAST)
    assert torch.equal(seen.images, draw(ways.image, loaded, files / "a.png", 1, tokens="both", **FAST).images)
    assert torch.equal(mixed.images, draw(ways.texts, loaded, ["flag"], image=files / "a.png", **FAST).images)
    save(seen, loaded, files, "seen")
    with pytest.raises(ValueError, match="picture in memory"):
        make_again(read_record(files / "seen-000.png"))
    broken = Image.open(io.BytesIO((files / "a.png").read_bytes()[:100]))
    with pytest.raises(ValueError, match="picture in memory: unreadable"):
        loaded.edit(broken, strength=0.5)


def test_what_changes_nothing_is_said(loaded: Loaded, files: Path, caplog: pytest.LogCaptureFixture) -> None:
    def told(**options: object) -> str:
        caplog.clear()
        draw(edit, loaded, **({"picture": files / "a.png", "prompt": "flag"} | FAST | options))
        return caplog.text

    assert told(mask=files / "mask.png") == "" and told(strength=0.6) == ""
    write_mask(files / "black.png", 0, 100)
    assert f"mask {files}/black.png is black all over" in told(mask=files / "black.png")
    Image.new("RGB", (16, 16), "red").save(files / "red.png")
    said = told(mask=files / "red.png")
    assert "red.png has colours" in said and "red.png is black all over" in said
    assert "strength 0.001 is so small that none of the 4 steps" in told(strength=0.001)
    Image.new("RGBA", (16, 16), (255, 0, 0, 9)).save(files / "clear.png")
    assert f"{files}/clear.png is transparent in places" in told(picture=files / "clear.png", strength=0.6)
    pages = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    pages[0].save(files / "pages.tif", save_all=True, append_images=pages[1:])
    assert f"{files}/pages.tif: it has 2 pages" in told(picture=files / "pages.tif", strength=0.6)


@pytest.mark.parametrize("way", WAYS)
def test_an_edited_image_is_made_again_from_its_record(loaded: Loaded, files: Path, way: str) -> None:
    options = dict(WAYS[way])
    if way == "mask":
        options["mask"] = files / "mask.png"
    used = load(str(loaded.path), only=options.pop("only", []))
    save(draw(edit, used, files / "a.png", 2, **FAST, **options), used, files, "edit")
    record = read_record(files / "edit-001.png")
    again, with_ = make_again(record)
    save(again, with_, files, "again")
    assert (files / "again-000.png").read_bytes() == (files / "edit-001.png").read_bytes()
    for name in {"a.png", *({"mask.png"} if way == "mask" else {})}:
        kept = (files / name).read_bytes()
        Image.new("RGB", (16, 16)).save(files / name)
        with pytest.raises(ValueError, match=rf"{name} has sha256 .*, the image was made with .*; give that one"):
            make_again(record)
        (files / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"no picture at .*{name}"):
            make_again(record)
        (files / name).write_bytes(kept)


def test_a_loaded_model_edits(loaded: Pipeline, files: Path) -> None:
    (image,) = loaded.edit(files / "a.png", "white flag", mask=files / "mask.png", neighbours=2, seed=3, steps=4)
    made = draw(edit, loaded, files / "a.png", prompt="white flag", mask=files / "mask.png", **FAST).images[0]
    assert np.abs(np.asarray(image) - (made.permute(1, 2, 0).numpy() + 1) * 127.5).max() <= 0.5


def test_a_picture_is_scaled_with_its_mask(files: Path) -> None:
    Image.open(files / "a.png").resize((30, 20)).save(files / "large.png")
    Image.new("L", (30, 20)).save(files / "black.png")
    canvas = open_canvas(files / "large.png", mask=files / "black.png", size=8)
    assert canvas.picture.shape == (1, 3, 8, 8) and canvas.paint.shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got none, expected one of mask, outpaint and invert, or a strength alone"),
        ({"mask": "mask.png", "invert": True}, "got mask and invert, expected one of"),
        ({"mask": "small.png"}, r"mask .*small\.png has 8x16 pixels, expected the 16x16 of .*a\.png"),
        ({"mask": "white.png"}, "mask is white .*; give a prompt"),
        ({"mask": "clear.png"}, r"mask .*clear\.png is transparent in places"),
        ({"mask": "text.png"}, r"text\.png: unreadable image"),
        ({"mask": "none.png"}, r"no picture at .*none\.png"),
        ({"outpaint": (0, 0, 0, 0)}, r"outpaint=\(0, 0, 0, 0\), expected pixels at the left"),
        ({"outpaint": (0, 0, -2, 0)}, r"outpaint=\(0, 0, -2, 0\), expected pixels at the left"),
        ({"strength": 1.5}, "strength=1.5, expected a number from 0 to 1"),
        ({"strength": 0.5, "tokens": "both"}, "got tokens 'both' without a prompt"),
        ({"strength": 0.5, "prompt": " "}, "empty prompt"),
    ],
)
def test_wrong_input_is_refused(loaded: Loaded, files: Path, options: dict, message: str) -> None:
    Image.new("L", (8, 16)).save(files / "small.png")
    Image.new("L", (16, 16), 255).save(files / "white.png")
    Image.new("RGBA", (16, 16), (255, 255, 255, 0)).save(files / "clear.png")
    (files / "text.png").write_text("text")
    if "mask" in options:
        options = options | {"mask": files / options["mask"]}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        draw(edit, loaded, files / "a.png", **FAST, **options)


def test_the_script_edits_and_answers_in_one_line(
    loaded: Loaded, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(script: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *words, "--outdir", str(files / "out")])
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        return capsys.readouterr().out

    common = ("--ckpt", str(loaded.path), "--image", str(files / "a.png"), "--steps", "3", "--knn", "2")
    assert run("edit.py", *common, "--invert").startswith("the picture comes back at ")
    assert json.loads((files / "out/edit.json").read_text())["edit"]["invert"] is True
    run("sample.py", "--from-image", str(files / "out/edit-000.png"))
    assert (files / "out/again-000.png").read_bytes() == (files / "out/edit-000.png").read_bytes()
    with pytest.raises(SystemExit) as end:
        run("edit.py", *common)
    complaint = capsys.readouterr().err
    assert (end.value.code, complaint.splitlines()[-1][:16]) == (2, "error: got none,") and "Traceback" not in complaint
