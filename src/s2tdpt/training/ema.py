"""An exponential moving average of a model's weights."""

# pyright: reportPrivateImportUsage=false
# (torch documents its _foreach_ functions, but does not export them)

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from s2tdpt.errors import CheckpointError

_UPDATES = "updates"


class Ema:
    """Averages of every floating-point parameter and buffer of a model that already is on its device.

    `update()` n after a start moves the average by (1 - decay) / (1 - decay^n) towards the model: the first one copies
    it, and the weights at the start leave no trace. All work is in place, so addresses stay valid.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, not {decay}")
        self.decay = decay
        self.updates = 0
        self._state = model.state_dict()
        self._live = {name: tensor for name, tensor in self._state.items() if tensor.is_floating_point()}
        self._average = {name: tensor.clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights into the average."""
        self.updates += 1
        weight = (1 - self.decay) / (1 - self.decay**self.updates)
        torch._foreach_lerp_(list(self._average.values()), list(self._live.values()), weight)

    def restart(self) -> None:
        """Begin anew from the model's present weights."""
        self.updates = 0
        self._copy(self._average, self._live)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Put the averages into the model for the length of a `with` block, then all that was in it back, exactly."""
        own = {name: tensor.clone() for name, tensor in self._state.items()}
        self._copy(self._live, self._average)
        try:
            yield
        finally:
            self._copy(self._state, own)

    def adopt(self) -> None:
        """Within `swap`: what the model holds now becomes the average, such as statistics measured for it."""
        self._copy(self._average, self._live)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name, and the number of updates."""
        return {**self._average, _UPDATES: torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the averages that `state_dict` gave; CheckpointError if they are another model's."""
        shapes = {name: tensor.shape for name, tensor in self.state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in state.items()}:
            raise CheckpointError("the averaged weights in the checkpoint are not this model's: start a new run")
        self.updates = int(state[_UPDATES])
        self._copy(self._average, state)

    @torch.no_grad()
    def _copy(self, to: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
        torch._foreach_copy_(list(to.values()), [source[name] for name in to])
