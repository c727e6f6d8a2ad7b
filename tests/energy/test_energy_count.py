"""Whole models: hand-computed figures, the time axis, neurons, edges, and a model left as it was found."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import s2tdpt
from s2tdpt.energy import count
from s2tdpt.errors import InputError
from s2tdpt.ops import lif, stdp_event_counts


class IntegrateAndFire(nn.Module):
    """Somebody else's neuron: steps in a loop, membranes of its own making, nothing that names it a neuron."""

    def forward(self, current: Tensor) -> Tensor:
        v, fired = torch.zeros_like(current[0]), torch.zeros_like(current)
        for t, x in enumerate(current):
            v = v + x
            fired[t] = (v > 0.5).float()
            v = v * (1 - fired[t])
        return fired


class Net(nn.Module):
    """conv on a still image, neuron, pool, conv, neuron, mean, linear; T steps folded into the batch."""

    def __init__(self, neuron: nn.Module, time_steps: int = 3, repeat_input: bool = False) -> None:
        super().__init__()
        self.time_steps, self.repeat_input = time_steps, repeat_input
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.neuron1, self.neuron2 = neuron, copy.deepcopy(neuron)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)
        self.dropout = nn.Dropout(0.5)
        for weight in (self.norm.weight, self.conv2.weight):
            nn.init.uniform_(weight, -1.0, 2.0)  # so that some neurons fire

    def forward(self, x: Tensor) -> Tensor:
        self.seen_training = self.training
        T = self.time_steps
        if x.ndim == 5:
            u = self.norm(self.conv1(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        elif self.repeat_input:
            u = self.norm(self.conv1(x.repeat(T, 1, 1, 1))).unflatten(0, (T, -1))
        else:
            u = self.norm(self.conv1(x)).expand(T, *(-1,) * 4)
        spikes = F.max_pool2d(self.neuron1(u).flatten(0, 1), 2)
        spikes = self.neuron2(self.conv2(spikes).unflatten(0, (T, -1)))
        return self.head(self.dropout(spikes.mean((0, 3, 4))))


class Call(nn.Module):
    """A function of one tensor as a module, with a linear layer at its hand."""

    def __init__(self, function, width: int = 8) -> None:
        super().__init__()
        self.function, self.fc = function, nn.Linear(width, 3, bias=False)

    def forward(self, x: Tensor):
        return self.function(x, self.fc)


class Taps(nn.Module):
    """Keeps what enters it."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x.detach().clone()
        return x


@pytest.fixture(params=["own", "foreign"])
def net(request) -> Net:
    torch.manual_seed(0)
    return Net(s2tdpt.LIF(v_threshold=0.3) if request.param == "own" else IntegrateAndFire())


IMAGES = torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(1))
CONV1, CONV2, HEAD = 36 * 4 * 18, 3 * 9 * 6 * 36, 30


def test_a_net_by_hand(net):
    taps: dict[str, Tensor] = {}
    for name in ("conv2", "neuron1", "neuron2"):
        net.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: taps.update({name: args[0] if name == "conv2" else out})
        )
    report = count(net, IMAGES)
    conv1, conv2, head = report.layers
    assert [(r.name, r.op) for r in report.layers] == [("conv1", "conv2d"), ("conv2", "conv2d"), ("head", "linear")]
    assert (conv1.nominal_macs, conv2.nominal_macs, head.nominal_macs) == (CONV1, CONV2, HEAD)
    rate = taps["conv2"].mean().item()
    assert 0.05 < rate < 0.95
    assert (conv1.operands, conv1.counts.macs) == (("pixels", "weight"), CONV1)
    assert conv2.operands == ("binary", "weight")
    assert conv2.rate == pytest.approx(rate)
    assert conv2.counts.sops == pytest.approx(rate * CONV2)
    assert report.mean_firing_rate == pytest.approx(rate)
    assert {n.name: n.updates for n in report.neurons} == {"neuron1": 3 * 4 * 36, "neuron2": 3 * 6 * 9}
    spikes = torch.cat([taps["neuron1"].flatten(), taps["neuron2"].flatten()])
    assert report.neuron_firing_rate == pytest.approx(spikes.mean().item())
    done = rate * CONV2 * 0.9 + (CONV1 + head.counts.macs + head.counts.integer_macs) * 4.6
    assert report.energy_mj("paper") == pytest.approx(done * 1e-9)


def test_rate_is_that_of_the_tensor_after_pooling():
    torch.manual_seed(0)
    tap = Taps()
    x = (torch.rand(1, 2, 8, 8) < 0.2).float()
    report = count(nn.Sequential(nn.MaxPool2d(2), tap, nn.Conv2d(2, 3, 3)), x)
    assert report.layers[0].rate == pytest.approx(tap.kept.mean().item())
    assert report.layers[0].rate > x.mean()


def test_edges_are_pixels_and_the_head_only(net):
    edges = count(net, IMAGES).non_binary_edges
    assert [(e.name, e.operand) for e in edges] == [("conv1", "input"), ("head", "input")]
    assert edges[0].what == "pixels"
    assert edges[1].what in ("integer", "float")  # a mean of spikes over steps and places
    assert all(e.multiplies for e in edges)


def test_figures_are_per_image_whatever_the_batch(net):
    one = count(net, IMAGES[:1].expand(1, -1, -1, -1))
    three = count(net, IMAGES[:1].expand(3, -1, -1, -1))
    assert three.images == 3
    assert three.counts.sops == pytest.approx(one.counts.sops)
    assert three.nominal_macs == one.nominal_macs


def test_a_still_image_passes_the_first_layer_once_even_where_the_model_repeats_it(net):
    once = count(net, IMAGES)
    net.repeat_input = True
    assert count(net, IMAGES).to_dict() == once.to_dict()
    batch_first = Call(lambda x, fc: fc(x.repeat_interleave(3, 0)).unflatten(0, (2, 3)).sum(1))
    assert count(batch_first, torch.rand(2, 8)).nominal_macs == 24
    repeated = count(net, IMAGES.expand(3, -1, -1, -1, -1))
    assert repeated.images == 2
    assert repeated.nominal_macs == once.nominal_macs
    assert repeated.counts.sops == pytest.approx(once.counts.sops)


def test_input_that_varies_passes_the_first_layer_at_each_step(net):
    report = count(net, torch.rand(3, 2, 2, 6, 6))
    assert report.images == 2
    assert report.layers[0].nominal_macs == 3 * CONV1


def test_a_loop_over_steps_counts_like_steps_folded_into_the_batch():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(48, 2)

        def forward(self, x):
            v, out = 0.0, 0.0
            for _ in range(4):
                v = v + self.conv(x)
                spikes = (v > 0.6).to(x)
                v = v - spikes
                out = out + self.fc(spikes.flatten(1))
            return out

    torch.manual_seed(0)
    conv, fc = count(Loop(), IMAGES).layers
    assert (conv.nominal_macs, conv.calls) == (16 * 3 * 18, 1)
    assert (fc.nominal_macs, fc.calls, fc.operands[0]) == (4 * 48 * 2, 4, "binary")


def test_frames_written_into_one_buffer_are_told_apart():
    def frames(x, fc):
        buffer, total = x.clone(), 0.0
        for shift in (0.0, 1.0, 1.0):
            buffer.copy_(x + shift)
            total = total + fc(buffer)
        return total

    assert count(Call(frames), torch.rand(2, 8)).nominal_macs == 2 * 24


def test_a_black_input_is_still_pixels_and_cutting_it_up_repeats_nothing():
    for x in (torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)):
        patches = count(Call(lambda x, fc: fc(x.view(4, 8))), x)
        assert patches.counts.macs == 4 * 24
        enlarged = count(
            Call(lambda x, fc: F.conv2d(F.interpolate(x, scale_factor=2.0), fc.weight.view(3, 2, 2, 2))), x
        )
        assert enlarged.counts.macs == 49 * 24


def test_binary_events_as_input_are_spikes():
    frames = (torch.rand(3, 2, 2, 6, 6) < 0.2).float()
    report = count(Net(s2tdpt.LIF()), frames)
    assert report.layers[0].operands == ("binary", "weight")
    assert report.layers[0].counts.sops == pytest.approx(frames.mean().item() * 3 * CONV1)


def test_integers_are_named_and_priced_as_multiplications():
    counts = torch.randint(0, 4, (2, 8), generator=torch.Generator().manual_seed(0)).float()
    report = count(Call(lambda x, fc: fc((x > 0).float() + (x > 1).float())), counts)
    (layer,) = report.layers
    density = (counts > 0).float().mean().item()
    assert layer.operands == ("integer", "weight")
    assert layer.counts.integer_macs == pytest.approx(density * 24)
    assert (layer.counts.sops, layer.counts.macs, layer.spiking_macs) == (0, 0, 0)
    assert report.energy_mj() == pytest.approx(density * 24 * 4.6e-9)
    (edge,) = report.non_binary_edges
    assert (edge.what, edge.multiplies, edge.nominal_macs) == ("integer", True, 24)


def test_ternary_spikes_are_additions_and_an_edge():
    torch.manual_seed(0)
    report = count(Call(lambda x, fc: fc((x > 0.5).float() - (x < -0.5).float())), torch.randn(4, 8))
    assert report.counts.macs == report.counts.integer_macs == 0
    assert report.counts.sops == pytest.approx(report.layers[0].rate * 24)
    assert [(e.what, e.multiplies) for e in report.non_binary_edges] == [("ternary", False)]


def test_spikes_behind_a_weight_matrix_are_its_input():
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    report = count(Call(lambda x, fc: fc.weight @ (x > 0).float().t()), x)
    assert report.layers[0].operands == ("weight", "binary")
    assert report.counts.sops == pytest.approx((x > 0).sum().item() * 3 / 4)


def test_silence_is_free_also_as_a_count_of_coincidences_or_in_a_buffer():
    def coincidences(x, fc):
        return fc((x > 2).float().t() @ (x > 2).float())

    def buffer(x, fc):
        fired = torch.empty_like(fc.weight @ x.t())
        fired.copy_((fc.weight @ x.t() > 9).float())
        return fired @ fc.weight.new_ones(4, 2)

    for function, layers in ((coincidences, 2), (buffer, 3)):
        report = count(Call(function), torch.rand(4, 8))
        assert len(report.layers) == layers
        assert report.layers[-1].operands[0] == "binary"
        assert report.layers[-1].counts.macs == report.counts.sops == 0


def test_membranes_are_told_from_activations():
    class Readout(nn.Module):
        def __init__(self, neuron):
            super().__init__()
            self.fc1, self.fc2, self.neuron = nn.Linear(8, 8), nn.Linear(8, 3), neuron

        def forward(self, x):
            u = self.fc1(x)
            self.neuron(u)
            return self.fc2(u)

    x = torch.randn(4, 8)
    assert [e.what for e in count(Readout(s2tdpt.LIF()), x).non_binary_edges] == ["pixels", "membrane"]
    assert [e.what for e in count(Readout(nn.ReLU()), x).non_binary_edges] == ["pixels", "float"]


def test_a_silent_layer_costs_nothing_but_a_dead_relu_does():
    x = torch.rand(2, 6)

    def after(neuron):
        first = nn.Linear(6, 6)
        nn.init.constant_(first.weight, -1.0)
        nn.init.zeros_(first.bias)
        return count(nn.Sequential(first, neuron, nn.Linear(6, 4)), x)

    silent, dead = after(s2tdpt.LIF()), after(nn.ReLU())
    assert (silent.counts.sops, silent.counts.macs, silent.layers[1].spiking_macs) == (0, 36, 24)
    assert (dead.counts.macs, dead.counts.neuron_updates) == (36 + 24, 0)


def test_weights_of_zeros_and_ones_are_no_spikes():
    fc = nn.Linear(6, 4)
    nn.init.zeros_(fc.weight)
    assert count(fc, torch.randn(2, 6)).counts.macs == 24


def test_one_neuron_is_counted_once_however_it_is_wrapped():
    class Surrogate(nn.Module):
        def forward(self, x):
            return (x >= 0).to(x)

    class Declared(nn.Module):
        def __init__(self):
            super().__init__()
            self.v_threshold, self.surrogate = 0.1, Surrogate()

        def forward(self, x):
            return self.surrogate(x - self.v_threshold)

    class Wrapper(nn.Module):
        def __init__(self, inner, v_threshold=0.1):
            super().__init__()
            self.norm, self.inner, self.v_threshold = nn.BatchNorm1d(6), inner, v_threshold

        def forward(self, x):
            return self.inner(self.norm(x))

    x = torch.randn(4, 6)
    for inner, name in ((Declared(), "inner"), (Surrogate(), "(Wrapper)"), (s2tdpt.LIF(v_threshold=0.1), "inner")):
        (neuron,) = count(Wrapper(inner), x).neurons
        assert (neuron.name, neuron.updates) == (name, 6)
        assert neuron.firing_rate is not None
        assert 0 < neuron.firing_rate < 1
    (neuron,) = count(Declared(), x).neurons
    assert (neuron.name, neuron.updates) == ("(Declared)", 6)


def test_the_functional_neuron_counts_updates():
    class Functional(nn.Module):
        def forward(self, x):
            return lif(x)[0].mean(0)

    (neuron,) = count(Functional(), torch.rand(3, 2, 5), batch_size=2).neurons
    assert (neuron.updates, neuron.firing_rate) == (15, None)


@pytest.mark.parametrize("implementation", ["dense", "table", "event"])
def test_stdp_attention_inside_somebody_elses_module(implementation):
    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(8, 8)
            self.mixer = s2tdpt.STDPAttention(8, 2, implementation=implementation)

        def forward(self, x):
            return self.mixer((self.embed(x) > 0).to(x))

    T, B, N = 3, 2, 5
    torch.manual_seed(0)
    theirs, x = Theirs(), torch.randn(T, B, N, 8)
    kept: dict[str, Tensor] = {}
    theirs.mixer.qkv_neuron.register_forward_hook(lambda m, args, out: kept.update(fired=out))
    nn.init.normal_(theirs.mixer.qkv_norm.bias)  # so that they fire
    report = count(theirs, x, batch_size=B, exact=True)
    query, key, value = kept["fired"].view(T, B, N, 3, 2, 4).permute(3, 0, 1, 4, 2, 5).unbind(0)
    (row,) = (r for r in report.layers if r.op == "stdp_attention")
    assert value.mean() > 0
    assert (row.name, row.operands, row.nominal_macs) == ("mixer", ("STDP weights", "binary"), T * N * N * 8)
    assert row.counts.sops == pytest.approx(T * N * N * 8 * value.mean().item())
    assert row.counts.table_reads == T * N * N * 2
    events = stdp_event_counts(query, key, value)
    assert row.exact is not None
    assert row.exact.sops * B == events.additions
    assert row.exact.table_reads * B == events.table_reads
    products = [r.name for r in report.layers]
    assert products == ["embed", "mixer.qkv", "mixer", "mixer.proj"]  # nothing from inside the operator
    assert report.counts.neuron_updates == T * N * (24 + 8)


def test_stdp_attention_on_real_numbers_shows():
    mixer = Call(lambda x, fc: s2tdpt.ops.stdp_attention((x > 0.5).to(x), (x > 0.5).to(x), x, s2tdpt.StdpWindow()))
    report = count(mixer, torch.rand(2, 5, 8))
    assert (report.counts.macs, report.counts.sops) == (5 * 5 * 8, 0)
    (edge,) = report.non_binary_edges
    assert (edge.operand, edge.what, edge.multiplies) == ("value", "pixels", True)


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x):
        self.fc(x)
        raise KeyError("broken")


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = nn.Sequential(Net(s2tdpt.LIF()), Broken() if fails else nn.Identity()).train()
    model[0].norm.eval()
    flags = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    if fails:
        with pytest.raises(KeyError, match="broken"):
            count(model, IMAGES)
    else:
        count(model, IMAGES)
    assert [m.training for m in model.modules()] == flags
    assert model[0].seen_training is False
    assert hooks(model) == 0
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert model[0](IMAGES).requires_grad


def test_a_model_that_mends_a_part_that_failed_is_still_attributed():
    class Mends(nn.Module):
        def __init__(self):
            super().__init__()
            self.broken, self.fc = Broken(), nn.Linear(5, 3)

        def forward(self, x):
            try:
                self.broken(x)
            except KeyError:
                x = x + 1
            return x @ self.fc.weight.t() + self.fc(x)

    report = count(Mends(), torch.rand(1, 5))
    assert [r.name for r in report.layers] == ["broken.fc", "(Mends)", "fc"]


def test_hooks_that_raise_before_a_part_is_entered():
    class Mends(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x):
            try:
                self.fc(x)
            except KeyError:
                return x @ self.fc.weight.t()

    def refuse(module, args):
        raise KeyError("not now")

    model = Mends()
    model.fc.register_forward_pre_hook(refuse)
    assert [r.name for r in count(nn.Sequential(model), torch.rand(1, 5)).layers] == ["0"]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_same_in_every_gradient_mode(net, context):
    expected = count(net, IMAGES, exact=True).to_dict()
    with context():
        assert count(net, IMAGES, exact=True).to_dict() == expected


def test_compiled_and_scripted_parts_are_seen_through():
    def refuse(graph, example_inputs):
        raise AssertionError("the compiled form hides its operators")

    inner = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    compiled = nn.Sequential(torch.compile(inner, backend=refuse), nn.Linear(3, 2))
    assert [(r.name, r.nominal_macs) for r in count(compiled, torch.rand(2, 4)).layers] == [("0.0", 12), ("1", 6)]
    scripted = nn.Sequential(torch.jit.script(nn.Linear(4, 3)), nn.Linear(3, 2))
    assert [(r.name, r.nominal_macs) for r in count(scripted, torch.rand(2, 4)).layers] == [
        ("(Sequential)", 12),
        ("1", 6),
    ]
    assert count(torch.jit.trace(inner, torch.rand(2, 4)), torch.rand(2, 4)).nominal_macs == 12


def test_inputs_of_every_form():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x, scale=1.0):
            return {"out": (self.fc(x) * scale,)}

    x = torch.rand(3, 4)
    for inputs in (x, (x, 2.0), [x], {"x": x, "scale": 2.0}):
        report = count(Two(), inputs)
        assert (report.images, report.nominal_macs) == (3, 8)
    assert count(Two(), x, batch_size=1).nominal_macs == 24


def test_mistakes_get_one_line():
    fc = nn.Linear(2, 2)
    for call, words in (
        (lambda: count(F.relu, torch.rand(1, 2)), "torch.nn.Module"),  # pyright: ignore[reportArgumentType]
        (lambda: count(fc, ()), "no tensor"),
        (lambda: count(fc, torch.rand(0, 2)), r"at least one image.*\(0, 2\)"),
        (lambda: count(fc, torch.rand(1, 2), batch_size=0), "at least one image"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
