from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.coreset_section import build_coreset
from coretune.ledger import Ledger
from coretune.refresh import advance, start
from coretune.rounds.schedule import coreset_rows, make_schedule
from coretune.rounds.state import State, load, save
from coretune.rounds.transitions import empty_pool
from coretune.select.brief import Brief, bytes_of
from coretune.select.craig import Craig
from coretune.testing import check_selector, synthetic_pool
from coretune.types import Array, Budget, Coreset, Pool, UsesCheckpoints

FEW = settings(deadline=None, max_examples=40)


def pool_of(kn: Array, if_: Array, usable: Array | None = None) -> Pool:
    n = len(kn)
    return Pool(
        features={"kn_gradient": np.asarray(kn, np.float32), "if_gradient": np.asarray(if_, np.float32)},
        cost=np.ones(n, np.int64),
        measured_at=np.zeros(n, np.int32),
        usable=np.ones(n, bool) if usable is None else usable,
    )


def random_pool(n: int, d: int, rng: np.random.Generator, kind: str) -> Pool:
    """Knowledge and instruction following that partly oppose each other, of very different lengths."""
    length = rng.gamma(1.0, 1.0, (n, 1))
    kn = length * rng.normal(size=(n, d))
    if_ = length * rng.normal(size=(n, d)) - rng.random() * kn
    if kind == "copies":
        source = rng.integers(max(1, n // 3), size=n)
        kn, if_ = kn[source], if_[source]
    if kind == "zeros":
        kn[rng.random(n) < 0.5] = 0.0
        if_[rng.random(n) < 0.5] = 0.0
    if kind == "equal":
        kn[:], if_[:] = kn[0], if_[0]
    return pool_of(kn, if_)


def chosen(selector: Brief, pool: Pool, size: int, seed: int = 0) -> Coreset:
    return selector.select(pool, Budget(size), np.random.default_rng(seed))


def far(pool: Pool, name: str) -> Array:
    """(n, n) float64 distances."""
    rows = pool.features[name].astype(np.float64)
    return np.linalg.norm(rows[:, None] - rows[None], axis=2)


def greedy(distance: Array, size: int) -> list[int]:
    """Greedy on Σ_i [c − min(c, min_{j∈C} d_ij)] from the formula, the lowest of equals."""
    similarity, picks = distance.max() - distance, []
    best = np.zeros(len(distance))
    for _ in range(size):
        gain = np.maximum(similarity - best[:, None], 0.0).sum(axis=0)
        gain[picks] = -1.0
        picks.append(int(np.flatnonzero(gain >= gain.max() - 1e-4)[0]))
        best = np.maximum(best, similarity[:, picks[-1]])
    return picks


FOUR = pool_of(np.array([[0.0], [1.0], [4.0], [4.0]]), np.array([[0.0], [0.0], [2.0], [3.0]]))


def test_four_rows_by_hand() -> None:
    """Rows A (0, 0), B (1, 0), C (4, 2), D (4, 3): knowledge and instruction following in one dimension each.

    α = ½ gives d = 2 (|Δkn| + |Δif|), half of which is AB 1, AC 6, AD 7, BC 5, BD 6, CD 1. Sums over the
    pool: A 14, B 12, C 12, D 14. Greedy takes B, the lower of two equals; then the rows stand at 1, 0, 5, 6,
    and A gains 1, C 5 + 5, D 4 + 6: C, the lower of two equals. So C = {B, C}; A stands with B, D with C;
    w = (2, 2).

        B_KN = S_KN = 1 (A to B)     B_IF = S_IF = 1 (D to C)     E = ½, certificate (1 + 1)/4
        e_KN = |0+1+4+4 − 2·1 − 2·4| = 1     e_IF = |0+0+2+3 − 2·0 − 2·2| = 1
        the errors are −1 and +1: e_SFT = 0 at an angle of 180°, although neither part is matched
        ε̂ = 1/½ + 1/½ = 4, so both parts are bounded by αε̂ = 2, and e_SFT by max(α, 1−α) ε̂ = 2

    α = 0 sees kn alone: sums A 9, B 7, C 7, D 7: B, then C (gain 6, as D). α = 1 sees if alone: sums A 5,
    B 5, C 5, D 7: A, then C (gain 4, as D): now B stands with A.
    """
    result = chosen(Brief(alpha=0.5), FOUR, 2)
    assert result.indices.tolist() == [1, 2]
    assert result.weights.tolist() == [1.0, 1.0]
    assert result.gains[1] == pytest.approx(5.0, abs=1e-5)  # 10, times α(1−α) of what Eq. 28 has doubled
    assert result.reasons["represents"].tolist() == [0, 2, 2, 0]
    assert result.reasons["represented_by"].tolist() == [1, 1, 2, 2]
    assert result.reasons["distance_kn"].tolist() == [1, 0, 0, 0]
    assert result.reasons["distance_if"].tolist() == [0, 0, 0, 1]
    by_hand = {
        **{"B_KN": 1, "B_IF": 1, "S_KN": 1, "S_IF": 1, "E": 0.5, "certificate": 0.5, "represented": 4},
        **{"e_KN": 1, "e_IF": 1, "e_SFT": 0, "angle": 180, "error": 4},
        **{"bound_KN": 2, "bound_IF": 2, "bound_SFT": 2, "alpha": 0.5, "recall": 1},
    }
    assert {name: result.figures[name] for name in by_hand} == pytest.approx(by_hand, abs=1e-6)
    assert chosen(Brief(alpha=0.0), FOUR, 2).indices.tolist() == [1, 2]
    assert chosen(Brief(alpha=1.0), FOUR, 2).indices.tolist() == [0, 2]
    assert chosen(Brief(alpha=1.0), FOUR, 2).reasons["represented_by"].tolist() == [0, 0, 2, 2]


# the bounds


def assert_bounds(figures: dict[str, float], slack: float = 1e-9) -> None:
    scale = slack * (1.0 + figures["S_KN"] + figures["S_IF"])
    assert figures["e_KN"] <= figures["S_KN"] + scale
    assert figures["e_IF"] <= figures["S_IF"] + scale
    assert figures["e_SFT"] <= figures["S_KN"] + figures["S_IF"] + scale
    assert figures["e_SFT"] <= figures["e_KN"] + figures["e_IF"] + scale
    assert figures["B_KN"] <= figures["S_KN"] + scale
    assert figures["B_IF"] <= figures["S_IF"] + scale
    if "error" in figures:
        alpha, error = figures["alpha"], figures["error"]
        assert figures["S_KN"] / alpha + figures["S_IF"] / (1 - alpha) == pytest.approx(error)
        assert figures["S_KN"] <= figures["bound_KN"] + scale / alpha
        assert figures["S_IF"] <= figures["bound_IF"] + scale / (1 - alpha)
        assert figures["S_KN"] + figures["S_IF"] <= figures["bound_SFT"] + scale / min(alpha, 1 - alpha)


@pytest.mark.parametrize("lower", ["dense", "graph", "partitions"])
def test_the_bounds_hold_in_a_thousand_random_pools(lower: str) -> None:
    rng = np.random.default_rng(0)
    for case in range(1000):
        n = int(rng.integers(1, 25))
        pool = random_pool(n, int(rng.integers(1, 6)), rng, ["plain", "copies", "zeros", "equal"][case % 4])
        alpha = [0.0, 1.0, float(rng.random())][case % 3]
        size = [1, n, int(rng.integers(1, n + 1))][rng.integers(3)]
        result = chosen(Brief(alpha=alpha, lower=lower, neighbors=3), pool, size)
        assert_bounds(dict(result.figures))
        assert result.reasons["represents"].sum() == n  # Σw = N
        assert result.weights * n / size == pytest.approx(result.reasons["represents"][result.indices])
        assert (result.reasons["represents"][result.indices] >= 1).all()  # a pick represents itself


@given(st.integers(1, 25), st.integers(0, 2**32 - 1), st.sampled_from(["plain", "copies", "zeros", "equal"]))
@FEW
def test_the_certificate_is_what_the_formulas_say(n: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    pool = random_pool(n, 3, rng, kind)
    result = chosen(
        Brief(alpha=float(rng.uniform(0.05, 0.95)), neighbors=2, lower="graph"), pool, (n + 1) // 2
    )
    figures, weight = result.figures, result.reasons["represents"][result.indices]
    represented_by = result.reasons["represented_by"].astype(int)
    error = {}
    for name, short in (("kn_gradient", "KN"), ("if_gradient", "IF")):
        rows = pool.features[name].astype(np.float64)
        distance = far(pool, name)
        error[short] = rows.sum(axis=0) - weight @ rows[result.indices]
        assert figures[f"e_{short}"] == pytest.approx(np.linalg.norm(error[short]), abs=1e-6)
        assert figures[f"S_{short}"] == pytest.approx(distance[np.arange(n), represented_by].sum(), abs=1e-6)
        nearest = distance[:, result.indices].min(axis=1).sum()
        assert figures[f"B_{short}"] == pytest.approx(nearest, abs=3e-3 * (1 + np.abs(rows).sum()))
    assert figures["e_SFT"] == pytest.approx(np.linalg.norm(error["KN"] + error["IF"]), abs=1e-6)


# the lower level


@given(st.integers(1, 25), st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=40, derandomize=True)  # where rounding may decide a draw
def test_the_coreset_is_greedy_on_the_composite_distance(n: int, seed: int, alpha: float) -> None:
    pool = random_pool(n, 3, np.random.default_rng(seed), "plain")
    composite = (1 - alpha) * far(pool, "kn_gradient") + alpha * far(pool, "if_gradient")
    result = chosen(Brief(alpha=alpha), pool, (n + 1) // 2)
    assert result.indices.tolist() == greedy(composite, (n + 1) // 2)
    nearest = composite[:, result.indices].min(axis=1)
    represented_by = result.reasons["represented_by"].astype(int)
    assert composite[np.arange(n), represented_by] == pytest.approx(nearest, abs=1e-2)
    assert (np.diff(result.gains) <= 1e-5 * result.gains[0]).all()


def test_at_the_endpoints_the_other_space_has_no_say() -> None:
    pool = random_pool(40, 4, np.random.default_rng(0), "plain")
    other = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    for alpha, name in ((0.0, "if_gradient"), (1.0, "kn_gradient")):
        changed = dataclasses.replace(pool, features={**pool.features, name: other})
        for lower in ("dense", "graph", "partitions"):
            one, two = (chosen(Brief(alpha=alpha, lower=lower), p, 8) for p in (pool, changed))
            # the graph of 128 neighbours lists all of 40 rows, whichever space lists them
            assert one.indices.tolist() == two.indices.tolist()


def test_the_control_on_the_whole_gradient_is_craig() -> None:
    pool = random_pool(50, 4, np.random.default_rng(0), "plain")
    whole = pool.features["kn_gradient"] + pool.features["if_gradient"]
    craig = Craig().select(
        dataclasses.replace(pool, features={"gradient": whole}), Budget(10), np.random.default_rng(0)
    )
    for lower in ("dense", "graph"):
        control = chosen(Brief(objective="sft", lower=lower), pool, 10)
        assert set(control.indices.tolist()) == set(craig.indices.tolist()) or lower == "graph"
        assert "alpha" not in control.figures
        assert_bounds(dict(control.figures))
    assert chosen(Brief(objective="sft"), pool, 10).weights.tolist() == craig.weights.tolist()


def test_held_blocks_and_16_bits_agree() -> None:
    pool = synthetic_pool(200, 6, 0)
    held = chosen(Brief(alpha=0.4), pool, 20)
    dense, rng = Brief(alpha=0.4, lower="dense"), np.random.default_rng
    blocks = dense.choose(pool, Budget(20), rng(0), memory_limit="0.001MiB")
    short = dense.choose(pool, Budget(20), rng(0), memory_limit="0.2MiB")
    assert [r.figures["lower_level"] for r in (held, blocks, short)] == ["held", "blocks", "held"]
    assert "16 bits" in short.figures["guarantee"]
    assert held.indices.tolist() == blocks.indices.tolist()
    assert short.figures["E"] == pytest.approx(held.figures["E"], rel=1e-2)


def test_stochastic_greedy_is_close_and_repeats_for_its_seed() -> None:
    pool = synthetic_pool(300, 6, 0)
    lazy = chosen(Brief(alpha=0.5), pool, 30)
    drawn = [chosen(Brief(alpha=0.5, greedy="stochastic"), pool, 30, seed) for seed in (1, 1, 2)]
    assert drawn[0].indices.tolist() == drawn[1].indices.tolist() != drawn[2].indices.tolist()
    assert all(result.gains.sum() >= 0.98 * lazy.gains.sum() for result in drawn)


# the upper level


@pytest.mark.parametrize("settings_", [{}, {"grid": 5}, {"search": "ternary"}, {"lower": "graph"}])
def test_the_best_alpha_evaluated_wins(settings_: dict[str, object]) -> None:
    pool = synthetic_pool(120, 6, 3)
    result = chosen(Brief(**settings_), pool, 12)  # type: ignore[arg-type]
    curve = result.figures["curve"]
    assert 8 <= len(curve) <= 15
    best = min(curve, key=lambda point: point[1])
    assert [result.figures["alpha"], result.figures["E"]] == pytest.approx(best)
    for alpha, error in curve[::4]:  # each point of the curve is what that alpha alone gives
        alone = chosen(Brief(alpha=alpha, lower=str(settings_.get("lower", "auto"))), pool, 12)
        assert alone.figures["E"] == pytest.approx(error)
    again = chosen(Brief(alpha=result.figures["alpha"], lower=str(settings_.get("lower", "auto"))), pool, 12)
    assert again.indices.tolist() == result.indices.tolist()
    assert again.weights.tolist() == result.weights.tolist()


def test_unusable_rows_have_no_say() -> None:
    pool = synthetic_pool(60, 5, 0, unusable=0.4)
    usable = np.flatnonzero(pool.usable)
    alone = pool_of(pool.features["kn_gradient"][usable], pool.features["if_gradient"][usable])
    result, expected = chosen(Brief(), pool, 9), chosen(Brief(), alone, 9)
    assert result.indices.tolist() == usable[expected.indices].tolist()
    assert result.figures["represented"] == len(usable)
    assert (result.reasons["represented_by"][~pool.usable] == -1).all()
    assert not result.reasons["represents"][~pool.usable].any()


@pytest.mark.parametrize("lower", ["dense", "graph", "partitions"])
def test_the_whole_pool_is_matched_without_error(lower: str) -> None:
    pool = random_pool(30, 4, np.random.default_rng(0), "plain")
    result = chosen(Brief(lower=lower, neighbors=4), pool, 30)
    assert result.weights.tolist() == [1.0] * 30
    errors = ("E", "S_KN", "S_IF", "e_KN", "e_IF", "e_SFT")
    assert [result.figures[name] for name in errors] == pytest.approx([0.0] * 6, abs=1e-9)


@pytest.mark.parametrize(
    "settings_",
    [
        {"lower": "graph", "neighbors": 3},
        {"lower": "partitions", "neighbors": 3},
        {"lower": "dense", "alpha": 0.3},
        {"objective": "sft"},
        {"greedy": "stochastic", "grid": 4},
    ],
)
def test_every_setting_sits_the_exam(settings_: dict[str, object]) -> None:
    check_selector(Brief(**settings_), seed=1)  # type: ignore[arg-type]


def test_a_refresh_measures_anew_and_chooses_again() -> None:
    method = {"brief": {"lower": "graph", "neighbors": 5}}
    config = build_coreset({"method": method, "budget": "20%", "refresh_every": 1}, 0)
    model, pool, ledger = FakeModel(40), empty_pool(np.arange(5, 45)), Ledger()
    schedule = make_schedule(config, 40, coreset_rows(config, pool), 4)
    measurement = model.measurement(*config.needs)
    first = start(config, pool, schedule, measurement, ledger)
    model.age += 3
    second = advance(config, first, schedule, measurement, ledger)
    assert len(first.coreset.indices) == len(second.coreset.indices) == 8
    assert set(first.coreset.indices.tolist()) != set(second.coreset.indices.tolist())
    for state, age in ((first, 0), (second, 3)):
        model.age = age
        seen = pool_of(model.signal("kn_gradient"), model.signal("if_gradient"))
        wanted = config.selector.select(seen, Budget(8), np.random.default_rng([0, state.round, 4]))
        assert state.coreset.indices.tolist() == wanted.indices.tolist()
        assert state.coreset.figures == wanted.figures


def test_the_figures_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    pool = synthetic_pool(30, 4, 0)
    state = State(0, 0, 1, pool, chosen(Brief(), pool, 4))
    save(state, tmp_path)
    assert load(tmp_path).coreset.figures == state.coreset.figures


# settings


def test_its_settings_stand_below_its_name() -> None:
    section = {"method": {"brief": {"alpha": 0.3, "grid": 5}}, "budget": "5%"}
    assert build_coreset(section, 0).selector == Brief(alpha=0.3, grid=5)
    assert build_coreset({"method": "brief", "budget": "5%"}, 0).weighted


def test_it_has_a_warm_up_run_and_says_what_goes_with_it() -> None:
    brief = Brief()
    assert isinstance(brief, UsesCheckpoints)
    assert (brief.checkpoints_from, brief.checkpoints) == ("warmup", 1)
    assert brief.defaults["weighted"] is True
    assert brief.defaults["signals"]["preconditioner"] == "adam"
    assert hash(brief) == hash(Brief())


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"objective": "if"}, "objective is 'if'; there are brief, sft"),
        ({"search": "line"}, "search is 'line'"),
        ({"lower": "sparse"}, "there are auto, dense, graph, partitions"),
        ({"greedy": "naive"}, "there are lazy, stochastic"),
        ({"grid": 2}, "grid is 2"),
        ({"grid": 20}, "grid is 20: 0, or from 3 to evaluations = 15"),
        ({"evaluations": 1}, "at least 2"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"neighbors": 0}, "neighbors is 0"),
        ({"checkpoints": 4}, "BRIEF measures at one"),
    ],
)
def test_a_setting_that_cannot_be_is_an_error(settings_: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Brief(**settings_)  # type: ignore[arg-type]


def test_memory_is_read_in_binary_units() -> None:
    assert bytes_of("4GiB") == 4 * 2**30
    assert bytes_of(" 1.5 MiB ") == 3 * 2**19


def test_the_lower_level_is_announced_before_it_starts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="coretune"):
        chosen(Brief(alpha=0.5), synthetic_pool(60, 4, 0), 6)
    assert "BRIEF, lower level: 60 rows, held: about 0 s" in caplog.text
    assert "within 1 − 1/e" in caplog.text
