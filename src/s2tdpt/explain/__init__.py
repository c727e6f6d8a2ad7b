"""Why a model decides as it does: Grad-CAM, firing rates, STDP attention maps, faithfulness, and an HTML report."""

from .attention import AttentionRecord, attention_rollout, record_attention, window_curve
from .faithfulness import compare_faithfulness, faithfulness
from .firing import FiringRates, firing_rates, spike_trains
from .gradcam import CamMaps, class_activation_map, grad_cam
from .report import write_report

__all__ = [
    "AttentionRecord",
    "CamMaps",
    "FiringRates",
    "attention_rollout",
    "class_activation_map",
    "compare_faithfulness",
    "faithfulness",
    "firing_rates",
    "grad_cam",
    "record_attention",
    "spike_trains",
    "window_curve",
    "write_report",
]
