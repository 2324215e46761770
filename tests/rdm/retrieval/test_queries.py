from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import ProjectionEmbedder, write_pictures

from rdm.retrieval import (
    NeighbourIndex,
    RetrievalDatabase,
    Retriever,
    build_database,
    class_queries,
    image_queries,
    mix,
    popular_queries,
    text_queries,
)
from rdm.retrieval.queries import between, popular_rows

POPULARITY = np.array([0, 5, 1, 9, 5, 0, 2, 0, 0, 0])


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    path, embedder = tmp_path_factory.mktemp("queries"), ProjectionEmbedder()
    database = build_database(path / "db", write_pictures(path / "pictures", 40), embedder, progress=False)
    return Retriever(lambda: embedder, database, lambda: NeighbourIndex.open(database))


def rows(**options: object) -> list[int]:
    drawn = popular_rows(POPULARITY, 400, generator=np.random.default_rng(0), **options)  # type: ignore[arg-type]
    return sorted(set(drawn.tolist()))


def test_top_m_keeps_the_most_popular() -> None:
    assert rows(top_m=1) == [3]
    assert rows(top_m=0.1) == [3]
    assert rows(top_m=2) == [1, 3]  # of the equally popular 1 and 4 the first
    assert rows(top_m=0.3) == [1, 3, 4]
    assert rows(top_m=1.0) == [1, 2, 3, 4, 6]  # rows that are nobody's neighbour are never drawn
    assert rows(top_m=0.0001) == [3]


@pytest.mark.parametrize("top_m", [0, 11, 0.0, 1.5, -1])
def test_top_m_out_of_range(top_m: float) -> None:
    with pytest.raises(ValueError, match="top_m="):
        rows(top_m=top_m)


def test_weights_are_the_proposal_distribution() -> None:
    drawn = popular_rows(POPULARITY, 20000, generator=np.random.default_rng(0), top_m=1.0, weighted=True)
    np.testing.assert_allclose(np.bincount(drawn, minlength=10) / 20000, POPULARITY / 22, atol=0.01)
    uniform = popular_rows(POPULARITY, 20000, generator=np.random.default_rng(0), top_m=1.0)
    np.testing.assert_allclose(np.bincount(uniform, minlength=10) / 20000, (POPULARITY > 0) / 5, atol=0.01)
    with pytest.raises(ValueError, match="popularity"):
        popular_rows(np.zeros(4), 1, generator=np.random.default_rng(0), top_m=1.0)


