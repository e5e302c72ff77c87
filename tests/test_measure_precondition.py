"""What an optimiser makes of a gradient, against torch's own AdamW where the two coincide."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.measure.moments import Moments
from coretune.measure.precondition import AdamUpdate, LinearScale, preconditioner

CPU = torch.device("cpu")
WHOLE = slice(0, 6)


def stepped(steps: int, seed: int, **setting: object) -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    """A layer of 6 × 4 after so many AdamW steps on random gradients of size 1000."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(4, 6, bias=False).double()
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.0, **setting)
    for _ in range(steps):
        layer.weight.grad = 1000.0 * torch.randn(6, 4, dtype=torch.float64)
        optimizer.step()
    return layer, optimizer


def change(layer: torch.nn.Linear, optimizer: torch.optim.AdamW, gradient: torch.Tensor) -> torch.Tensor:
    """What the optimiser's next step on this gradient does to the weight."""
    before = layer.weight.detach().clone()
    layer.weight.grad = gradient.double()
    optimizer.step()
    return layer.weight.detach() - before


@given(steps=st.integers(1, 30), seed=st.integers(0, 999), size=st.sampled_from([0.1, 1.0, 30.0]))
@settings(deadline=None, max_examples=25)
def test_gamma_is_adams_next_step_but_for_bias_correction(steps, seed, size):
    """AdamW's step is −η m̂'/√v̂' (ε = 0), with m̂' = m'/(1 − β1^t) and v̂' = v'/(1 − β2^t).

    Gradients of size 1000, beside which the 1e-8 under Γ's root is nothing.
    """
    layer, optimizer = stepped(steps, seed, lr=0.01, betas=(0.7, 0.9), eps=0.0)
    gradient, t = 1000.0 * size * torch.randn(6, 4), steps + 1
    found = AdamUpdate(Moments.of(optimizer, layer), CPU)("weight", WHOLE, gradient[None])[0]
    expected = change(layer, optimizer, gradient) / -0.01 * (1 - 0.7**t) / (1 - 0.9**t) ** 0.5
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_gamma_by_hand():
    """β1 = 0.9, β2 = 0.99, m = 2e-4, v = 3e-8: (1.8e-4 + 0.1 g)/√(2.97e-8 + 0.01 g² + 1e-8)."""
    one = {"w": torch.tensor([2e-4])}, {"w": torch.tensor([3e-8])}
    update = AdamUpdate(Moments(*one, beta1=0.9, beta2=0.99, epsilon=0.1, step=5), CPU)
    found = update("w", slice(0, 1), torch.tensor([[0.0], [1e-3], [-2e-3], [1e9]]))
    expected = [1.8e-4 / 3.97e-8**0.5, 2.8e-4 / 4.97e-8**0.5, -2e-5 / 7.97e-8**0.5, 1.0]
    torch.testing.assert_close(found[:, 0], torch.tensor(expected))


@given(steps=st.integers(1, 30), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=15)
def test_the_linear_form_has_adams_own_scale(steps, seed):
    """Without momentum (β1 = 0) a step is −η g/(√v̂ + ε) with the v̂ that the step leaves behind."""
    layer, optimizer = stepped(steps, seed, lr=0.01, betas=(0.0, 0.9), eps=0.3)
    gradient = torch.randn(6, 4)
    expected = change(layer, optimizer, gradient) / -0.01
    scale = LinearScale(Moments.of(optimizer, layer), CPU)
    torch.testing.assert_close(scale("weight", WHOLE, gradient[None])[0].double(), expected)
    other = torch.randn(6, 4)
    both = scale("weight", WHOLE, torch.stack([gradient, other, 2.0 * gradient - 3.0 * other]))
    torch.testing.assert_close(both[2], 2.0 * both[0] - 3.0 * both[1])


@pytest.mark.parametrize("kind", ["adam", "linear"])
def test_entries_are_those_of_the_first_dimension(kind):
    layer, optimizer = stepped(3, seed=1)
    one = preconditioner(kind, Moments.of(optimizer, layer), {"weight": (6, 4)}, CPU)
    gradients = torch.randn(5, 6, 4)
    whole = one("weight", WHOLE, gradients)
    for part in (slice(0, 1), slice(2, 5), slice(5, 6)):
        torch.testing.assert_close(one("weight", part, gradients[:, part]), whole[:, part])


def test_the_callers_gradients_and_moments_stay_as_they_are():
    layer, optimizer = stepped(3, seed=1)
    moments = Moments.of(optimizer, layer)
    gradients = torch.randn(5, 6, 4)
    held = (gradients, moments.first["weight"], moments.second["weight"])
    copies = [tensor.clone() for tensor in held]
    for kind in ("adam", "linear"):
        preconditioner(kind, moments, {"weight": (6, 4)}, CPU)("weight", WHOLE, gradients)
    for tensor, copy in zip(held, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_a_parameter_without_moments_or_with_others_is_refused_by_name():
    layer, optimizer = stepped(3, seed=1)
    moments = Moments.of(optimizer, layer)
    with pytest.raises(ValueError, match=r"no state of 'bias' for preconditioner adam"):
        preconditioner("adam", moments, {"weight": (6, 4), "bias": (6,)}, CPU)
    with pytest.raises(ValueError, match=r"state of 'weight' has shape \(6, 4\), the parameter \(6, 5\)"):
        preconditioner("linear", moments, {"weight": (6, 5)}, CPU)
