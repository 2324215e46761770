"""The named endpoints over loopback, called by ``gradio_client``: the bits of Python, one line for what is wrong."""

import base64
import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import blocks, read
from PIL import Image

client = pytest.importorskip("gradio_client")

from ldm.pictures import to_uint8  # noqa: E402
from rdm.loading import with_database  # noqa: E402
from rdm.sampling.pipeline import Pipeline  # noqa: E402
from rdm.sampling.record import make_again, read_record  # noqa: E402
from rdm.sampling.samples import sample  # noqa: E402
from rdm.sampling.settings import OPTIONS, Settings  # noqa: E402
from rdm.sampling.ways import between, classes, image, popular  # noqa: E402
from rdm.web.asking import LEFT_OUT  # noqa: E402
from rdm.web.endpoints import changing, creating, describing  # noqa: E402
from rdm.web.studio import Studio  # noqa: E402

TWO = {"steps": 2}


@pytest.fixture(scope="module")
def api(address: str) -> Iterator[Any]:
    yield client.Client(address, verbose=False)


def content(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def pictures(answer: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(each["png"]))) for each in answer["images"]]


def assert_equal(answer: dict[str, Any], expected: list[Image.Image]) -> None:
    for made, of_python in zip(pictures(answer), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(made), np.asarray(of_python))


def of_request(loaded: Pipeline, request: Any) -> list[Image.Image]:
    images = sample(loaded, request, Settings(steps=2)).images
    return [Image.fromarray(to_uint8(each).permute(1, 2, 0).numpy()) for each in images]


def test_texts_give_the_bits_of_python_and_files_that_can_be_made_again(
    api: Any, loaded: Pipeline, tmp_path: Path
) -> None:
    answer = api.predict(["a flag", "the sun"], seed=3, settings=TWO, api_name="/texts")
    assert_equal(answer, loaded(["a flag", "the sun"], seed=3, steps=2))
    first = answer["images"][0]
    (tmp_path / "a.png").write_bytes(base64.b64decode(first["png"]))
    record = read_record(tmp_path / "a.png")
    assert record == first["record"] and record["prompt"] == "a flag" and record["seed"] == 3
    again, _ = make_again(record)
    np.testing.assert_array_equal(sample(loaded, again.request, Settings(steps=2)).images, again.images)
    assert len(first["neighbours"]) == len(record["neighbours"]) == loaded.k
    assert all(each["licence"] and each["attribution"] for each in record["neighbours"])


def test_chosen_rows_are_the_neighbours(api: Any) -> None:
    answer = api.predict(["a flag"], rows=[7, 3, 11], settings=TWO, api_name="/texts")
    assert [each["row"] for each in answer["images"][0]["record"]["neighbours"]] == [7, 3, 11]
    found = api.predict(["a flag"], settings=TWO, api_name="/texts")["images"][0]
    rows = [each["row"] for each in found["record"]["neighbours"]]
    same = api.predict(["a flag"], rows=rows, settings=TWO, api_name="/texts")["images"][0]
    assert same["png"] == found["png"] != answer["images"][0]["png"]


def test_classes_variations_and_popular_rows_give_the_bits_of_python(
    api: Any, loaded: Pipeline, tmp_path: Path
) -> None:
    answer = api.predict(["flag"], n=2, seed=1, by="label", settings=TWO, api_name="/classes")
    assert_equal(answer, of_request(loaded, classes(loaded, ["flag"] * 2, seed=1, by="label")))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    wanted = of_request(loaded, image(loaded, picture, 2))
    for given in (content(picture), client.handle_file(str(tmp_path / "picture.png"))):
        assert_equal(api.predict(given, n=2, settings=TWO, api_name="/variations"), wanted)
    answer = api.predict(n=2, top_m=0.5, settings=TWO, api_name="/popular")
    assert_equal(answer, of_request(loaded, popular(loaded, 2, top_m=0.5)))


def test_edits_and_strips_give_the_bits_of_python(api: Any, loaded: Pipeline) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    mask = Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), 4)).convert("RGB")
    answer = api.predict(
        content(picture), "inpaint", prompt="a flag", mask=content(mask), settings=TWO, api_name="/edit"
    )
    assert_equal(answer, loaded.edit(picture, "a flag", mask=mask, steps=2))
    answer = api.predict(content(picture), "vary", strength=0.5, n=2, seed=4, settings=TWO, api_name="/edit")
    assert_equal(answer, loaded.edit(picture, n=2, strength=0.5, seed=4, steps=2))
    answer = api.predict("a flag", "the sun", n=3, settings=TWO, api_name="/strip")
    assert_equal(answer, of_request(loaded, between(loaded, "a flag", "the sun", 3)))


