"""Selection on Ray is that of one machine, with any number of workers, and when one of them dies."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from coretune.cluster import selection
from coretune.cluster.features import Mapped
from coretune.cluster.selection import refuse_on_ray, select_on_ray
from coretune.select import brief, partitions
from coretune.select.brief import Brief
from coretune.select.columns import Columns
from coretune.select.craig import Craig
from coretune.select.facility_location import FacilityLocation
from coretune.select.grace import Grace
from coretune.select.gtp import Gtp
from coretune.select.lower_level import Task
from coretune.select.pursuit import pursue
from coretune.select.random import Random
from coretune.select.two_rounds import two_rounds
from coretune.types import Budget, Pool

ray = pytest.importorskip("ray", reason="the extra coretune[ray] is not installed")
from coretune.cluster.columns import RayColumns, Shard  # noqa: E402
from coretune.cluster.parts import PartsOnRay, in_turn, parts_on_ray  # noqa: E402
from coretune.cluster.session import connected  # noqa: E402

pytestmark = pytest.mark.xdist_group("ray")  # one process, so that one Ray is started
N, D = 900, 48


@pytest.fixture(scope="module")
def session():
    """One small local Ray for all tests."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
    )
    yield
    ray.shutdown()


def features(seed: int = 0, dtype=np.float32) -> np.ndarray:
    """(N, D): few directions, with copies, a zero row, and rows of very different length."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((N, 12)) @ rng.standard_normal((12, D)) + 0.3
    values *= rng.gamma(1.0, 1.0, (N, 1))
    values[100:200] = values[:100]
    values[500] = 0.0
    return values.astype(dtype)


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)


def pool_of(trajectory: np.ndarray) -> Pool:
    usable = np.ones(N, bool)
    usable[7] = False
    return Pool(
        features={"trajectory": trajectory},
        cost=np.random.default_rng(1).integers(5, 50, N),
        measured_at=np.zeros(N, np.int32),
        usable=usable,
    )


def assert_same(found, expected) -> None:
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(found.gains, expected.gains)
    assert found.figures == expected.figures
    for name, reason in expected.reasons.items():
        np.testing.assert_array_equal(found.reasons[name], reason)


def mapped(tmp_path, values: np.ndarray) -> np.ndarray:
    np.save(tmp_path / "trajectory.npy", values)
    return np.load(tmp_path / "trajectory.npy", mmap_mode="c")


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_chooses_what_one_machine_does(session, tmp_path, workers):
    """In halves, behind a memory map, to the last index and the last bit of the weights."""
    values = mapped(tmp_path, features(dtype=np.float16))
    target = np.asarray(values, np.float64).mean(0)
    expected = pursue(Columns.of(values).top, target, 60, 0.01, np.ones(N, bool))
    columns = RayColumns.of(values, workers)
    found = pursue(columns.top, target, 60, 0.01, np.ones(N, bool))
    np.testing.assert_array_equal(columns.correlate(target), Columns.of(values).correlate(target))
    assert len(columns.shards) == workers
    assert len(found.rows) > 20
    for name in ("rows", "weights", "gains", "entered"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.residual == expected.residual


@dataclass(frozen=True)
class Deadly(Mapped):
    """Kills the worker that opens it, so many times."""

    deaths: Path
    times: int

    def open(self) -> np.ndarray:
        if len(list(self.deaths.iterdir())) < self.times:
            (self.deaths / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open()


def test_workers_that_are_killed_in_the_middle_change_nothing(session, tmp_path):
    values = mapped(tmp_path, features(seed=2))
    target = values.astype(np.float64).mean(0)
    expected = pursue(Columns.of(values).top, target, 60, 0.01, np.ones(N, bool))
    columns = RayColumns.of(values, 2)
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    deadly = Deadly(**vars(Mapped.of(values)), deaths=deaths, times=2)
    shards = (columns.shards[0], ray.put(Shard(deadly, N // 2, N)))
    found = pursue(replace(columns, shards=shards).top, target, 60, 0.01, np.ones(N, bool))
    assert len(list(deaths.iterdir())) == 2
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.weights, expected.weights)


@pytest.mark.parametrize("unit", ["rows", "tokens"])
def test_a_whole_selection_with_targets_is_the_same(session, unit):
    pool = pool_of(features(seed=3))
    targets = np.random.default_rng(4).standard_normal((2, D)).astype(np.float32) + 0.3
    references = {"trajectory": targets, "share": np.float32([0.7, 0.3])}
    pool = Pool(pool.features, pool.cost, pool.measured_at, pool.usable, references=references)
    budget = Budget(50) if unit == "rows" else Budget(900, "tokens")
    expected = Gtp().select(pool, budget, np.random.default_rng(0))
    assert_same(select_on_ray(Gtp(), pool, budget, np.random.default_rng(0)), expected)
    assert ray.is_initialized()  # a connection that was there stays


# ------------------------------------------------------------------------------------------ two rounds


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("method", [Craig(), FacilityLocation(similarity="dense")])
def test_two_rounds_are_the_same_on_any_number_of_workers(session, method, workers):
    pool = Pool(
        features={name: unit(features(seed=5)) for name in method.needs},
        cost=np.ones(N, np.int64),
        measured_at=np.zeros(N, np.int32),
        usable=np.arange(N) != 500,
    )
    rounds = partial(two_rounds, seed=3, part_rows=200)
    expected = method.choose(pool, Budget(30), rounds)
    assert_same(method.choose(pool, Budget(30), partial(rounds, each=parts_on_ray(workers))), expected)


def test_briefs_parts_are_the_same_on_workers(session, monkeypatch):
    """Three parts; one worker has two of them, and is killed between two mixes."""
    rng = np.random.default_rng(7)
    kn, if_ = (rng.standard_normal((N, 8)).astype(np.float16) for _ in range(2))
    pool = Pool(
        {"kn_gradient": kn, "if_gradient": if_},
        np.ones(N, np.int64),
        np.zeros(N, np.int32),
        np.arange(N) != 5,
    )
    method, budget = Brief(lower="partitions", neighbors=8, evaluations=3), Budget(20)
    in_three = partial(partitions.parted_level, part_rows=300)
    monkeypatch.setattr(brief, "parted_level", in_three)
    expected = method.choose(pool, budget, np.random.default_rng(0))

    def make_parts(inside, k, seed):
        assert len(inside) == 3
        made = PartsOnRay.of(inside, k, seed, 2)
        made.pick(np.array([0.5, 0.5]), [task_of(len(spaces[0].rows)) for spaces in inside])
        pid = ray.get(made.workers[0].__ray_call__.remote(lambda worker: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        return made

    assert_same(method.choose(pool, budget, np.random.default_rng(0), make_parts), expected)


def task_of(n: int) -> Task:
    return Task(Budget(3), np.ones(n, np.int64), np.ones(n), "lazy", 0)


def test_parts_survive_the_death_of_their_workers(session, tmp_path):
    def task(number: int) -> int:
        if number == 2 and not (tmp_path / "dead").exists():
            (tmp_path / "dead").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 10 * number

    assert in_turn(task, iter(range(5)), 1) == [0, 10, 20, 30, 40]
    assert (tmp_path / "dead").exists()


def test_a_selection_says_that_its_guarantee_is_weaker(session, monkeypatch, caplog):
    monkeypatch.setattr(selection, "PART_ROWS", 200)  # of when there are two rounds; the parts stay as large
    values = unit(features(seed=5))
    pool = Pool({"gradient": values}, np.ones(N, np.int64), np.zeros(N, np.int32), np.arange(N) != 500)
    found = select_on_ray(Craig(), pool, Budget(30), np.random.default_rng(0))
    assert "weaker than one greedy's" in found.figures["guarantee"]
    assert "weaker than one greedy's" in caplog.text


def test_a_pool_of_one_part_is_chosen_from_as_ever(session):
    pool = Pool(
        {"gradient": unit(features())}, np.ones(N, np.int64), np.zeros(N, np.int32), np.arange(N) != 500
    )
    found = select_on_ray(Craig(), pool, Budget(9), np.random.default_rng(0))
    assert_same(found, Craig().select(pool, Budget(9), np.random.default_rng(0)))


# ------------------------------------------------------------------------------- how rows get to workers


def test_only_a_map_of_the_file_as_it_is_is_read_from_the_file(tmp_path):
    values = features()
    whole = mapped(tmp_path, values)
    assert np.array_equal(Mapped.of(whole).open(), values)
    assert Mapped.of(values) is None
    assert Mapped.of(whole[10:]) is None
    assert Mapped.of(whole.T) is None
    whole[0] += 1.0  # private: the file does not know of it
    assert Mapped.of(whole) is None


def test_a_file_that_a_node_cannot_see_is_named_with_the_remedy(tmp_path):
    found = Mapped.of(mapped(tmp_path, features()))
    (tmp_path / "trajectory.npy").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*trajectory.npy .*put signals_dir where all nodes"):
        found.open()


# --------------------------------------------------------------------------------------------- refusals


def test_a_method_without_a_form_for_a_cluster_is_named():
    with pytest.raises(ValueError, match="engine is ray, and random selects on one machine only"):
        select_on_ray(Random(), pool_of(features()), Budget(5), np.random.default_rng(0))


def test_a_similarity_that_parts_would_cut_is_refused_before_anything_is_measured():
    with pytest.raises(ValueError, match="similarity is graph, of which parts would cut most edges"):
        refuse_on_ray(Grace())
    with pytest.raises(ValueError, match="lower is graph, which one machine does"):
        refuse_on_ray(Brief(lower="graph"))
    refuse_on_ray(Grace(similarity="dense"))


def test_no_cluster_at_the_address_is_one_line(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def nobody(**_):
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setattr(ray, "init", nobody)
    expected = r"no Ray cluster at ray_address '10\.0\.0\.1:6379': Could not find"
    with pytest.raises(ValueError, match=expected) as caught, connected("10.0.0.1:6379"):
        pass
    assert "\n" not in str(caught.value)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'coretune\[ray\]'"), connected(None):
        pass
