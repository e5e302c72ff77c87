"""Several processes: the same run as one, every row once, one decision; who dies or fails stops the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import corpus

from coretune.recording.run_files import CONFIG, LEDGER, REPORT
from coretune.training.processes import Processes, merge, shard

pytestmark = pytest.mark.xdist_group("processes")  # all read what one interpreter has run
Ran = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """What every process of every scenario of process_run.py did, by rank; the folder is one for all."""
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).with_name("process_run.py")
    known = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{script.parent}:{script.parents[1]}"}
    told = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, env=known)
    found: Ran = {}
    for path in sorted(folder.glob("*.json")):
        found.setdefault(path.stem.rpartition("-")[0], []).append(json.loads(path.read_text()))
    assert "one" in found, told.stderr[-3000:]
    return found


def steps(processes: list[dict[str, Any]]) -> list[list[str]]:
    """The rows of every step, of all processes, by rank."""
    return [list(chain(*parts)) for parts in zip(*(one["trained"] for one in processes), strict=True)]


@pytest.mark.parametrize(("name", "count"), [("two", 2), ("four", 4)])
def test_the_coresets_and_the_rows_of_every_step_are_those_of_one_process(
    ran: Ran, name: str, count: int
) -> None:
    """With weights in the loss, a measurement of 48 rows, and one of 3: a fourth process has none."""
    (alone,), together = ran["one"], ran[name]
    assert len(together) == count
    for process in together:
        assert process["coresets"] == alone["coresets"]
        assert process["tokens"] == alone["tokens"]
        assert [len(batch) for batch in process["trained"]] == [8 // count] * 8
    assert [sorted(rows) for rows in steps(together)] == [sorted(rows) for rows in alone["trained"]]
    assert steps(together) == alone["trained"]  # sharded in turn
    assert len({process["weights"] for process in together}) == 1
    assert together[0]["norm"] == pytest.approx(alone["norm"], rel=1e-6)


def test_the_first_process_measures_on_everybodys_behalf_and_keeps_the_books(ran: Ran) -> None:
    for name in ("one", "two", "four"):
        first, *others = ran[name]
        assert first["measured"] == [48, 3]
        assert first["logged"] == 2
        assert all(other["measured"] == [] and other["logged"] == 0 for other in others)
    tokens = int(corpus(12, 1).length.sum())
    assert ran["one"][0]["evaluated"] == [12, tokens]
    for name in ("two", "four"):  # all processes' rows, those that even out the batches too
        assert len({tuple(process["evaluated"]) for process in ran[name]}) == 1
        assert ran[name][0]["evaluated"][0] >= 12


@pytest.mark.parametrize("name", ["resumed by four", "resumed by one"])
def test_another_number_of_processes_goes_on_with_the_same_coreset_and_rows(ran: Ran, name: str) -> None:
    """From step 4 of the run of two, in the middle of a round."""
    assert steps(ran[name]) == steps(ran["two"])[4:]
    for process in ran[name]:
        assert process["coresets"] == ran["two"][0]["coresets"]
    assert ran[name][0]["norm"] == pytest.approx(ran["two"][0]["norm"], rel=1e-6)


def test_a_warm_up_run_of_two_processes_is_that_of_one(ran: Ran) -> None:
    (alone,), together = ran["warm-up, one"], ran["warm-up, two"]
    assert [sorted(process["coresets"]) for process in together] == [["0", "1"]] * 2
    for process in together:
        assert process["coresets"] == alone["coresets"]
        assert process["tokens"] == alone["tokens"]
    assert together[0]["weights"] == together[1]["weights"]
    assert together[0]["norm"] == pytest.approx(alone["norm"], rel=1e-6)


def furthest(here: dict[str, Any], there: dict[str, Any]) -> float:
    """The largest difference of a weight."""
    assert here["weights"].keys() == there["weights"].keys()
    return max(
        np.abs(np.subtract(here["weights"][name], value)).max() for name, value in there["weights"].items()
    )


@pytest.mark.parametrize("adapter", ["", ", adapter"])
@pytest.mark.parametrize("kind", ["FULL", "SHARDED"])
def test_weights_that_fsdp_splits_are_trained_as_whole_ones(ran: Ran, kind: str, adapter: str) -> None:
    """All weights with GRACE, LoRA with a method of gradients; measured before steps 1, 3 and 5, after which
    no gradient may be missing. One model is saved at the end, however checkpoints are."""
    expected = ran[f"DDP{adapter}"][0]
    assert len(expected["losses"]) == 5
    assert steps(ran[f"{kind}{adapter}"]) == steps(ran[f"DDP{adapter}"])
    for process in ran[f"{kind}{adapter}"]:
        assert process["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert process["norms"] == pytest.approx(expected["norms"], rel=1e-4)
        assert furthest(process, expected) < 1e-5
        assert process["saved"] == ["adapter_model.safetensors" if adapter else "model.safetensors"]


@pytest.mark.parametrize("name", ["FULL", "SHARDED", "SHARDED, adapter"])
def test_weights_that_fsdp_splits_come_back_from_a_checkpoint(ran: Ran, name: str) -> None:
    for resumed, whole in zip(ran[f"{name} resumed"], ran[name], strict=True):
        assert resumed["trained"] == whole["trained"][3:]
        assert resumed["norms"][-2:] == whole["norms"][-2:]
        assert furthest(resumed, whole) == 0


def test_a_warm_up_run_of_split_weights_is_refused_before_anything_is_trained(ran: Ran) -> None:
    for process in ran["warm-up, split"]:
        assert process["written"] == []
        for method in ("brief", "gtp"):
            assert "FSDP and DeepSpeed split it: select without them" in process["errors"][method]


def test_the_command_in_two_processes_writes_each_file_once(ran: Ran) -> None:
    """Process 0 alone writes the ledger, the config, the coreset and the page."""
    first, second = ran["command"]
    assert (first["rounds"], second["rounds"]) == (2, 0)
    run, selected = Path(first["selected"]).parents[2] / "command", Path(first["selected"]).parents[1]
    for folder in (run, selected):
        for name in (CONFIG, LEDGER, REPORT):
            assert (folder / name).is_file(), name
        assert not list(folder.rglob("*.part"))
    rounds = json.loads((run / LEDGER).read_text())["rounds"]
    assert [entry["rows_chosen"] for entry in rounds] == [6, 6]
    assert len(Path(first["selected"]).read_text().splitlines()) == 6


def test_processes_that_take_themselves_for_the_only_one_are_refused(ran: Ran) -> None:
    for process in ran["strangers"]:
        assert process["error"].startswith(
            "2 processes were started, and the trainer's arguments know of one"
        )
        assert "use_cpu=True" in process["error"]


def test_when_a_process_dies_the_other_stops_and_says_so(ran: Ran) -> None:
    (left,) = ran["dies"]
    assert left["error"].startswith("ProcessLost: process 0 stops: another process is gone, or was silent")
    assert "resume_from_checkpoint=True" in left["error"]


def test_when_a_process_fails_all_stop_and_name_it(ran: Ran) -> None:
    first, second = ran["raises"]
    assert first["error"] == "ProcessFailed: process 1: ValueError: no such layer"
    assert second["error"] == f"ProcessFailed: process 0 stopped: {first['error']}"


@given(cost=st.lists(st.integers(1, 1000), max_size=40), hands=st.integers(1, 6))
def test_rows_are_dealt_out_evenly_and_come_back_to_their_places(cost: list[int], hands: int) -> None:
    costs = np.array(cost, np.int64)
    shards = shard(costs, hands)
    assert sorted(np.concatenate(shards)) == list(range(len(cost)))
    assert np.ptp([len(hand) for hand in shards]) <= 1
    loads = [costs[hand].sum() for hand in shards]
    assert np.ptp(loads) <= max(cost, default=0)
    values = np.stack([costs, costs * 2], axis=1).astype(np.float32)
    parts = [{"wide": values[hand], "flat": costs[hand]} if len(hand) else {} for hand in shards]
    merged = merge(parts, shards)
    if cost:
        assert np.array_equal(merged["wide"], values)
        assert np.array_equal(merged["flat"], costs)
        assert merged["wide"].dtype == np.float32


def test_one_process_asks_nobody() -> None:
    alone = Processes(0, 1, 1.0)
    assert alone.decide(lambda: 7, lambda seven: None) == 7
    alone.answers("rows", lambda n: n + 1)
    assert alone.call("rows", 2) == [3]
    look = dict
    assert alone.divided("measure", look, np.ones(3)) is look
    alone.wait()
    assert alone.total(np.array([1.0, 2.0])).tolist() == [1.0, 2.0]
    with pytest.raises(ZeroDivisionError):
        alone.decide(lambda: 1 / 0, lambda nothing: None)
