"""`bench/targets.py`: what is held out, which runs there are, what is read, which targets are missed."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_run import write_jsonl


@pytest.fixture(autouse=True)
def _bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))


def rows(source: str, n: int, longest: int = 30) -> list[dict[str, str]]:
    return [
        {
            "id": f"{source}-{i}",
            "prompt": f"{source} {i} " + "x" * (i % longest),
            "completion": "y",
            "source": source,
        }
        for i in range(n)
    ]


@pytest.fixture
def folders(tmp_path: Path) -> dict[tuple[str, int], Path]:
    from targets_pools import Plan, Task, make_folders

    for name, sources in (("one", ("a", "b")), ("two", ("c",))):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "pool.jsonl", [row for source in sources for row in rows(source, 60)])
    scored = [{**row, "prompt": f"held {row['prompt']}"} for row in rows("a", 8)]
    write_jsonl(tmp_path / "one" / "eval.jsonl", scored)
    tasks = (Task("first", ("a",)), Task("last", ("c",)))
    plan = Plan({tmp_path / "one": 1000, tmp_path / "two": 20}, tasks, (2, 5), 6, 100)
    return make_folders(plan, tmp_path / "made")


def prompts(folder: Path, name: str) -> list[str]:
    return [json.loads(line)["prompt"] for line in (folder / name).read_text().splitlines()]


def test_examples_and_scored_rows_are_in_no_pool_and_few_examples_are_the_first_of_many(
    folders: dict[tuple[str, int], Path],
) -> None:
    pool = prompts(folders["first", 2], "pool.jsonl")
    assert len(pool) == len(set(pool)) == 100
    for (task, count), folder in folders.items():
        assert prompts(folder, "pool.jsonl") == pool  # the same for all tasks
        examples, scored = prompts(folder, "target.jsonl"), prompts(folder, "eval.jsonl")
        assert len(examples) == count
        assert not set(pool) & {*examples, *scored}
        assert not set(examples) & set(scored)
        assert examples == prompts(folders[task, 5], "target.jsonl")[:count]
        assert all(text.removeprefix("held ").startswith("a" if task == "first" else "c") for text in scored)
    assert all(len(text) < 20 for text in pool if text.startswith("c"))


def arguments(**changed: Any) -> argparse.Namespace:
    given = {"seeds": "0,1", "budgets": "1%,5%", "arms": "random,rds", "epochs": 0.4, "lora": 4}
    return argparse.Namespace(**{**given, "learning_rate": None, **changed})


def model_of(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def test_arms_that_know_no_target_are_trained_once_for_all_tasks(
    folders: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    from targets import jobs_of

    jobs = jobs_of(arguments(), folders, model_of(tmp_path))
    per_seed = 2 + 2 + 2 * 4  # full twice, random a budget, rds a budget, task and number of examples
    assert len(jobs) == 1 + 2 * per_seed
    assert {len(job.folders) for job in jobs if job.run.arm != "rds"} == {2}
    assert {len(job.folders) for job in jobs if job.run.arm == "rds"} == {1}
    keys = [job.key(task) for job in jobs for task, _ in job.folders]
    assert len(set(keys)) == len(keys)


def test_finished_jobs_are_read_and_other_examples_are_another_job(
    folders: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    from targets import jobs_of, run_all

    ran: list[Any] = []

    def finished(some: Sequence[Any]) -> Iterator[list[dict[str, Any]]]:
        ran.extend(some)
        facts = {"arm": "rds", "seed": 0, "loss": 1.0}
        return ([{**facts, "task": t, "key": job.key(t)} for t, _ in job.folders] for job in some)

    jobs, file = jobs_of(arguments(), folders, model_of(tmp_path)), tmp_path / "results.jsonl"
    first = run_all(jobs, file, finished)
    assert len(first) == sum(len(job.folders) for job in jobs)
    assert run_all(jobs, file, finished) == first
    assert len(ran) == len(jobs)
    target = folders["last", 2] / "target.jsonl"
    target.write_text("\n".join(target.read_text().splitlines()[::-1]) + "\n")
    run_all(jobs_of(arguments(), folders, model_of(tmp_path)), file, finished)
    assert len(ran) == len(jobs) + 4  # two budgets, two seeds


def results(**losses: float | None) -> list[dict[str, Any]]:
    """Two tasks, three seeds; gtp's loss a task, its cost and what the others have."""
    found = []
    for task in ("one", "two"):
        for seed in range(3):
            shared = {"task": task, "seed": seed, "epoch_flops": 10.0, "examples": 5, "budget": "1%"}
            cost = {"full": 10.0}
            for arm, loss in losses.items():
                name = {"cascade": "gtp:filters=[{narrow: {times: 4}}]"}.get(arm, arm)
                none = {"examples": 0, "budget": ""} if arm == "full" else {}
                none = {"examples": 0} if arm == "random" else none
                spread = None if loss is None else loss + 0.01 * seed
                flops = {"flops": cost.get(arm, 3.0), "choosing_flops": {"cascade": 0.9}.get(arm, 3.0)}
                found.append({**shared, "arm": name, "loss": spread, **flops, **none})
    return found


