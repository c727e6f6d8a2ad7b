"""Watches a running model: every aten operator, every operator of this package, every neuron."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from ..ops import observe, stdp_event_counts
from .operands import Operand, classify
from .origins import Origin, Origins, tensors
from .products import Product, is_opaque, is_product, matmul, read_products
from .report import EnergyReport, NeuronCount
from .tally import LayerTally, Side, count_events


class _Mode(TorchDispatchMode):
    """Shows each aten operator to the recorder; composite ones, which inference mode hands over whole, in parts."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):
            return func(*args, **kwargs)
        product = is_product(func)
        if not product:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self.recorder.operator(func, args, kwargs, out, product)
        return out


@dataclass
class _Call:
    """A module that is running."""

    name: str
    module: nn.Module
    products: Counter[str] = field(default_factory=Counter)
    announced: int = 0  # neuron updates by this package's operator in the module's own code
    has_neurons: bool = False  # in itself or in a part of it

    @property
    def says_neuron(self) -> bool:
        own = not type(self.module).__module__.startswith("torch.nn.")
        return own and (hasattr(self.module, "v_threshold") or hasattr(self.module, "threshold"))


@dataclass
class _Neurons:
    updates: int = 0
    seen: int = 0  # updates whose spikes were seen
    spikes: int = 0


