from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.ledger import (
    PHASES,
    TABLE_HEADER,
    Cost,
    Ledger,
    ModelShape,
    Round,
    forward_flops,
    measurement_flops,
    overlap,
    training_flops,
)


class Clock:
    """Whole seconds, moved by hand, so that sums are exact."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def stays(depth: int = 3) -> st.SearchStrategy:
    """A phase, the seconds spent in it before each phase inside it, and those phases."""
    inner = stays(depth - 1) if depth else st.nothing()
    steps = st.lists(st.tuples(st.integers(0, 9), inner), max_size=3) if depth else st.just([])
    return st.tuples(st.sampled_from(PHASES), st.integers(0, 9), steps)


def walk(ledger: Ledger, clock: Clock, stay: tuple, spent: dict[str, float]) -> None:
    name, seconds, steps = stay
    with ledger.phase(name):
        clock.now += seconds
        spent[name] += seconds
        for more, inner in steps:
            clock.now += more
            spent[name] += more
            walk(ledger, clock, inner, spent)
            # What is open counts as far as it has come, at any depth.
            assert {phase: cost.seconds for phase, cost in ledger.by_phase().items()} == spent


@settings(deadline=None, max_examples=60)
@given(tree=st.lists(stays(), max_size=3))
def test_every_second_is_counted_once_for_the_innermost_phase(tree: list) -> None:
    clock = Clock()
    ledger = Ledger(clock)
    spent = dict.fromkeys(PHASES, 0.0)
    for stay in tree:
        walk(ledger, clock, stay, spent)
        clock.now += 5  # outside of all phases: nobody's
    assert {name: cost.seconds for name, cost in ledger.costs.items()} == spent
    assert ledger.total().seconds == sum(spent.values())


def test_time_is_counted_when_the_phase_raises() -> None:
    clock = Clock()
    ledger = Ledger(clock)

    def fail() -> None:
        with ledger.phase("training"), ledger.phase("measurement", rows=3):
            clock.now += 4
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert ledger.costs["measurement"] == Cost(4.0, rows=3)
    assert ledger.costs["training"] == Cost()
    with ledger.phase("graph"):
        clock.now += 1
    assert ledger.total().seconds == 5


def test_seconds_that_somebody_else_timed_are_moved_out_of_the_open_phase() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    with ledger.phase("training"):
        clock.now += 10
        ledger.add("evaluation", seconds=4, rows=2, tokens=8, flops=1e3)
    ledger.add("warm-up", seconds=3)
    assert ledger.costs["training"].seconds == 6
    assert ledger.costs["evaluation"] == Cost(4.0, 2, 8, 1e3)
    assert ledger.costs["warm-up"].seconds == 3


def test_counts_set_inside_the_phase_are_kept_as_plain_numbers() -> None:
    ledger = Ledger(Clock())
    with ledger.phase("training", rows=1) as visit:
        visit.rows += np.int64(2)
        visit.tokens = np.int32(7)
        visit.flops = np.float32(2.0)
        assert ledger.by_phase()["training"] == Cost(0.0, 3, 7, 2.0)
    json.dumps(ledger.to_dict())
    assert ledger.costs["training"] == Cost(0.0, 3, 7, 2.0)


def test_one_unknown_cost_makes_the_sum_unknown_and_no_tokens_cost_nothing() -> None:
    ledger = Ledger(Clock())
    ledger.add("training", tokens=5, flops=100.0)
    ledger.add("graph", seconds=9)
    assert ledger.total().flops == 100.0
    ledger.add("measurement", tokens=5)
    assert ledger.costs["measurement"].flops is None
    assert ledger.costs["training"].flops == 100.0
    assert ledger.total().flops is None
    ledger.add("measurement", tokens=5, flops=1.0)
    assert ledger.costs["measurement"].flops is None


def test_a_resumed_ledger_goes_on_as_if_never_interrupted() -> None:
    def first_half(ledger: Ledger, clock: Clock) -> None:
        clock.now += 3
        with ledger.phase("measurement", rows=2, tokens=20, flops=5.0):
            clock.now += 2
        said = {"alpha": 0.5, "curve": [[0.5, 1.25]], "lower_level": "held"}
        ledger.add_round(Round(0, 2, 1, 2.0, None, {"spearman": 0.5}, said))

    def second_half(ledger: Ledger, clock: Clock) -> None:
        clock.now += 4
        ledger.add_round(Round(1, 1, 1, 0.0, 1.0))

    clock = Clock()
    straight = Ledger(clock)
    with straight.phase("training", rows=16):
        first_half(straight, clock)
        saved = json.loads(json.dumps(straight.to_dict()))
        second_half(straight, clock)

    other = Clock()
    other.now = 5.0  # another process, another clock
    resumed = Ledger.from_dict(saved, other)
    with resumed.phase("training"):
        second_half(resumed, other)
    assert resumed.to_dict() == straight.to_dict()


def test_rounds_come_in_order() -> None:
    ledger = Ledger()
    ledger.add_round(Round(3, 10, 5, 1.0, None))
    with pytest.raises(ValueError, match="round 3 cannot come after round 3"):
        ledger.add_round(Round(3, 10, 5, 1.0, None))


def test_overlap_is_the_share_of_this_coreset_that_was_in_the_last() -> None:
    assert overlap(None, np.array([1, 2])) is None
    assert overlap(np.array([1, 2, 9]), np.array([9, 3, 1, 4])) == 0.5
    assert overlap(np.array([5]), np.array([6])) == 0.0


def test_the_cost_of_selection_is_a_share_of_the_run() -> None:
    ledger = Ledger()
    assert ledger.selection_share() == "selection cost 0% of the run's seconds"
    ledger.add("training", 6.0, rows=9, tokens=90, flops=6e9)
    ledger.add("measurement", 2.0, rows=9, tokens=90, flops=2e9)
    ledger.add("graph", 1.0)
    ledger.add("evaluation", 1.0, rows=1, tokens=9, flops=2e9)
    assert ledger.selection_share() == "selection cost 20% of the run's FLOPs and 30% of its seconds"
    ledger.add("selection", 0.0, rows=1, tokens=9)  # of unknown FLOPs
    assert ledger.selection_share() == "selection cost 30% of the run's seconds"


def test_an_unknown_phase_is_refused_with_the_names_there_are() -> None:
    ledger = Ledger()
    with pytest.raises(
        ValueError, match="no phase 'warmup' in the ledger; the phases are warm-up, measurement"
    ):
        ledger.add("warmup", seconds=1)
    with pytest.raises(ValueError, match="no phase 'warmup'"), ledger.phase("warmup"):
        pass


def test_the_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.json"
    ledger = Ledger(Clock())
    ledger.add("training", seconds=2, rows=1, tokens=3)
    ledger.add_round(Round(0, 2, 1, 2.0, None, {"spearman": float("nan"), "cosine": 0.5}))
    ledger.write(path)
    state = json.loads(path.read_text())
    assert state == ledger.to_dict()
    assert state["rounds"][0]["approximation"] == {"spearman": None, "cosine": 0.5}
    assert Ledger.from_dict(state, Clock()).to_dict() == state

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    ledger.add("training", seconds=50)
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match=r"disk full: .*ledger.json"):
        ledger.write(path)
    assert path.read_bytes() == before


def test_the_table_shows_what_cost_something_and_the_total() -> None:
    ledger = Ledger(Clock())
    ledger.add("training", seconds=3, rows=1600, tokens=51_200, flops=2.5e12)
    ledger.add("selection", seconds=1)
    assert len(TABLE_HEADER) == 6
    assert ledger.table() == [
        ("selection", "1.0", "25%", "0", "0", "-"),
        ("training", "3.0", "75%", "1,600", "51,200", "2.50e+12"),
        ("total", "4.0", "100%", "1,600", "51,200", "2.50e+12"),
    ]
    ledger.add("measurement", tokens=4)
    assert ledger.table()[-1][-1] == "unknown"


SHAPE = ModelShape(block_parameters=1000, head_parameters=300, layers=4, attention_width=16)
LENGTHS, RESPONSES = np.array([5, 9]), np.array([2, 4])


def test_a_measurement_costs_no_more_than_the_passes_it_needs() -> None:
    def cost(*signals: str, blocks: int = 2, chosen: int = 50) -> float:
        return measurement_flops(SHAPE, LENGTHS, RESPONSES, signals, blocks=blocks, chosen_parameters=chosen)

    assert cost() == 0
    assert cost("response_embedding") == 2 * 1000 * 14 + 4 * 4 * 16 * (25 + 81)
    assert cost("response_embedding", "loss", "prompt_embedding") == cost("loss")
    assert cost("loss") == cost("response_embedding") + 2 * 300 * 6
    assert cost("loss", "unconditional_loss") == cost("loss") + cost("unconditional_loss")
    assert cost("unconditional_loss") == forward_flops(SHAPE, RESPONSES + 1, RESPONSES)
    assert cost("gradient_norm", "gradient", "loss") == cost("gradient_norm")
    empty = measurement_flops(SHAPE, LENGTHS, RESPONSES, ["loss", "empty_prompt_loss"], empty_prompt=5)
    assert empty == cost("loss") + forward_flops(SHAPE, RESPONSES + 5, RESPONSES)
    assert cost("kn_gradient", "unconditional_loss") == cost("kn_gradient")
    assert cost("if_gradient") == cost("gradient") + cost("kn_gradient")
    assert cost("if_gradient", "kn_gradient", "gradient", "loss", "unconditional_loss") == cost("if_gradient")
    alone = measurement_flops(SHAPE, RESPONSES + 1, RESPONSES, ["gradient"], blocks=2, chosen_parameters=50)
    assert cost("kn_gradient", blocks=2, chosen=50) == alone
    # All blocks, every weight, every token scored: what is left is a training step.
    whole = measurement_flops(SHAPE, LENGTHS, LENGTHS, ["gradient"], blocks=4, chosen_parameters=1300)
    assert whole == training_flops(SHAPE, LENGTHS)
    with pytest.raises(ValueError, match="no FLOP formula for los; there is one for empty_prompt_loss,"):
        cost("los")


def llama(layers: int, width: int, heads: int, vocabulary: int) -> tuple[Any, ModelShape]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        vocab_size=vocabulary,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    blocks = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    return model, ModelShape(blocks, model.lm_head.weight.numel(), layers, width)


def counted(model: Any, length: int, *, train: bool) -> int:
    """FLOPs of the products that PyTorch really runs on three sequences."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    tokens = torch.arange(3 * length).reshape(3, length) % 50
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        loss = model(input_ids=tokens, labels=tokens).loss
        if train:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("layers", "width", "heads", "vocabulary", "length"),
    [(2, 64, 4, 200, 48), (6, 128, 8, 600, 96), (4, 96, 2, 50, 256)],
)
def test_formulas_agree_with_counting(
    layers: int, width: int, heads: int, vocabulary: int, length: int
) -> None:
    model, shape = llama(layers, width, heads, vocabulary)
    lengths = np.full(3, length)
    assert forward_flops(shape, lengths) == pytest.approx(counted(model, length, train=False), rel=0.01)
    assert training_flops(shape, lengths) == pytest.approx(counted(model, length, train=True), rel=0.01)
    model.gradient_checkpointing_enable()
    model.train()
    again = training_flops(shape, lengths, checkpointing=True)
    assert again == pytest.approx(counted(model, length, train=True), rel=0.05)  # see its docstring


