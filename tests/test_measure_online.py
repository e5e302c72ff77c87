"""What is read off a training step equals a measurement at the weights of that step, and disturbs nothing."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from measure_oracle import RaggedRows, assert_close
from peft import LoraConfig
from tiny_run import arguments, corpus, model_folder, tiny_tokenizer
from transformers import LlamaForCausalLM
from trl import SFTTrainer

from coretune.measure.online import ONLINE_SIGNALS, OnlineReader
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.measure.step_signals import StepSignals, load, save
from coretune.rounds.sampler import EXAMPLE_ID, with_example_id
from coretune.training.refusals import can_weigh
from coretune.training.weighting import weighing

pytestmark = pytest.mark.skipif(not can_weigh(version("trl")), reason="TRL < 1.16 has no loss per token")

LORA = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
SMALL = {"projection_dim": 16, "factor_dim": 8}


class Watched(SFTTrainer):
    """Measures each micro-batch, then trains on it with online signals, and keeps both."""

    def __init__(self, folder: Path, settings: MeasureSettings, weights=None, compare=True, **training):
        pool, peft = corpus(), training.pop("peft_config", None)
        own = arguments(folder, max_steps=2, learning_rate=3e-2, **training)
        model = LlamaForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
        super().__init__(
            model, own, train_dataset=pool.dataset, processing_class=tiny_tokenizer(), peft_config=peft
        )
        if peft is not None:  # while B is zero, A has no gradient
            for name, parameter in self.model.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        self.data_collator = with_example_id(self.data_collator)
        self.pool, self.compare, self.row_weights = pool, compare, weights
        self.measure = measurer(self.model, pool, ONLINE_SIGNALS, settings, pad_token_id=0, bos_token_id=1)
        self.reader = OnlineReader(self.model, ONLINE_SIGNALS, settings)
        self.batches: list[np.ndarray] = []
        self.pairs: list[tuple[StepSignals, dict[str, np.ndarray], int]] = []

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, EXAMPLE_ID]

    def training_step(self, model, inputs, *args, **kwargs):
        rows, step = inputs[EXAMPLE_ID], self.state.global_step
        self.batches.append(np.sort(rows.numpy()))
        if not self.compare:
            return super().training_step(model, inputs, *args, **kwargs)
        before = self.measure(np.sort(rows.numpy()))
        with self.reader.watching(rows, inputs["labels"], inputs["attention_mask"], step):
            loss = super().training_step(model, inputs, *args, **kwargs)
        self.pairs.append((self.reader.take(), before, step))
        return loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        ids = inputs.pop(EXAMPLE_ID)
        if self.row_weights is not None:
            model = weighing(model, self.row_weights[ids])
        return super().compute_loss(model, inputs, *args, **kwargs)


def assert_equal(trainer: Watched, bound: float = 1e-4) -> None:
    assert len(trainer.pairs) == 2 * trainer.args.gradient_accumulation_steps
    for seen, expected, step in trainer.pairs:
        assert (seen.step == step).all()
        assert len(seen.rows) == trainer.args.per_device_train_batch_size
        for name in ONLINE_SIGNALS:
            gap = np.abs(seen.signals[name] - expected[name]).max()
            assert gap <= bound * np.abs(expected[name]).max(), (name, gap)


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "not reentrant"])
@pytest.mark.parametrize("peft", [None, LORA])
def test_a_step_shows_what_a_measurement_would_have_found(tmp_path, peft, checkpointing):
    """Under gradient accumulation, whose micro-batches are divided by the tokens of all of them."""
    trainer = Watched(
        tmp_path,
        MeasureSettings(last_blocks=1 if checkpointing == "none" else 2, **SMALL),
        peft_config=peft,
        gradient_accumulation_steps=2,
        gradient_checkpointing=checkpointing != "none",
        gradient_checkpointing_kwargs={"use_reentrant": checkpointing == "reentrant"},
    )
    trainer.train()
    assert_equal(trainer)


def test_under_autocast_as_a_measurement_under_autocast(tmp_path):
    """bf16 has 8 bits, and TRL's head and ours round at different places."""
    trainer = Watched(tmp_path, MeasureSettings(autocast="bfloat16", **SMALL), bf16=True)
    trainer.train()
    assert_equal(trainer, 0.03)


def test_every_parameter_counts_the_tied_head_too(tmp_path):
    settings = MeasureSettings(last_blocks=None, parameters="trainable", **SMALL)
    trainer = Watched(tmp_path, settings)
    trainer.train()
    assert_equal(trainer, 2e-4)