class Recorder:
    """Gathers counts between `attached` and `report`."""

    def __init__(self, inputs: Any, images: int, exact: bool) -> None:
        self.images, self.exact = images, exact
        self.origins = Origins()
        for tensor in tensors(inputs):
            self.origins.mark(tensor, Origin.PIXELS)
        first = next(tensors(inputs))
        self.image_size = math.prod(first.shape[2:]) if first.ndim == 5 else first.numel() // images
        self.calls: list[_Call] = []
        self.layers: dict[tuple[str, str, int], LayerTally] = {}
        self.neurons: dict[str, _Neurons] = {}
        self.uncounted: dict[str, None] = {}
        self.busy = False

    @contextmanager
    def attached(self, module: nn.Module) -> Iterator[None]:
        """Watch `module` until the block ends."""
        with ExitStack() as stack:
            root = f"({type(module).__name__})"
            self.calls = [_Call(root, module)]
            for path, part in module.named_modules():
                if isinstance(part, torch.jit.ScriptModule):  # takes no hooks: its operators count for its caller
                    continue
                name = ".".join(p for p in path.split(".") if p != "_orig_mod") or root
                stack.callback(part.register_forward_pre_hook(self._entering(name)).remove)
                stack.callback(part.register_forward_hook(self._leave, always_call=True).remove)
            stack.enter_context(observe.observe(self._announced))
            stack.enter_context(_Mode(self))
            yield

    def report(self, model: str) -> EnergyReport:
        spiking = bool(self.neurons) or any(row.spiking for row in self.layers.values())
        return EnergyReport(
            model=model,
            images=self.images,
            layers=tuple(row.layer(self.images, spiking) for row in self.layers.values()),
            neurons=tuple(
                NeuronCount(name, n.updates / self.images, n.spikes / n.seen if n.seen else None)
                for name, n in self.neurons.items()
            ),
            non_binary_edges=tuple(e for row in self.layers.values() for e in row.edges(self.images, spiking)),
            uncounted=tuple(self.uncounted),
        )

    # Products

    def operator(self, func: OpOverload, args: Any, kwargs: Any, out: Any, product: bool) -> None:
        """An aten or custom operator has run."""
        if self.busy:
            return
        if not observe.inside():
            if product:
                with self._apart():
                    for item in read_products(func, args, kwargs, out):
                        self._product(item)
            elif is_opaque(func) and not any(call.says_neuron for call in self.calls):
                self.uncounted[func.name()] = None
        self.origins.follow(func._opname, (args, kwargs), out, product=product)

    def _product(self, product: Product) -> None:
        op, sides = product.op, self._sides(product)
        row = self._row("linear" if op == "matmul" and any(s.operand is None for s in sides) else op)
        repeats = 1
        for side in sides:
            if side.origin is Origin.PIXELS and side.operand is not None and side.operand.kind == "float":
                assert side.tensor is not None
                if row.pixels is not None and torch.equal(row.pixels, side.tensor):
                    return  # the same image at another step
                row.pixels = side.tensor.clone()  # the model may write the next frame into it
                repeats = self._repeats(side.tensor)
        unit = row.add(product.macs / repeats, sides)
        if self.exact:
            row.add_exact(unit, count_events(product, sides) / repeats)

    def _sides(self, product: Product) -> tuple[Side, Side]:
        left, right = product.left, product.right
        if left is None:  # softmax weights, which only ever exist in fragments
            return Side("weights", Operand("float", 1.0)), self._side("value", right)
        if product.op.startswith("attention"):
            return self._side("query", left), self._side("key", right)
        followed = tuple(self.origins[t] is not Origin.CONSTANT for t in (left, right))
        if followed == (False, True):
            return Side("weight"), self._side("input", right)
        if followed == (True, True):
            return self._side("left", left), self._side("right", right)
        return self._side("input", left), Side("weight")

    def _side(self, role: str, tensor: Tensor) -> Side:
        origin, operand = self.origins[tensor], classify(tensor)
        if origin is Origin.PIXELS:
            # Event frames are spikes. An image that happens to be black or white is not.
            events = operand.kind in ("binary", "ternary") and operand.scale == 1 and 0 < operand.density < 1
        else:
            events = operand.density > 0 or origin is Origin.SPIKES
        return Side(role, operand if events else Operand("float", operand.density), tensor, origin)

    def _row(self, op: str) -> LayerTally:
        call = self.calls[-1]
        key = (call.name, op, call.products[op])
        call.products[op] += 1
        return self.layers.setdefault(key, LayerTally(call.name, op))

    def _repeats(self, pixels: Tensor) -> int:
        """How often a batch holds each image: T times for direct coding, with the steps outermost or innermost."""
        samples = pixels.shape[0]
        times, rest = divmod(samples, self.images)
        if rest or times < 2 or samples * self.image_size != pixels.numel():
            return 1
        for copies in (pixels.reshape(times, 1, -1), pixels.reshape(self.images, times, -1).transpose(0, 1)):
            if bool((copies == copies[:1]).all()):
                return times
        return 1

    # This package's operators

    def _announced(self, name: str, info: dict[str, Any]) -> None:
        with self._apart():
            if name == "lif":
                self.calls[-1].announced += info["current"].numel()
                self._fired(self.calls[-1], info["current"].numel())
            elif name == "stdp_attention":
                self._stdp_attention(info["query"], info["key"], info["value"])

    def _stdp_attention(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        product = matmul("stdp_attention", None, value, (*query.shape[:-1], key.shape[-2]))
        row = self._row(product.op)
        spikes = [
            Side(r, classify(t), t, self.origins[t]) for r, t in (("query", query), ("key", key), ("value", value))
        ]
        unit = row.add(product.macs, (Side("STDP weights"), spikes[2]), watched=spikes[:2])
        row.done["table_reads"] += product.macs // value.shape[-1]
        if self.exact:
            events = stdp_event_counts(query, key, value)
            row.add_exact(unit, events.additions)
            row.add_exact("table_reads", events.table_reads)

    # Modules and neurons

    def _entering(self, name: str) -> Any:
        return lambda module, args: self.calls.append(_Call(name, module))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self.calls[-1]
        if call.module is not module:  # a hook that ran before ours raised: it never entered
            return
        self.calls.pop()
        spikes, current = next(tensors(output), None), next(tensors(args), None)
        if spikes is None:
            return
        with self._apart():
            if call.announced:
                if call.announced == spikes.numel() and classify(spikes).kind == "binary":
                    self._saw_spikes(call, spikes)
            elif not call.has_neurons and self._is_neuron(call, current, spikes):
                self._fired(call, spikes.numel())
                self._saw_spikes(call, spikes)

    def _is_neuron(self, call: _Call, current: Tensor | None, spikes: Tensor) -> bool:
        """Whether it has a threshold and no real output, or real numbers went in and as many spikes came out.

        The latter only in somebody's own module, so that a dead ReLU is none, and not inside a neuron.
        """
        kind = classify(spikes).kind
        if call.says_neuron:
            return kind != "float"
        if kind != "binary" or type(call.module).__module__.startswith("torch.nn."):
            return False
        if current is None or not current.is_floating_point() or current.numel() != spikes.numel():
            return False
        if classify(current).kind == "binary" or any(caller.says_neuron for caller in self.calls):
            return False
        return self.origins[spikes] is Origin.SPIKES or bool(spikes.any())

    def _fired(self, call: _Call, updates: int) -> None:
        self.neurons.setdefault(call.name, _Neurons()).updates += updates
        for running in (call, *self.calls):
            running.has_neurons = True

    def _saw_spikes(self, call: _Call, spikes: Tensor) -> None:
        neurons = self.neurons[call.name]
        neurons.seen += spikes.numel()
        neurons.spikes += int(torch.count_nonzero(spikes))
        self.origins.mark(spikes, Origin.SPIKES)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """What the counter itself computes is not the model's."""
        before, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = before
