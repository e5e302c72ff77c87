"""Trajectories equal the batch-1 loop at every snapshot, in every basis, and leave the model as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from measure_oracle import BOS, PAD, RaggedRows, assert_close, flat_gradients, oracle, random_rows, tiny_model

from coretune.measure.bases import fit_bases, refuse_live, seeded
from coretune.measure.meter import SignalMeter
from coretune.measure.moments import Moments
from coretune.measure.project import MatrixProjection
from coretune.measure.settings import BASES, MeasureSettings
from coretune.measure.signals import measurer
from coretune.measure.snapshots import Snapshot, swapped
from coretune.measure.trajectory import passes_of, references, snapshot_measurer

TOKENS = {"pad_token_id": PAD, "bos_token_id": BOS}
RATES = (0.5, 0.02, 0.1)
SEEDED = ("rademacher", "sjlt")


def settings_of(basis: str, dim: int = 12, **more) -> MeasureSettings:
    return MeasureSettings(projection_dim=dim, factor_dim=8, basis=basis, batch_tokens=60, **more)


def snapshots_of(model: torch.nn.Module, count: int = 2, moments: bool = False) -> list[Snapshot]:
    """States some way from the model's own, each with its rate; with moments of the right shapes if asked."""
    draw = torch.Generator().manual_seed(9)
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    found = []
    for t in range(count):
        weights = {n: p + 0.1 * torch.randn(p.shape, generator=draw) for n, p in trainable.items()}
        second = {n: torch.rand(p.shape, generator=draw) for n, p in trainable.items()}
        first = {n: torch.randn(p.shape, generator=draw) for n, p in trainable.items()}
        remembered = Moments(first, second, 0.9, 0.999, 1e-8, 10) if moments else None
        found.append(Snapshot(f"checkpoint-{t + 1}", weights, RATES[t], remembered))
    return found


def gradients_at(model, rows, snapshot, settings) -> list[dict[str, torch.Tensor]]:
    """By parameter, of each row alone; preconditioned linearly where the settings ask for it."""
    with swapped(model, snapshot):
        found = [row["gradients"] for row in oracle(model, rows, settings.last_blocks, settings.parameters)]
    if settings.preconditioner == "none":
        return found
    moments = snapshot.moments
    share = 1 - moments.beta2**moments.step
    return [
        {n: g / ((moments.second[n] / share).sqrt() + moments.epsilon) for n, g in row.items()}
        for row in found
    ]


def projected(model, gradients, settings, names=None) -> np.ndarray:
    """Entry by entry, y = Σ_layers sketch(P_oᵀ G P_i), with the projections of these settings."""
    projections = SignalMeter(model, settings, frozenset({"gradient"}), PAD).projections
    features = np.zeros((len(gradients), settings.projection_dim))
    for i, row in enumerate(gradients):
        for name, gradient in row.items():
            sketch = projections[name]
            if isinstance(sketch, MatrixProjection):
                gradient = gradient if sketch.left is None else sketch.left.T @ gradient
                gradient = gradient if sketch.right is None else gradient @ sketch.right
                sketch = sketch.sketch
            np.add.at(features[i], sketch.bucket.numpy(), (gradient.flatten() * sketch.sign).double().numpy())
    return features


# --------------------------------------------------------------------------------- against the slow version


@pytest.mark.parametrize("preconditioner", ["none", "linear"])
@pytest.mark.parametrize("basis", SEEDED)
@pytest.mark.parametrize("family", ["llama-lora", "qwen2"])
def test_each_block_is_the_batch_1_loop_at_its_snapshot(family, basis, preconditioner):
    model, rows = tiny_model(family), random_rows(7, seed=1)
    settings = settings_of(basis, preconditioner=preconditioner, parameters="trainable")
    snapshots = snapshots_of(model, 2, moments=True)
    found = snapshot_measurer(model, rows, ["trajectory"], settings, snapshots, **TOKENS)(np.arange(7))
    for t, snapshot in enumerate(snapshots):
        own = seeded(settings, behind=1 - t)
        expected = projected(model, gradients_at(model, rows, snapshot, settings), own)
        block = found["trajectory"][:, 12 * t : 12 * (t + 1)]
        assert_close(block, RATES[t] ** 0.5 * expected)


