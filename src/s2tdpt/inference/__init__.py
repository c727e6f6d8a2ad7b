"""Fast inference: `compile_for_inference(model)` answers as `model` does, in a fraction of the time."""

from __future__ import annotations

from .compiled import PRECISIONS, CompiledModel, accelerate, agreement, compile_for_inference

__all__ = ["PRECISIONS", "CompiledModel", "accelerate", "agreement", "compile_for_inference"]
