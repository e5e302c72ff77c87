"""Bounded lists of the nearest rows, kept while candidates come in blocks of cosines (numba).

found   (m, c) int32    nearest first, of equals the lowest row first; -1 where there is none (yet)
cosine  (m, c) float32  of each, -inf beside a -1
reach   (m,)   float32  no row that was offered and is not listed is nearer than that

The order of (cosine, row) is total, so a list does not depend on the order in which its rows were offered.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from coretune.types import Array, Rows

ABSENT = np.float32(-np.inf)


def empty(m: int, width: int) -> tuple[Array, Array]:
    """(m, width) found and cosine of lists that hold nothing."""
    return np.full((m, width), -1, np.int32), np.full((m, width), ABSENT, np.float32)


@njit(cache=True, nogil=True)
def put(found: Array, cosine: Array, row: int, value: np.float32) -> np.float32:
    """Put the row into one list; returns the cosine of who stays outside, -inf when nobody does."""
    at = len(found) - 1
    if value < cosine[at] or (value == cosine[at] and row > found[at] >= 0):
        return value
    outside = cosine[at]
    while at > 0 and (value > cosine[at - 1] or (value == cosine[at - 1] and row < found[at - 1])):
        found[at], cosine[at] = found[at - 1], cosine[at - 1]
        at -= 1
    found[at], cosine[at] = row, value
    return outside


@njit(cache=True, nogil=True)
def offer(scores: Array, positions: Array, own: Array, others: Array, found: Array, cosine: Array) -> None:
    """Offer (a, b) scores: the b `others` to the lists at a `positions`, whose rows are `own`.

    Nobody is offered twice to one list; a row is not offered to itself.
    """
    for i in range(len(positions)):
        p, row = positions[i], own[i]
        last = cosine[p, -1]
        for j in range(len(others)):
            if scores[i, j] >= last and others[j] != row:
                put(found[p], cosine[p], others[j], scores[i, j])
                last = cosine[p, -1]


@njit(cache=True, nogil=True)
def offer_back(
    scores: Array, newcomers: Array, rows: Array, skip: Array, found: Array, cosine: Array, reach: Array
) -> None:
    """Offer (a, b) scores: the a newcomers to the lists of the b `rows` that are not to be skipped.

    found, cosine, reach, skip are of all rows. Who is listed already is not listed again.
    """
    for i in range(len(newcomers)):
        for j in range(len(rows)):
            v = rows[j]
            if scores[i, j] > reach[v] and not skip[v]:
                offer_one(found, cosine, reach, v, newcomers[i], scores[i, j])


@njit(cache=True, nogil=True)
def offer_one(found: Array, cosine: Array, reach: Array, v: int, row: int, value: np.float32) -> None:
    """Offer a row to v's list, unless it is in it."""
    for w in found[v]:
        if w == row:
            return
    outside = put(found[v], cosine[v], row, value)
    if outside > reach[v]:
        reach[v] = outside


@njit(cache=True, nogil=True)
def offer_pairs(scores: Array, who: Array, whose: Array, found: Array, cosine: Array, reach: Array) -> None:
    """Offer the row who[i], of scores[i], to the list whose[i]."""
    for i in range(len(scores)):
        if scores[i] > reach[whose[i]]:
            offer_one(found, cosine, reach, whose[i], who[i], scores[i])


@njit(cache=True, nogil=True)
def without(found: Array, cosine: Array, gone: Array) -> tuple[Array, Array]:
    """Take the rows `gone` (n,) bool out of all lists; returns (e,) whose list and (e,) who, pair by pair."""
    n, width = found.shape
    count = 0
    for v in range(n):
        for w in found[v]:
            count += w >= 0 and gone[w]
    whose, who = np.empty(count, np.int32), np.empty(count, np.int32)
    count = 0
    for v in range(n):
        kept = 0
        for e in range(width):
            w = found[v, e]
            if w < 0:
                break
            if gone[w]:
                whose[count], who[count] = v, w
                count += 1
            else:
                found[v, kept], cosine[v, kept] = w, cosine[v, e]
                kept += 1
        for e in range(kept, width):
            found[v, e], cosine[v, e] = -1, ABSENT
    return whose, who


