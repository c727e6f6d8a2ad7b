"""Mathematics on tensors: no modules, no state. One folder an operator."""

from .lif import lif
from .stdp import EventCounts, StdpWindow, stdp_attention, stdp_event_counts, stdp_weights

__all__ = ["EventCounts", "StdpWindow", "lif", "stdp_attention", "stdp_event_counts", "stdp_weights"]