GOOD = {"full": 1.0, "random": 1.2, "gtp": 0.9, "cascade": 0.91, "less": 0.95, "rds": 0.96}


def test_targets_that_are_met_are_not_named() -> None:
    from targets_table import missed

    assert missed(results(**GOOD)) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"gtp": 1.1, "cascade": 1.1, "less": 1.15, "rds": 1.15}, "reaches full's loss on 0 tasks, not 2"),
        ({"random": 0.9}, r"gtp − random is \+0.000 ± 0.000, not two errors below 0"),
        ({"rds": 0.8}, r"gtp − rds is \+0.100"),
        ({"cascade": 0.95}, "the cascade of gtp has 5.5% more loss, not 2%"),
        ({"full": None}, "--check needs the arm gtp"),
    ],
)
def test_each_target_that_is_missed_is_named(changed: dict[str, Any], words: str) -> None:
    from targets_table import missed

    lines = missed(results(**{**GOOD, **changed}))
    assert lines
    with pytest.raises(AssertionError, match=words):
        raise AssertionError("\n".join(lines))


def test_a_cascade_that_costs_too_much_is_named_also_where_gradients_for_all_were_never_trained() -> None:
    from targets_table import missed, unaffordable

    some = results(**{**GOOD, "gtp": None})
    for result in some:
        if "narrow" in result["arm"]:
            result["choosing_flops"] = 1.5
    assert any(
        "the cascade of gtp costs 50% of the gradients of all, not 33%" in line for line in missed(some)
    )
    assert unaffordable(some) == ["gtp: not trained, choosing alone costs 0.30 epochs"]


def test_words_find_the_rows_that_share_them_with_an_example(
    folders: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    pytest.importorskip("bm25s")
    from real_words import nearest_by_words

    folder = folders["last", 2]
    write_jsonl(folder / "target.jsonl", [{"prompt": "the colour of tulips", "completion": "red"}])
    some = rows("a", 30)
    some[17]["prompt"] = "which colour have tulips"
    write_jsonl(folder / "pool.jsonl", some)
    found = nearest_by_words(folder, 1 / 30, tmp_path)
    assert [json.loads(line)["id"] for line in found.read_text().splitlines()] == ["a-17"]


def test_the_sources_of_the_rows_trained_on_are_counted_as_often_as_each_row_was(tmp_path: Path) -> None:
    from real_run import source_shares

    write_jsonl(
        tmp_path / "pool.jsonl", [*rows("a", 2), *rows("b", 1), {"id": "x", "prompt": "", "completion": ""}]
    )
    assert source_shares(["a-0", "b-0", "a-1", "a-0"], tmp_path) == {"a": 0.75, "b": 0.25}
    assert source_shares(["x", "a-0"], tmp_path) == {"None": 0.5, "a": 0.5}


def test_a_job_that_fails_ends_the_jobs_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import real

    monkeypatch.setattr(real, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers))
    done: list[int] = []

    def work(job: int) -> int:
        if job == 1:
            raise ValueError("too few rows")
        time.sleep(0.02)
        done.append(job)
        return job

    with pytest.raises(ValueError, match="too few rows"):
        list(real.in_workers(work, range(50), 1))
    assert len(done) < 40


def test_every_arm_with_a_target_chooses_once() -> None:
    from real_arms import section_of
    from targets import ARMS, TARGETED

    from coretune.comparing.arms import split_arms

    arms = [arm for arm in split_arms(ARMS) if arm.partition(":")[0] in TARGETED[:3]]
    assert len(arms) == 5
    assert {section_of(arm, "5%")["refresh_every"] for arm in arms} == {"never"}
