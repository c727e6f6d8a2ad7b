"""How operations are counted, in words; printed with every figure."""

from __future__ import annotations

RULES = (
    "All figures are per image, all time steps together.",
    "MACs are nominal: every tap of every output, padding included.",
    "A product that a binary or ternary tensor reaches is additions only: SOPs = density of its non-zeros, measured at "
    "that product (after pooling), x MACs. Of two such tensors the sparser one counts as the events.",
    "Integers (0, 1, 2, ... times one scale, up to 255) make integer MACs: density x MACs, each a multiplication.",
    "All other products are MACs, zeros included: the model's input (pixels), membranes, averages.",
    "An input that is the same at every step passes its first layer once, not T times.",
    "STDP attention: Nq x Nk x D additions x the density of V for w·V, and Nq x Nk table reads a head, whichever "
    "implementation ran. Softmax attention: both products.",
    "A neuron update is one neuron at one step.",
    "Not counted: batch norm (it folds into the weights), biases, residual and other element-wise sums and products, "
    "pooling, softmax, spike counts of queries and keys, moving data.",
    "Mean firing rate: SOPs / MACs of the spiking layers. Beside it: spikes / updates of the neurons.",
)

EXACT_RULE = (
    "The exact count is another counter, never mixed with the nominal one: no padding, each addition whose event is "
    "there (both factors non-zero where neither is a weight), and STDP attention as its event form does it."
)


def rules(*, exact: bool) -> list[str]:
    """The rules that hold for a report; `exact`: its exact counter ran."""
    return [*RULES, EXACT_RULE] if exact else list(RULES)