def test_weights_of_the_loss_are_undone_and_a_row_of_none_is_left_out(tmp_path):
    weights = torch.from_numpy(np.random.default_rng(0).uniform(0.2, 3, len(corpus().ids))).float()
    weights[::5] = 0
    trainer = Watched(tmp_path, MeasureSettings(**SMALL), weights=weights)
    trainer.train()
    left_out = 0
    for seen, expected, _ in trainer.pairs:
        asked = trainer.batches.pop(0)
        kept = asked % 5 != 0
        left_out += int((~kept).sum())
        assert seen.rows.tolist() == asked[kept].tolist()
        for name in ONLINE_SIGNALS:
            np.testing.assert_allclose(seen.signals[name], expected[name][kept], rtol=1e-3, atol=1e-5)
    assert left_out


def test_training_is_not_disturbed(tmp_path):
    trained = []
    for compare in (True, False):
        trainer = Watched(tmp_path / str(compare), MeasureSettings(**SMALL), compare=compare)
        trainer.train()
        trained.append(trainer.model.state_dict())
    assert all(torch.equal(trained[0][name], value) for name, value in trained[1].items())
    assert not any(module._forward_hooks for module in trainer.reader.model.model.layers.modules())


def step(trainer, labels=None, attention=None, call=None):
    """One forward and backward of a batch of two rows with online signals."""
    ids = torch.arange(24).reshape(2, 12) + 4
    labels = torch.where(torch.arange(12) < 5, -100, ids) if labels is None else labels(ids)
    attention = torch.ones_like(ids) if attention is None else attention(ids)
    with trainer.reader.watching(torch.tensor([7, 3]), labels, attention, step=11):
        call(trainer.model.train(), ids, labels)


def fused(model, ids, labels):
    (-model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs).sum().backward()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return Watched(tmp_path_factory.mktemp("online"), MeasureSettings(**SMALL))


def test_rows_are_kept_as_last_seen_until_they_are_taken(trainer, tmp_path):
    step(trainer, call=fused)
    seen = trainer.reader.take()
    assert seen.rows.tolist() == [3, 7]
    assert seen.step.tolist() == [11, 11]
    assert len(trainer.reader.take().rows) == 0
    save(seen, tmp_path / "seen.npz")
    again = load(tmp_path / "seen.npz")
    trainer.reader.put(again)
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(0.5)
    step(trainer, call=fused)
    late = trainer.reader.take()
    assert late.rows.tolist() == [3, 7]
    assert (late.signals["loss"] != seen.signals["loss"]).all()
    for name in ONLINE_SIGNALS:
        np.testing.assert_array_equal(again.signals[name], seen.signals[name])


def test_of_a_row_of_several_turns_only_what_counts_is_read(trainer):
    def gap(ids):
        labels = ids.clone()
        labels[:, :5] = -100
        labels[0, 8] = -100  # as between two answers of a conversation
        return labels

    step(trainer, labels=gap, call=fused)
    seen, ids = trainer.reader.take(), torch.arange(24).reshape(2, 12) + 4
    rows = RaggedRows(ids.tolist(), [5, 5], gap(ids).tolist())
    settings = MeasureSettings(**SMALL)
    expected = measurer(trainer.model, rows, ONLINE_SIGNALS, settings, pad_token_id=0, bos_token_id=1)(
        np.arange(2)
    )
    assert seen.rows.tolist() == [3, 7]
    for name in ONLINE_SIGNALS:
        assert_close(seen.signals[name][::-1], expected[name])


def test_a_row_without_response_is_not_kept(trainer):
    step(trainer, labels=lambda ids: torch.where(torch.arange(2)[:, None] == 1, -100, ids), call=fused)
    assert trainer.reader.take().rows.tolist() == [7]


def test_what_a_step_hides_is_said(trainer):
    def stock(model, ids, labels):
        model(input_ids=ids, labels=labels).loss.backward()

    def unlike(model, ids, labels):
        log_probs = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
        (log_probs * log_probs.exp().detach()).sum().backward()

    def twice(model, ids, labels):
        fused(model, ids, labels)
        fused(model, ids, labels)

    def forward_only(model, ids, labels):
        model(input_ids=ids, labels=labels, fused_lm_head=True)

    for call, message in (
        (stock, "gives no log-probabilities"),
        (unlike, "does not count a row's tokens alike"),
        (twice, "ran twice"),
        (forward_only, "no gradient came"),
    ):
        with pytest.raises(ValueError, match=message):
            step(trainer, call=call)
    with pytest.raises(ValueError, match="padded on the left"):
        step(trainer, attention=lambda ids: (torch.arange(12) > 1).expand(2, 12), call=fused)
    assert len(trainer.reader.take().rows) == 0


def test_what_has_no_online_signals_is_refused_by_name(trainer):
    with pytest.raises(ValueError, match="target_cosine cannot be read off a training step"):
        OnlineReader(trainer.model, ["loss", "target_cosine"], MeasureSettings())
    with pytest.raises(ValueError, match="basis is gradient_pca"):
        OnlineReader(trainer.model, ["gradient"], MeasureSettings(basis="gradient_pca"))
    with pytest.raises(ValueError, match="preconditioner is adam"):
        OnlineReader(trainer.model, ["gradient"], MeasureSettings(preconditioner="adam"))