def test_popular_queries_are_database_vectors(retriever: Retriever) -> None:
    popularity = np.zeros(40, np.int64)
    popularity[17] = 3
    found = popular_queries(retriever.database, popularity, 2, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(found.numpy(), retriever.database.embeddings([17, 17]))
    again = [
        popular_queries(retriever.database, popularity + 1, 5, generator=np.random.default_rng(3), top_m=1.0)
        for _ in range(2)
    ]
    assert torch.equal(*again)
    with pytest.raises(ValueError, match="10 rows.* 40"):
        popular_queries(retriever.database, POPULARITY, 2, generator=np.random.default_rng(0))


def test_text_class_and_image_queries(retriever: Retriever) -> None:
    embedder = retriever.embedder
    assert torch.equal(text_queries(embedder, ["a cat", "two"]), embedder.texts(["a cat", "two"]))
    expected = embedder.texts(["An image of a animals bird.", "An image of a dog."])
    assert torch.equal(class_queries(embedder, ["animals-bird", "dog"]), expected)
    assert torch.equal(class_queries(embedder, ["dog"], "one {class}"), embedder.texts(["one dog"]))
    with pytest.raises(ValueError, match="template .*{class}"):
        class_queries(embedder, ["dog"], "a dog")
    (patch,) = retriever.database.patches([5])
    image = torch.from_numpy(patch).permute(2, 0, 1)[None] / 127.5 - 1
    np.testing.assert_allclose(image_queries(embedder, image), retriever.database.embeddings([5]), rtol=1e-3)


def test_mix_turns_on_the_sphere() -> None:
    east, north = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    halfway = mix([east, north], [0.5, 0.5])
    torch.testing.assert_close(halfway, torch.tensor([[1.0, 1.0]]) / 2**0.5 * 3)
    torch.testing.assert_close(mix([east, north], [1, 0]), east)
    torch.testing.assert_close(mix([east, north], [3, 1]), mix([east, north], [0.75, 0.25]))
    away = mix([east, north], [2, -1])
    torch.testing.assert_close(away / away.norm(), torch.tensor([[2.0, -1.0]]) / 5**0.5)
    for queries, weights, message in (
        ([east, -east], [1, 1], "cancel out"),
        ([east, north], [1, -1], r"weights \[1, -1\]"),
        ([east, torch.ones(1, 3)], [1, 1], r"shapes \[\(1, 2\), \(1, 3\)\]"),
        ([east], [1, 1], "and 2 weights"),
    ):
        with pytest.raises(ValueError, match=message):
            mix(queries, weights)


def test_the_way_between_queries_is_an_arc_walked_at_an_even_pace() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = 2 * torch.randn(16, generator=generator), 5 * torch.randn(16, generator=generator)
    way = between(first, second, 7)
    torch.testing.assert_close(way[[0, -1]], torch.stack([first, second]))
    torch.testing.assert_close(way.norm(dim=1), torch.linspace(float(first.norm()), float(second.norm()), 7))
    unit = torch.nn.functional.normalize(way.double(), dim=1)
    steps = (unit[1:] * unit[:-1]).sum(1).acos()
    whole = (unit[0] * unit[-1]).sum().acos()
    torch.testing.assert_close(steps, (whole / 6).expand(6), rtol=1e-4, atol=0)  # which add up to the whole: no detour
    torch.testing.assert_close(between(first, 3 * first, 3), torch.stack([first, 2 * first, 3 * first]))
    torch.testing.assert_close(
        between(torch.tensor([2.0, 0]), torch.tensor([0, 4.0]), 3)[1], torch.full((2,), 4.5**0.5)
    )


@pytest.mark.parametrize(
    ("second", "n", "message"),
    [
        ([1.0, 0.0], 1, "n=1 .* 2"),
        ([-3.0, 0.0], 3, "opposite"),
        ([0.0, 0.0], 3, "zero"),
    ],
)
def test_ends_without_a_way_between_them_are_refused(second: list[float], n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        between(torch.tensor([1.0, 0.0]), torch.tensor(second), n)


def test_the_retriever_gives_the_neighbours_of_a_query(retriever: Retriever) -> None:
    queries = text_queries(retriever.embedder, ["one", "two", "three"])
    found = retriever(queries, 4)
    expected = retriever.index.search(queries.numpy(), 4)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.embeddings.shape == (3, 4, 8)
    assert found.embeddings.dtype == torch.float32
    np.testing.assert_array_equal(found.embeddings.numpy(), retriever.database.embeddings(expected.rows))


def test_a_pool_is_drawn_from(retriever: Retriever) -> None:
    queries = text_queries(retriever.embedder, ["one"]).expand(200, -1)
    nearest = retriever(queries, 6)
    drawn = retriever(queries, 2, pool=6, generator=np.random.default_rng(0))
    assert set(drawn.rows.ravel()) == set(nearest.rows[0])
    assert (drawn.rows[:, 0] != drawn.rows[:, 1]).all()
    assert (drawn.scores[:, 0] >= drawn.scores[:, 1]).all()
    counts = np.array([(drawn.rows == row).sum() for row in nearest.rows[0]])
    assert counts.min() > 40  # 67 expected of each
    again = retriever(queries, 2, pool=6, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(again.rows, drawn.rows)
    for options in ({"pool": 1, "generator": np.random.default_rng(0)}, {"pool": 6}):
        with pytest.raises(ValueError, match="pool=.*k=.*generator="):
            retriever(queries, 2, **options)


def test_what_does_not_belong_together_is_refused(retriever: Retriever, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        _ = Retriever(lambda: ProjectionEmbedder(seed=1), retriever.database, lambda: retriever.index).embedder
    source = write_pictures(tmp_path / "pictures", 4, seed=9)
    other = build_database(tmp_path / "db", source, ProjectionEmbedder(), progress=False)
    assert isinstance(other, RetrievalDatabase)
    with pytest.raises(ValueError, match="rebuild the index"):
        _ = Retriever(lambda: retriever.embedder, other, lambda: retriever.index).index
