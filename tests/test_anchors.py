"""A measurement of one of equal rows is of all of them: their number, and that anchors go there first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.neighbors.graph import symmetric_csr
from coretune.policies.anchors import SAME_PLACE, SAME_SCORE, planned, rows_alike
from coretune.policies.update import update
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.types import Array, Pool


def pool_of(seed: int, copies: int) -> Pool:
    """120 rows; the first has so many copies, and there are neighbours of its place with another loss."""
    rng = np.random.default_rng(seed)
    place = rng.normal(size=(120, 6))
    place[1 : copies + 4] = place[0]
    place = (place / np.linalg.norm(place, axis=1, keepdims=True)).astype(np.float32)
    loss = rng.uniform(1, 2, 120).astype(np.float32)
    loss[1 : copies + 1] = loss[0]
    loss[copies + 1 : copies + 4] = loss[0] + np.float32([0.1, 0.2, 0.3])
    empty = Pool({}, np.ones(120, np.int64), np.full(120, -1, np.int32), np.ones(120, bool))
    fresh = {"prompt_embedding": place, "loss": loss}
    return update(AnchorRefresh(k=9), empty, np.arange(120), fresh, 0)


def counted(pool: Pool, usable: Array) -> Array:
    assert pool.graph is not None
    indptr, indices, similarity = symmetric_csr(pool.graph)
    loss = pool.feature("loss").astype(np.float64)
    found = np.ones(pool.n, np.int64)
    for i in range(pool.n):
        for e in range(indptr[i], indptr[i + 1]):
            j = indices[e]
            alike = abs(loss[i] - loss[j]) <= SAME_SCORE * max(loss[i], loss[j])
            found[i] += alike and similarity[e] >= SAME_PLACE and usable[j]
    return found


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(0, 5))
def test_rows_alike_are_the_usable_copies_with_the_same_score(seed: int, copies: int) -> None:
    pool = pool_of(seed, copies)
    assert pool.graph is not None
    found = rows_alike(symmetric_csr(pool.graph), pool.feature("loss"), pool.usable)
    np.testing.assert_array_equal(found, counted(pool, pool.usable))
    assert found[0] == copies + 1
    usable = pool.usable.copy()
    usable[1] = False
    found = rows_alike(symmetric_csr(pool.graph), pool.feature("loss"), usable)
    np.testing.assert_array_equal(found, counted(pool, usable))


def test_one_of_many_copies_is_measured_first_and_the_others_last() -> None:
    pool = pool_of(1, 4)
    refresh = AnchorRefresh(anchors="priority", beta=1.0, anchor_share=1 / 120, k=9)
    assert set(planned(refresh, pool, 1)) <= set(range(5))
    most = planned(replace(refresh, anchor_share=0.9), pool, 1)
    assert len(set(most) & set(range(5))) == 1