def test_gradient_pca_is_the_wide_sketch_on_the_directions_that_hold_most_of_it():
    model, rows = tiny_model("llama-lora"), random_rows(20, seed=1)
    settings = settings_of("gradient_pca", dim=6)
    snapshots = snapshots_of(model, 2)
    found = snapshot_measurer(model, rows, ["trajectory"], settings, snapshots, **TOKENS)(np.arange(20))
    bases = fit_bases(model, rows, settings, snapshots, **TOKENS)
    for t, (snapshot, basis) in enumerate(zip(snapshots, bases, strict=True)):
        wide = projected(model, gradients_at(model, rows, snapshot, settings), basis.settings)
        assert wide.shape == (20, 24)
        assert_close(found["trajectory"][:, 6 * t : 6 * (t + 1)], RATES[t] ** 0.5 * wide @ basis.matrix)
        np.testing.assert_allclose(basis.matrix.T @ basis.matrix, np.eye(6), atol=1e-5)
    assert not np.allclose(bases[0].matrix, bases[1].matrix)  # found anew at every snapshot


@pytest.mark.parametrize("preconditioner", ["none", "linear"])
@pytest.mark.parametrize(("parameters", "last_blocks"), [("adapter_or_attention", 2), ("trainable", None)])
def test_parameter_pca_begins_with_the_path_of_the_checkpoints(parameters, last_blocks, preconditioner):
    """Coordinates: along the centred states' directions; then the sketch of what is orthogonal to them."""
    model, rows = tiny_model("qwen2"), random_rows(6, seed=1)
    settings = settings_of(
        "parameter_pca", parameters=parameters, last_blocks=last_blocks, preconditioner=preconditioner
    )
    snapshots = snapshots_of(model, 3, moments=True)
    found = snapshot_measurer(model, rows, ["trajectory"], settings, snapshots, **TOKENS)(np.arange(6))
    for t, snapshot in enumerate(snapshots):
        gradients = gradients_at(model, rows, snapshot, settings)
        names = list(gradients[0])
        states = np.stack([torch.cat([s.weights[n].flatten() for n in names]).numpy() for s in snapshots])
        _, size, path = np.linalg.svd(states - states.mean(0), full_matrices=False)
        assert size[2] < 1e-5 * size[0]
        flat = np.stack([torch.cat([row[n].flatten() for n in names]).numpy() for row in gradients])
        along = flat @ path[:2].T
        block = found["trajectory"][:, 12 * t : 12 * (t + 1)] / RATES[t] ** 0.5
        assert_close(np.abs(block[:, :2]), np.abs(along), 1e-3)
        rest = torch.from_numpy(flat - along @ path[:2])
        split = [torch.split(row, [g.numel() for g in gradients[0].values()]) for row in rest]
        orthogonal = [
            {n: part.view(gradients[0][n].shape) for n, part in zip(names, parts, strict=True)}
            for parts in split
        ]
        own = replace(seeded(settings, behind=2 - t), projection_dim=10, basis="rademacher")
        assert_close(block[:, 2:], projected(model, orthogonal, own), 1e-3)


# ------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("basis", BASES)
def test_a_snapshots_pass_depends_on_no_other_row(basis):
    """Any rows, in any order, one at a time or all: the same numbers, the bases are of the pool."""
    model, rows = tiny_model("llama-lora"), random_rows(12, seed=3)
    settings, snapshots = settings_of(basis, dim=5), snapshots_of(model, 2)
    measure = snapshot_measurer(model, rows, ["trajectory"], settings, snapshots, **TOKENS)
    whole = measure(np.arange(12))["trajectory"]
    again = snapshot_measurer(model, rows, ["trajectory"], settings, snapshots, **TOKENS)
    order = np.random.default_rng(0).permutation(12)
    assert_close(again(order[:5])["trajectory"], whole[order[:5]])
    assert_close(measure(np.array([7]))["trajectory"], whole[[7]])


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("family", ["llama-lora", "qwen2"])
def test_the_model_is_as_it_was(family, basis):
    model, rows = tiny_model(family), random_rows(12, seed=3)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    settings, snapshots = settings_of(basis, dim=5), snapshots_of(model, 2)
    snapshot_measurer(model, rows, ["trajectory", "loss"], settings, snapshots, **TOKENS)(np.arange(12))
    references(model, rows, [random_rows(3, 1)], [1.0], settings, snapshots, **TOKENS)
    for name, p in model.named_parameters():
        assert torch.equal(p.detach().view(torch.int32), before[name][0].view(torch.int32)), name
        assert p.requires_grad == before[name][1]
    assert model.training


