"""Held-out loss and exact match against the slow obvious way: row by row, and real greedy generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coretune.playground import BASE_MODEL, make_pool
from coretune.scoring import evaluate as room
from coretune.scoring.evaluate import encode, evaluate


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BASE_MODEL)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """The playground's model, trained for a few steps, so that some answers are right and others are not."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL)
    rows = encode(tokenizer, make_pool(5, 240, copies=0, wrong=0).records, 256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for start in range(0, 240, 16):
        ids, mask, response = room._pad(rows[start : start + 16])
        model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~response, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
    return make_pool(6, 50, held_out=4).held_out


def slow_loss(model: Any, tokenizer: Any, record: dict[str, str]) -> float:
    ids, prompt_length = encode(tokenizer, [record], 256)[0]
    with torch.no_grad():
        log_probability = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(np.mean([-log_probability[t - 1, ids[t]] for t in range(max(prompt_length, 1), len(ids))]))


def generated(model: Any, tokenizer: Any, record: dict[str, str]) -> list[int]:
    ids, prompt_length = encode(tokenizer, [record], 256)[0]
    prompt = torch.tensor([ids[:prompt_length]])
    new = len(ids) - prompt_length
    whole = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new
    )
    return whole[0, prompt_length:].tolist()


def test_equals_one_row_at_a_time_and_real_generation(model: Any, tokenizer: Any, records: list) -> None:
    found = evaluate(model, tokenizer, records)
    assert found["loss"] == pytest.approx(
        np.mean([slow_loss(model.eval(), tokenizer, r) for r in records]), rel=1e-5
    )
    right = []
    for record in records:
        ids, prompt_length = encode(tokenizer, [record], 256)[0]
        right.append(generated(model, tokenizer, record) == ids[prompt_length:])
    assert found["exact_match"] == pytest.approx(np.mean(right))
    assert 0 < found["exact_match"] < 1, "the case must be able to tell right from wrong"


def test_batch_size_invariance(
    model: Any, tokenizer: Any, records: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = evaluate(model, tokenizer, records)
    monkeypatch.setattr(room, "TOKENS_AT_ONCE", 1)
    alone = evaluate(model, tokenizer, records)
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert together["exact_match"] == alone["exact_match"]


def test_row_order_is_irrelevant(model: Any, tokenizer: Any, records: list) -> None:
    assert evaluate(model, tokenizer, records)["loss"] == pytest.approx(
        evaluate(model, tokenizer, records[::-1])["loss"], rel=1e-6
    )


def test_without_a_chat_template(model: Any, records: list) -> None:
    plain = AutoTokenizer.from_pretrained(BASE_MODEL)
    plain.chat_template = None
    ids, prompt_length = encode(plain, [{"prompt": "Say:", "completion": " bell"}], 256)[0]
    assert plain.decode(ids[:prompt_length]) == "Say:"
    assert ids[-1] == plain.eos_token_id
    spaced = [{**record, "completion": " " + record["completion"]} for record in records]
    found = evaluate(model, plain, spaced)
    assert found["loss"] == pytest.approx(
        np.mean([slow_loss(model.eval(), plain, r) for r in spaced]), rel=1e-5
    )


def test_what_a_template_writes_after_the_end_is_not_part_of_the_match(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    targets = torch.tensor([[7, 8, end, 9]])
    response = torch.tensor([[False, True, True, True]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 8, end, 3]]), len(tokenizer)).float() * 50
    assert room._score(logits, targets, response, end)[1] == 1
    logits = torch.nn.functional.one_hot(torch.tensor([[7, 8, 5, 9]]), len(tokenizer)).float() * 50
    assert room._score(logits, targets, response, end)[1] == 0


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_and_the_random_state_as_they_were(
    model: Any, tokenizer: Any, records: list, training: bool
) -> None:
    model.train(training)
    before = torch.get_rng_state()
    evaluate(model, tokenizer, records[:3])
    assert model.training is training
    assert torch.equal(before, torch.get_rng_state())


def test_no_records_are_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="0 records"):
        evaluate(model, tokenizer, [])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "Say:", "completion": ""}, "empty"),
        ({"prompt": "Say:", "completion": 7}, "completion"),
        ({"prompt": "Say:"}, "completion"),
        ({"prompt": "Say:", "completion": "bell " * 300}, "max_length"),
    ],
)
def test_a_record_that_cannot_be_encoded_is_named(
    model: Any, tokenizer: Any, records: list, record: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=rf"1 of 3 records.* record 3: .*{reason}"):
        evaluate(model, tokenizer, [*records[:2], record])


def test_long_prompts_are_cut_as_in_training(model: Any, tokenizer: Any) -> None:
    long = {"prompt": "bell " * 40 + "ant", "completion": "ant"}
    (ids, prompt_length), (kept, _) = encode(tokenizer, [long], 20)[0], encode(tokenizer, [long], 256)[0]
    assert len(ids) == 20
    assert ids == [kept[0], *kept[-19:]]
    assert ids[prompt_length:] == [*tokenizer.encode("ant"), tokenizer.eos_token_id]
    assert evaluate(model, tokenizer, [long], 20) != evaluate(model, tokenizer, [long])