def test_places_and_settings_say_what_can_be_asked(api: Any, served: Studio, loaded: Pipeline) -> None:
    places = api.predict(api_name="/places")
    assert places == served.places()
    settings = api.predict(api_name="/settings")
    assert {"steps", "scale", "sampler"} <= set(settings) and not set(LEFT_OUT) & set(settings)
    assert settings["scale"] == {"default": 2.0, "values": "a finite number", "what": OPTIONS["scale"].what}
    answer = api.predict(["a flag"], places=["flags: style=noto"], settings=TWO, api_name="/texts")
    assert_equal(answer, with_database(loaded, only=["style=noto"])("a flag", steps=2))


def test_every_endpoint_has_a_docstring(api: Any) -> None:
    described = api.view_api(return_format="dict")["named_endpoints"]
    assert {"/texts", "/classes", "/variations", "/popular", "/edit", "/strip", "/places", "/settings"} <= set(
        described
    )
    assert [name for name, about in described.items() if len(about.get("description") or "") < 20] == []


@pytest.mark.parametrize(
    ("endpoint", "given", "words"),
    [
        ("/texts", {"prompts": []}, "no text"),
        ("/texts", {"prompts": "a flag" * 20}, "prompts"),
        ("/texts", {"prompts": 5}, "prompts"),
        ("/texts", {"prompts": [{"a": 1}]}, "prompts="),
        ("/texts", {"prompts": ["x" * 61]}, "61 characters"),
        ("/texts", {"prompts": ["a"] * 9}, "9 images"),
        ("/texts", {"prompts": ["a"], "n": 10**9}, "images"),
        ("/texts", {"prompts": ["a"], "n": "two"}, "n='two'.*int"),
        ("/texts", {"prompts": ["a"], "k": 0}, "k=0"),
        ("/texts", {"prompts": ["a"], "places": "flags"}, "places"),
        ("/texts", {"prompts": ["a"], "rows": [10**6]}, "1000000"),
        ("/texts", {"prompts": ["a"], "rows": ["/etc/passwd"]}, "rows"),
        ("/texts", {"prompts": ["a"], "settings": [1]}, "settings"),
        ("/texts", {"prompts": ["a"], "settings": {"steps": 1.5}}, "steps=1.5"),
        ("/texts", {"prompts": ["a"], "settings": {"weaker": "/etc/passwd"}}, "weaker"),
        ("/variations", {"picture": "not base64!"}, "Base64"),
        ("/variations", {"picture": base64.b64encode(b"%!PS").decode()}, "no picture"),
        ("/variations", {"picture": {"path": "/etc/passwd"}}, "no upload of this page"),
        ("/variations", {"picture": None}, "picture"),
        ("/edit", {"picture": 5, "way": "vary"}, "picture"),
        ("/strip", {"start": "a", "end": 7}, "prompt=7"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_next_request_works(
    api: Any, endpoint: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(Exception, match=words) as caught:
        api.predict(**given, api_name=endpoint)
    message = str(caught.value)
    assert type(caught.value).__name__ == "AppError" and "\n" not in message and "Traceback" not in message
    assert len(api.predict(["a flag"], settings={"steps": 1}, api_name="/texts")["images"]) == 1


def test_the_example_of_the_docs_shows_what_a_neighbour_does(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = blocks("docs/web.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(example.replace("http://127.0.0.1:7860", address), {})  # noqa: S102
    all_of_them, fewer = (read_record(tmp_path / f"{name}.png") for name in ("cat", "without-the-first"))
    rows = [[neighbour["row"] for neighbour in record["neighbours"]] for record in (all_of_them, fewer)]
    assert rows[1] == rows[0][1:] and all_of_them["seed"] == fewer["seed"] == 3
    assert (tmp_path / "cat.png").read_bytes() != (tmp_path / "without-the-first.png").read_bytes()


def test_the_docs_list_every_endpoint_with_its_arguments(api: Any, served: Studio) -> None:
    listed = dict(re.findall(r"^\| `/(\w+)` \|[^|]*\|([^|]*)\|$", read("docs/web.md"), re.MULTILINE))
    own = [*creating(served), *changing(served), *describing(served)]
    assert {function.__name__ for function in own} <= set(listed)
    described = api.view_api(return_format="dict")["named_endpoints"]
    for function in own:
        taken = [each["parameter_name"] for each in described[f"/{function.__name__}"]["parameters"]]
        assert re.findall(r"`(\w+)`", listed[function.__name__]) == taken, function.__name__


def test_several_clients_get_their_own_images(address: str, loaded: Pipeline, served: Studio) -> None:
    def ask(seed: int) -> dict[str, Any]:
        own = client.Client(address, verbose=False)
        return own.predict(["a flag"], seed=seed, settings=TWO, api_name="/texts")

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    for seed, answer in enumerate(answers):
        assert_equal(answer, loaded("a flag", seed=seed, steps=2))
    assert [path for path in served.folder.rglob("*") if path.is_file() and "image" in path.name] == []