def test_inner_products_err_less_with_seeds_of_their_own():
    """At two equal snapshots the two estimates are independent: half the variance of one made twice."""
    model, rows = tiny_model("llama"), random_rows(2, seed=3)
    snapshot = Snapshot("live", {}, 1.0)
    exact = flat_gradients(oracle(model, rows, 2))
    exact = float(exact[0] @ exact[1])

    def variance(count: int) -> float:
        errors = []
        for seed in range(120):
            settings = settings_of("rademacher", dim=16, seed=seed)
            measure = snapshot_measurer(model, rows, ["trajectory"], settings, [snapshot] * count, **TOKENS)
            a, b = measure(np.arange(2))["trajectory"]
            errors.append(float(a @ b) / count - exact)
        return float(np.mean(np.square(errors)))

    assert variance(2) < 0.75 * variance(1)


def test_other_signals_are_those_of_the_last_snapshot_with_its_moments():
    model, rows, target = tiny_model("llama-lora"), random_rows(7, seed=1), random_rows(3, seed=2)
    settings = settings_of("rademacher", preconditioner="adam")
    snapshots = snapshots_of(model, 2, moments=True)
    names = ["loss", "gradient", "target_cosine", "trajectory"]
    found = snapshot_measurer(model, rows, names, settings, snapshots, target=target, **TOKENS)(np.arange(7))
    assert list(found) == names
    with swapped(model, snapshots[-1]):
        expected = measurer(
            model, rows, names[:-1], settings, target=target, moments=snapshots[-1].moments, **TOKENS
        )(np.arange(7))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    np.testing.assert_array_equal(
        found["trajectory"][:, 12:], np.float32(RATES[1] ** 0.5) * expected["gradient"]
    )


def test_a_live_snapshot_is_the_model_as_it_is():
    model, rows = tiny_model("llama"), random_rows(5, seed=1)
    settings = settings_of("rademacher")
    live = snapshot_measurer(model, rows, ["trajectory"], settings, [Snapshot("live", {}, 0.25)], **TOKENS)
    plain = measurer(model, rows, ["gradient"], settings, **TOKENS)(np.arange(5))["gradient"]
    np.testing.assert_array_equal(live(np.arange(5))["trajectory"], np.float32(0.5) * plain)


@pytest.mark.parametrize("basis", BASES)
def test_a_row_that_cannot_be_measured_at_one_snapshot_is_nan_alone(basis):
    model, rows = tiny_model("llama"), random_rows(12, seed=8)
    tokens = [np.where(row == 52, 7, row) for row in rows.token_rows]
    tokens[2][-1] = 52
    rows = RaggedRows(tokens, rows.prompt_length)
    snapshots, settings = snapshots_of(model, 2), settings_of(basis, dim=4)
    with torch.no_grad():  # at the first snapshot only
        next(w for n, w in snapshots[0].weights.items() if "embed_tokens" in n)[52] = torch.nan
    measure = snapshot_measurer(model, rows, ["trajectory"], settings, snapshots, **TOKENS)
    found = measure(np.arange(12))["trajectory"]
    assert np.isnan(found[2]).all()
    assert np.isfinite(np.delete(found, 2, axis=0)).all()


def test_no_rows_give_an_empty_array_of_the_right_width():
    model, rows = tiny_model("llama-lora"), random_rows(12, seed=8)
    for basis in BASES:
        measure = snapshot_measurer(
            model, rows, ["trajectory"], settings_of(basis, dim=4), snapshots_of(model), **TOKENS
        )
        assert measure(np.zeros(0, np.int64))["trajectory"].shape == (0, 8)


