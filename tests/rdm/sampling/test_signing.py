"""Signed records: what a signature proves after every kind of change, and the command that checks it."""

from __future__ import annotations

import io
import json
import os
import runpy
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import draw
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rdm.sampling import ways
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import KEYWORD, make_again, read_record, save
from rdm.sampling.signing import SIGNATURE, Key, Verdict, new_key, pixels_hash, read_key, verified

ROOT = Path(__file__).parents[3]
KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
FAST = {"k": 2, "seed": 3, "steps": 1, "sampler": "ddim"}
Texts = dict[str, str]


@pytest.fixture(scope="module")
def image(loaded: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A signed image."""
    folder = tmp_path_factory.mktemp("signed")
    save(draw(ways.texts, loaded, ["a red flag"], **FAST), loaded, folder, "a", neighbours=True, key=KEY)
    return (folder / "a-000.png").read_bytes()


def opened(data: bytes) -> tuple[Image.Image, Texts]:
    picture: Any = Image.open(io.BytesIO(data))
    return picture, dict(picture.text)


def written(picture: Image.Image, texts: Texts, form: str = "PNG", **options: Any) -> bytes:
    info, buffer = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    picture.save(buffer, form, **({"pnginfo": info} if form == "PNG" else {}), **options)
    return buffer.getvalue()


def with_chunk(data: bytes, name: bytes, content: bytes) -> bytes:
    """A PNG file with a further chunk behind its header, which has 33 bytes."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return data[:33] + struct.pack(">I", len(content)) + name + content + checksum + data[33:]


def one_pixel(data: bytes) -> bytes:
    picture, texts = opened(data)
    pixels = np.array(picture)
    pixels[5, 6, 1] ^= 1
    return written(Image.fromarray(pixels), texts)


def changed(data: bytes, name: str = KEYWORD, **parts: Any) -> bytes:
    """With other values in the JSON of a text."""
    picture, texts = opened(data)
    return written(picture, {**texts, name: json.dumps({**json.loads(texts[name]), **parts})})


def without(data: bytes, *names: str) -> bytes:
    picture, texts = opened(data)
    return written(picture, {name: text for name, text in texts.items() if name not in names})


def turned(data: bytes) -> bytes:
    picture, texts = opened(data)
    return written(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), texts)


def grafted(data: bytes, key: Key = OTHER) -> bytes:
    """With a changed record under a signature that another key made, but that names the first one."""
    picture, texts = opened(data)
    texts[KEYWORD] = json.dumps({**json.loads(texts[KEYWORD]), "seed": 4})
    texts[SIGNATURE] = json.dumps({**json.loads(key.signature(texts[KEYWORD], picture)), "key": KEY.name})
    return written(picture, texts)


def record_hash(data: bytes) -> bytes:
    """With a changed record, whose new hash the signature names."""
    edited = changed(data, seed=4)
    own = json.loads(opened(edited)[1][SIGNATURE])
    new = json.loads(KEY.signature(opened(edited)[1][KEYWORD], opened(edited)[0]))
    return changed(edited, SIGNATURE, **{**own, "record_sha256": new["record_sha256"]})


def resigned(data: bytes) -> bytes:
    picture, texts = opened(data)
    return written(picture, {**texts, SIGNATURE: OTHER.signature(texts[KEYWORD], picture)})


def respaced(data: bytes) -> bytes:
    picture, texts = opened(data)
    return written(picture, {**texts, KEYWORD: json.dumps(json.loads(texts[KEYWORD]), indent=1)})


def spoilt(data: bytes, text: str) -> bytes:
    picture, texts = opened(data)
    return written(picture, {**texts, SIGNATURE: text})


