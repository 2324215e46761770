"""Rows by the class that they are stored under."""

import numpy as np
import pytest
from pictures import ProjectionEmbedder

from rdm.retrieval import NeighbourIndex, RetrievalDatabase, Retriever
from rdm.retrieval.classes import class_names, class_rows, labelled


def test_a_class_has_the_rows_stored_under_it(database: RetrievalDatabase) -> None:
    stored = np.array(database.column("class_id").to_pylist())
    assert class_names(database) == ["class0", "class1"]
    for name in ("class0", "class1"):
        assert class_rows(database, name).tolist() == np.flatnonzero(stored == name).tolist()
    assert len(class_rows(database, "class")) == 0  # a part of the name is none of the class


def test_a_row_is_drawn_and_those_of_its_class_around_it_are_taken(database: RetrievalDatabase) -> None:
    index = NeighbourIndex.open(database)
    retriever, rows = Retriever(ProjectionEmbedder, database, lambda: index), class_rows(database, "class1")
    unit = database.embeddings(np.arange(len(database)))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found = labelled(retriever, ["class1", "class0", "class1"], 3, [7, 8, 9])
    for place, seed in ((0, 7), (2, 9)):
        drawn = int(np.random.default_rng(seed).choice(rows, 1)[0])
        assert found.rows[place].tolist() == rows[np.argsort(-(unit[rows] @ unit[drawn]))[:3]].tolist()
        assert found.rows[place, 0] == drawn
    np.testing.assert_array_equal(found.embeddings.numpy(), database.embeddings(found.rows))
    assert set(found.rows[1]) <= set(class_rows(database, "class0"))
    drawn = labelled(retriever, ["class1"] * 200, 1, range(200)).rows[:, 0]
    assert set(drawn) == set(rows)
    bound = Retriever(ProjectionEmbedder, database, lambda: index, rows[:4])
    assert set(labelled(bound, ["class1"] * 50, 2, range(50)).rows.ravel()) == set(rows[:4])
    database.remove(rows[:2])
    assert set(labelled(bound, ["class1"] * 50, 2, range(50)).rows.ravel()) == set(rows[2:4])
    for name, k, count in (("class1", 3, 2), ("class0", 1, 0)):
        with pytest.raises(ValueError, match=f"'{name}' has {count} .*k={k}"):
            labelled(bound, [name], k, [0])