@njit(cache=True, nogil=True)
def grouped(label: Array, groups: int) -> tuple[Array, Array]:
    """Positions by their label, rising in each: (groups + 1,) starts and the positions; -1 is in no group."""
    starts = np.zeros(groups + 1, np.int64)
    for g in label:
        if g >= 0:
            starts[g + 1] += 1
    for g in range(groups):
        starts[g + 1] += starts[g]
    place, at = np.empty(starts[-1], np.int64), starts[:-1].copy()
    for i in range(len(label)):
        g = label[i]
        if g >= 0:
            place[at[g]] = i
            at[g] += 1
    return starts, place


@njit(cache=True, nogil=True)
def union(neighbors: Array, similarity: Array) -> tuple[Array, Array, Array]:
    """Both directions of directed lists: starts (n+1,) int64, indices (e,) int32 rising in a row, weights.

    The larger of two weights counts; edges of weight 0 and less are left out. Work is O(n·k).
    """
    n, k = neighbors.shape
    into = np.zeros(n + 1, np.int64)
    for i in range(n):
        for e in range(k):
            if neighbors[i, e] >= 0 and similarity[i, e] > 0:
                into[neighbors[i, e] + 1] += 1
    for i in range(n):
        into[i + 1] += into[i]
    lister, weight = np.empty(into[n], np.int32), np.empty(into[n], np.float32)
    at = into[:-1].copy()
    for i in range(n):  # in this order the listers of every row rise
        for e in range(k):
            j = neighbors[i, e]
            if j >= 0 and similarity[i, e] > 0:
                lister[at[j]], weight[at[j]] = i, similarity[i, e]
                at[j] += 1
    starts = np.zeros(n + 1, np.int64)
    indices, weights = np.empty(2 * into[n], np.int32), np.empty(2 * into[n], np.float32)
    own, own_weight = np.empty(k, np.int32), np.empty(k, np.float32)
    size = 0
    for i in range(n):
        held = 0
        for e in range(k):
            j, w = neighbors[i, e], similarity[i, e]
            if j < 0 or w <= 0:
                continue
            place = held
            while place > 0 and own[place - 1] > j:
                own[place], own_weight[place] = own[place - 1], own_weight[place - 1]
                place -= 1
            own[place], own_weight[place] = j, w
            held += 1
        a, b, last = 0, into[i], into[i + 1]
        while a < held or b < last:
            if b == last or (a < held and own[a] < lister[b]):
                indices[size], weights[size] = own[a], own_weight[a]
                a += 1
            elif a == held or lister[b] < own[a]:
                indices[size], weights[size] = lister[b], weight[b]
                b += 1
            else:
                indices[size], weights[size] = own[a], max(own_weight[a], weight[b])
                a, b = a + 1, b + 1
            size += 1
        starts[i + 1] = size
    return starts, indices[:size].copy(), weights[:size].copy()


@njit(cache=True, nogil=True, fastmath=True)
def products(embedding: Array, left: Rows, right: Rows) -> Array:
    """(m,) float32 inner products of the rows left[i] and right[i]."""
    found = np.empty(len(left), np.float32)
    for i in range(len(left)):
        a, b = embedding[left[i]], embedding[right[i]]
        total = np.float32(0)
        for e in range(len(a)):
            total += a[e] * b[e]
        found[i] = total
    return found


@njit(cache=True, nogil=True, fastmath=True)
def edge_products(vectors: Array, neighbors: Array) -> Array:
    """(n, k) float32 inner products of each row with its neighbours; 0 beside a -1."""
    found = np.zeros(neighbors.shape, np.float32)
    for i in range(len(neighbors)):
        a = vectors[i]
        for e in range(neighbors.shape[1]):
            j = neighbors[i, e]
            if j >= 0:
                total = np.float32(0)
                for c in range(len(a)):
                    total += a[c] * vectors[j, c]
                found[i, e] = total
    return found
