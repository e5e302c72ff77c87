"""Projections keep inner products without bias, with the variance of theory, by the seed alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.measure.forms import Lookup, Outer
from coretune.measure.project import MatrixProjection, Sketch, generator, rademacher

CPU = torch.device("cpu")


def rademacher_features(vectors, dim, seed):
    return vectors @ rademacher(vectors.shape[1], dim, generator(seed, "r"))


def sketch_features(vectors, dim, seed):
    features = torch.zeros(len(vectors), dim)
    Sketch.make(vectors.shape[1], dim, generator(seed, "s"), CPU).add_to(features, vectors)
    return features


@pytest.mark.parametrize("features", [rademacher_features, sketch_features])
def test_inner_products_have_the_mean_and_variance_of_theory(features):
    torch.manual_seed(0)
    u, v = torch.randn(40), torch.randn(40)
    v = v + u
    dim, draws = 12, 4000
    products = torch.tensor(
        [float(torch.prod(features(torch.stack([u, v]), dim, s), 0).sum()) for s in range(draws)]
    )
    exact = float(u @ v)
    variance = float(u @ u * (v @ v) + (u @ v) ** 2 - 2 * (u * u * v * v).sum()) / dim
    assert abs(float(products.mean()) - exact) < 4.5 * (variance / draws) ** 0.5
    assert float(products.var()) == pytest.approx(variance, rel=0.12)


@pytest.mark.parametrize("shape", [(20, 30), (3, 40), (40, 3)])
def test_factorised_projections_are_unbiased_and_the_layers_do_not_mix(shape):
    """Two parameters: the mean of the products is the sum of the two layers' own, with no cross term."""
    torch.manual_seed(1)
    forms = {
        name: Outer(torch.randn(2, 5, shape[0]), torch.randn(2, 5, shape[1])) for name in ("first", "second")
    }
    products = []
    for seed in range(1500):
        features = torch.zeros(2, 24)
        for name, form in forms.items():
            form.project(MatrixProjection.make(name, shape, 24, 8, seed, CPU), features)
        products.append(features @ features.T)
    stacked = torch.stack(products)
    dense = {name: (form.left.mT @ form.right).flatten(1) for name, form in forms.items()}
    exact = sum(g @ g.T for g in dense.values())
    error = stacked.std(0) / len(stacked) ** 0.5
    assert ((stacked.mean(0) - exact).abs() < 4.5 * error).all()


@given(a=st.integers(1, 40), b=st.integers(1, 40), factor_dim=st.integers(1, 12), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_a_side_is_cut_only_where_that_costs_less_than_the_whole(a, b, factor_dim, seed):
    projection = MatrixProjection.make("w", (a, b), 10, factor_dim, seed, CPU)
    torch.manual_seed(seed)
    left, right = torch.randn(3, 4, a), torch.randn(3, 4, b)
    features = torch.zeros(3, 10)
    Outer(left, right).project(projection, features)
    cut = [p for p in (projection.left, projection.right) if p is not None]
    assert sum(p.numel() for p in cut) < a * b
    dense = left.mT @ right
    dense = dense if projection.left is None else projection.left.mT @ dense
    dense = dense if projection.right is None else dense @ projection.right
    expected = torch.zeros(3, 10)
    projection.sketch.add_to(expected, dense.flatten(1))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("entries", [6, 50])
def test_an_embeddings_rows_project_as_the_one_hot_outer_product(entries):
    torch.manual_seed(2)
    ids, right = torch.randint(0, entries, (3, 7)), torch.randn(3, 7, 20)
    one_hot = torch.nn.functional.one_hot(ids, entries).float()
    projection = MatrixProjection.make("embedding", (entries, 20), 16, 8, 0, CPU)
    found, expected = torch.zeros(3, 16), torch.zeros(3, 16)
    Lookup(ids, right, entries).project(projection, found)
    Outer(one_hot, right).project(projection, expected)
    torch.testing.assert_close(found, expected)


def test_many_rows_are_projected_in_parts(monkeypatch):
    left, right = torch.randn(9, 4, 6), torch.randn(9, 4, 5)
    projection = MatrixProjection.make("w", (6, 5), 10, 8, 0, CPU)
    whole, parts = torch.zeros(9, 10), torch.zeros(9, 10)
    projection.add_to(whole, left, right)
    monkeypatch.setattr("coretune.measure.project.DENSE_ENTRIES", 60)
    projection.add_to(parts, left, right)
    torch.testing.assert_close(whole, parts)


def test_the_seed_and_the_name_alone_decide():
    one, same = (rademacher(50, 8, generator(3, "layer", "left")) for _ in range(2))
    assert torch.equal(one, same)
    for other in (generator(4, "layer", "left"), generator(3, "layer", "right"), generator(3, "layerleft")):
        assert not torch.equal(one, rademacher(50, 8, other))


def test_no_global_random_state_is_used():
    before = torch.get_rng_state()
    MatrixProjection.make("w", (300, 300), 16, 8, 0, CPU)
    assert torch.equal(before, torch.get_rng_state())


@given(
    shape=st.sampled_from([(9, 14), (3, 40), (40, 3), (30, 30)]),
    factor_dim=st.sampled_from([4, 40]),
    begin=st.integers(0, 8),
)
@settings(deadline=None, max_examples=20)
def test_parts_of_a_gradient_project_to_the_whole(shape, factor_dim, begin):
    projection = MatrixProjection.make("w", shape, 10, factor_dim, 0, CPU)
    torch.manual_seed(begin)
    form = Outer(torch.randn(3, 4, shape[0]), torch.randn(3, 4, shape[1]))
    expected, found = torch.zeros(3, 10), torch.zeros(3, 10)
    form.project(projection, expected)
    dense, cut = form.left.mT @ form.right, min(begin, shape[0])
    for part in (slice(0, cut), slice(cut, shape[0])):
        if part.start < part.stop:
            projection.add_part(found, part, dense[:, part])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_parts_of_a_vector_sketch_to_the_whole():
    sketch, values = Sketch.make(20, 6, generator(0, "v"), CPU), torch.randn(3, 20)
    expected, found = torch.zeros(3, 6), torch.zeros(3, 6)
    sketch.add_to(expected, values)
    for part in (slice(0, 7), slice(7, 20)):
        sketch.add_part(found, part, values[:, part])
    torch.testing.assert_close(found, expected)