def test_progress_counts_every_row_at_every_pass():
    model, rows, done = tiny_model("llama"), random_rows(11, seed=9), []
    names, snapshots = ["trajectory", "loss"], snapshots_of(model, 3)
    measure = snapshot_measurer(
        model, rows, names, settings_of("rademacher"), snapshots, progress=done.append, **TOKENS
    )
    measure(np.arange(11))
    assert sum(done) == 11 * passes_of(names, snapshots) == 44
    assert passes_of(["loss"], snapshots) == 1


# ------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize("basis", BASES)
def test_the_references_are_each_targets_mean_in_the_pools_bases(basis):
    model, rows = tiny_model("llama-lora"), random_rows(12, seed=3)
    settings, snapshots = settings_of(basis, dim=5), snapshots_of(model, 2)
    picked = [np.array([1, 4, 6]), np.array([0, 9])]
    targets = [RaggedRows([rows.token_rows[i] for i in p], rows.prompt_length[p]) for p in picked]
    found = references(model, rows, targets, [3, 1], settings, snapshots, **TOKENS)
    pool = snapshot_measurer(model, rows, ["trajectory"], settings, snapshots, **TOKENS)(np.arange(12))
    expected = np.stack([pool["trajectory"][p].mean(0) for p in picked])
    assert found["trajectory"].dtype == found["share"].dtype == np.float32
    assert_close(found["trajectory"], expected)
    np.testing.assert_array_equal(found["share"], np.float32([0.75, 0.25]))


def test_a_target_row_without_gradient_is_left_out_and_a_target_of_such_is_refused():
    model, rows = tiny_model("llama"), random_rows(5, seed=3)
    settings, snapshots = settings_of("rademacher"), snapshots_of(model, 1)
    some = RaggedRows([*rows.token_rows[:2], [5, 6]], [*rows.prompt_length[:2], 2])
    first = RaggedRows(rows.token_rows[:2], rows.prompt_length[:2])
    found, expected = (
        references(model, rows, [target], [1.0], settings, snapshots, **TOKENS)["trajectory"]
        for target in (some, first)
    )
    assert_close(found, expected)
    with pytest.raises(ValueError, match="no example of target 1 has a finite gradient at every snapshot"):
        references(model, rows, [first, RaggedRows([[5, 6]], [2])], [1, 1], settings, snapshots, **TOKENS)
    with pytest.raises(ValueError, match=r"1 targets with shares \[0\]: give each target a share above 0"):
        references(model, rows, [first], [0], settings, snapshots, **TOKENS)


# --------------------------------------------------------------------------------------------- refusals


def test_what_checkpoints_cannot_give_is_one_line_before_the_measurement():
    model, rows = tiny_model("llama"), random_rows(5, seed=3)
    live, snapshots = [Snapshot("live", {}, 0.1)], snapshots_of(model, 2)

    def make(names, settings, snapshots):
        return snapshot_measurer(model, rows, names, settings, snapshots, **TOKENS)

    with pytest.raises(ValueError, match="there are no checkpoints to measure at"):
        make(["trajectory"], settings_of("rademacher"), [])
    with pytest.raises(ValueError, match=r"unknown signals \['trajectroy'\]"):
        make(["trajectroy"], settings_of("rademacher"), snapshots)
    with pytest.raises(ValueError, match="snapshot checkpoint-1 was read without"):
        make(["trajectory"], settings_of("rademacher", preconditioner="linear"), snapshots)
    with pytest.raises(ValueError, match="last_blocks is 9 but the model has 3 blocks"):
        make(["trajectory"], settings_of("rademacher", last_blocks=9), snapshots)
    with pytest.raises(ValueError, match=r"parameter_pca needs several checkpoints.*refresh_every to never"):
        refuse_live(settings_of("parameter_pca"))
    refuse_live(settings_of("gradient_pca"))
    with pytest.raises(ValueError, match="parameter_pca needs 2 snapshots at least and there is 1"):
        make(["trajectory"], settings_of("parameter_pca"), live)(np.arange(5))
    with pytest.raises(ValueError, match=r"gradient_pca to 12 .* the 5 sampled rows .* span 5: lower"):
        make(["trajectory"], settings_of("gradient_pca"), snapshots)(np.arange(5))