SAME: dict[str, Callable[[bytes], bytes]] = {
    "as it was written": lambda data: data,
    "compressed anew": lambda data: written(*opened(data), compress_level=0),
    "with a text of another program": lambda data: with_chunk(data, b"tEXt", b"Title\0a flag"),
}
TAMPERED: dict[str, tuple[Callable[[bytes], bytes], Verdict]] = {
    "a bit of a pixel": (one_pixel, Verdict.PIXELS),
    "turned": (turned, Verdict.PIXELS),
    "cropped": (lambda data: written(opened(data)[0].crop((0, 0, 8, 8)), opened(data)[1]), Verdict.PIXELS),
    "grey": (lambda data: written(opened(data)[0].convert("L"), opened(data)[1]), Verdict.PIXELS),
    "transparent": (lambda data: written(opened(data)[0].convert("RGBA"), opened(data)[1]), Verdict.PIXELS),
    "brighter": (lambda data: with_chunk(data, b"gAMA", struct.pack(">I", 20_000)), Verdict.PIXELS),
    "animated": (lambda data: with_chunk(data, b"acTL", struct.pack(">II", 1, 0)), Verdict.PIXELS),
    "another seed": (lambda data: changed(data, seed=4), Verdict.RECORD),
    "another licence": (lambda data: changed(data, neighbours=[]), Verdict.RECORD),
    "a further entry": (lambda data: changed(data, note="mine"), Verdict.RECORD),
    "other blanks": (respaced, Verdict.RECORD),
    "no record": (lambda data: without(data, KEYWORD), Verdict.RECORD),
    "a second record": (lambda data: with_chunk(data, b"tEXt", b"rdm\0{}"), Verdict.RECORD),
    "record and pixel": (lambda data: one_pixel(changed(data, seed=4)), Verdict.BOTH),
    "no signature": (lambda data: without(data, SIGNATURE), Verdict.NOT_SIGNED),
    "no text at all": (lambda data: without(data, SIGNATURE, KEYWORD), Verdict.NOT_SIGNED),
    "as JPEG": (lambda data: written(opened(data)[0], {}, "JPEG"), Verdict.NOT_SIGNED),
    "as WebP": (lambda data: written(opened(data)[0], {}, "WEBP", lossless=True), Verdict.NOT_SIGNED),
    "another key": (resigned, Verdict.OTHER_KEY),
    "the name of another key": (lambda data: changed(data, SIGNATURE, key=OTHER.name), Verdict.OTHER_KEY),
    "a record that another key signed": (grafted, Verdict.FORGED),
    "the hash of a changed record": (record_hash, Verdict.FORGED),
    "another code": (lambda data: changed(data, SIGNATURE, code="0" * 64), Verdict.FORGED),
    "a code that is no ASCII": (lambda data: changed(data, SIGNATURE, code="\u00e9"), Verdict.FORGED),
    "a number as code": (lambda data: changed(data, SIGNATURE, code=1), Verdict.FORGED),
    "an unknown algorithm": (lambda data: changed(data, SIGNATURE, algorithm="none"), Verdict.FORGED),
    "no JSON": (lambda data: spoilt(data, "{"), Verdict.FORGED),
    "deep JSON": (lambda data: spoilt(data, "[" * 100_000), Verdict.FORGED),
    "a list": (lambda data: spoilt(data, "[]"), Verdict.FORGED),
    "cut off": (lambda data: data[: len(data) // 2], Verdict.UNREADABLE),
    "no picture": (lambda _: b"a text", Verdict.UNREADABLE),
    "empty": (lambda _: b"", Verdict.UNREADABLE),
}


@pytest.mark.parametrize("how", SAME)
def test_what_leaves_pixels_and_record_leaves_the_signature(image: bytes, how: str) -> None:
    result = verified(SAME[how](image), KEY)
    assert (result.verdict, result.is_good) == (Verdict.SIGNED, True), result.words()


@pytest.mark.parametrize("how", TAMPERED)
def test_every_change_is_noticed_and_named(image: bytes, how: str) -> None:
    change, expected = TAMPERED[how]
    result = verified(change(image), KEY)
    assert (result.verdict, result.is_good) == (expected, False), result.words()
    assert result.words().startswith(expected.value) and "\n" not in result.words()


def test_no_byte_of_the_file_can_be_changed_into_another_claim(image: bytes) -> None:
    """Whatever single byte is inverted: the file is still the same picture with the same record, or it is not good."""
    picture, texts = opened(image)
    seen = set()
    for place in range(0, len(image), 7):
        other = image[:place] + bytes([image[place] ^ 255]) + image[place + 1 :]
        result = verified(other, KEY)
        seen.add(result.verdict)
        if result.is_good:
            again, kept = opened(other)
            assert pixels_hash(again) == pixels_hash(picture) and kept[KEYWORD] == texts[KEYWORD], place
    assert Verdict.UNREADABLE in seen


def test_a_signature_of_one_image_does_not_fit_another(loaded: Pipeline, image: bytes, tmp_path: Path) -> None:
    save(draw(ways.texts, loaded, ["a blue flag"], **{**FAST, "seed": 9}), loaded, tmp_path, "b", key=KEY)
    other = (tmp_path / "b-000.png").read_bytes()
    assert verified(other, KEY).is_good
    picture, texts = opened(other)
    assert verified(written(opened(image)[0], texts), KEY).verdict is Verdict.PIXELS
    assert verified(written(picture, {**texts, SIGNATURE: opened(image)[1][SIGNATURE]}), KEY).verdict is Verdict.BOTH


def test_a_signed_image_is_the_same_image(loaded: Pipeline, image: bytes, tmp_path: Path) -> None:
    samples = draw(ways.texts, loaded, ["a red flag"], **FAST)
    save(samples, loaded, tmp_path, "a", neighbours=True)
    plain = tmp_path / "a-000.png"
    assert without(image, SIGNATURE) == without(plain.read_bytes())
    assert SIGNATURE not in opened(plain.read_bytes())[1]
    (tmp_path / "signed.png").write_bytes(image)
    assert read_record(tmp_path / "signed.png") == read_record(plain)
    save(*make_again(read_record(tmp_path / "signed.png")), tmp_path, "again", key=KEY)
    assert (tmp_path / "again-000.png").read_bytes() == image


def test_pictures_of_neighbours_are_not_signed(loaded: Pipeline, tmp_path: Path) -> None:
    """They were not made here; on a page, a user could have sent them."""
    save(draw(ways.texts, loaded, ["a red flag"], **FAST), loaded, tmp_path, "a", neighbours=True, key=KEY)
    assert verified((tmp_path / "a-000-neighbour-0.png").read_bytes(), KEY).verdict is Verdict.NOT_SIGNED


def test_a_key_file_is_for_its_owner_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys" / "mine"
    before = os.umask(0)
    try:
        key = new_key(file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_key(file) == key and len(key.secret) == 32 and not caplog.records
    assert new_key(tmp_path / "other") != key
    with pytest.raises(FileExistsError):
        new_key(file)
    assert read_key(file) == key
    assert key.secret.hex() not in repr(key) + key.name
    file.chmod(0o644)
    assert read_key(file) == key and str(file) in caplog.text
    assert key.secret.hex() not in caplog.text


@pytest.mark.parametrize("content", [b"", b"secret", b"\xff\xfe", b"rdm-key hmac-sha256 " + b"g" * 64 + b"\n"])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ValueError, match=r"key.*--new-key") as error:
        read_key(tmp_path / "key")
    assert "\n" not in str(error.value) and "secret" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="none.*--new-key"):
        read_key(tmp_path / "none")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a script; gives its exit code and what it printed."""

    def run(script: str, *words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        code: Any = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out + said.err

    return run


def test_the_commands_sign_and_check(command: Any, loaded: Pipeline, tmp_path: Path) -> None:
    assert command("verify.py", "--new-key", tmp_path / "key")[0] == 0
    assert command("verify.py", "--new-key", tmp_path / "other")[0] == 0
    code, said = command("verify.py", "--new-key", tmp_path / "key")
    assert code == 2 and len(said.splitlines()) == 1 and str(tmp_path / "key") in said
    words = ["--ckpt", loaded.path, "--steps", 1, "--outdir", tmp_path, "--n_samples", 2, "--sign", tmp_path / "key"]
    assert command("txt2img.py", "--prompt", "a red flag", *words)[0] == 0
    files = [tmp_path / f"txt2img-00{number}.png" for number in range(2)]
    code, said = command("verify.py", *files, "--key", tmp_path / "key")
    assert code == 0
    assert said.splitlines() == [f"{file}: {Verdict.SIGNED.value}" for file in files]
    files[1].write_bytes(one_pixel(files[1].read_bytes()))
    code, said = command("verify.py", tmp_path / "none.png", *files, "--key", tmp_path / "key")
    assert code == 1
    assert [line.partition(": ")[2] for line in said.splitlines()] == [
        "no such file",
        Verdict.SIGNED.value,
        Verdict.PIXELS.value,
    ]
    code, said = command("verify.py", files[0], "--key", tmp_path / "other")
    assert code == 1 and Verdict.OTHER_KEY.value in said
    for words in (["--key", tmp_path / "none", files[0]], ["--key", tmp_path / "key"], ["--new-key", "a", files[0]]):
        assert command("verify.py", *words)[0] == 2


@pytest.mark.parametrize("script", ["txt2img.py", "sample.py", "class2img.py", "edit.py", "web.py"])
def test_a_wrong_key_ends_a_command_before_anything_is_loaded(command: Any, script: str, tmp_path: Path) -> None:
    needed = {"txt2img.py": ["--prompt", "a"], "class2img.py": ["--class", "a"], "edit.py": ["--image", "a"]}
    (tmp_path / "key").write_text("secret")
    flag = "--key" if script == "web.py" else "--sign"
    code, said = command(script, *needed.get(script, []), "--ckpt", "none", flag, tmp_path / "key")
    assert code == 2 and f"{tmp_path / 'key'} is no key file" in said and "secret" not in said