def test_the_formula_for_lora_agrees_with_counting() -> None:
    from peft import LoraConfig, get_peft_model

    base, shape = llama(layers=6, width=128, heads=8, vocabulary=400)
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    # As SFTTrainer does under checkpointing; else backward ends before the first block's input.
    model.enable_input_require_grads()
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    formula = training_flops(shape, np.full(3, 64), adapter_parameters=adapter)
    assert formula == pytest.approx(counted(model, 64, train=True), rel=0.01)


@pytest.mark.parametrize("signals", [["gradient"], ["kn_gradient"], ["if_gradient", "loss"]])
def test_the_formula_for_gradient_signals_agrees_with_counting(signals: list[str]) -> None:
    """Preconditioned, for then gradients are really formed; rows of one length, so that nothing is padded."""
    from measure_oracle import RaggedRows, ordinary_moments
    from peft import LoraConfig, get_peft_model
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    from coretune.measure.settings import MeasureSettings
    from coretune.measure.signals import measurer

    class Counter(TorchDispatchMode):
        """FlopCounterMode without its hooks on modules, which autograd.grad does not bear."""

        total = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func._overloadpacket in flop_registry:
                self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            return out

    base, shape = llama(layers=6, width=128, heads=8, vocabulary=400)
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = RaggedRows([list(range(i, i + 64)) for i in range(4)], [24] * 4)
    settings = MeasureSettings(last_blocks=None, preconditioner="adam")
    own = {"pad_token_id": 0, "bos_token_id": 1, "moments": ordinary_moments(model, rows)}
    measure = measurer(model, rows, signals, settings, **own)
    measure(np.arange(1))  # the first measurement also asks whether the logits are the head's
    with Counter() as counter:
        measure(np.arange(4))
    lengths, responses = np.full(4, 64), np.full(4, 40)
    formula = measurement_flops(shape, lengths, responses, signals, blocks=6, chosen_parameters=adapter)
    # The formula leaves out the adapter's own passes, and backward leaves out what lies before the first one.
    assert formula == pytest.approx(counter.total, rel=0.06)
