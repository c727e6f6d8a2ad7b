"""Figures, limits, rows, gates and the order of events: what stands between a clock and a claim."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import all_gpu, kernels, ours, parity, plots, rows
from benchmarks.common import Case, Figure, Red, start
from benchmarks.limits import ADAMW_BYTES, Ceilings, Floor, Layer, Work, layers, model_work, packed_work
from benchmarks.timing import Contestant, Seconds, alternate
from s2tdpt.errors import InputError

CASE = Case("train_step", torch.device("cpu"), 256)


def test_figures_are_medians_with_the_distance_of_quartiles() -> None:
    assert Figure.of([9.0, 1.0, 2.0, 3.0, 4.0], "ms") == Figure(3.0, 2.0, "ms")
    assert Figure.of([7.0], "ms") == Figure(7.0, 0.0, "ms")
    assert Seconds((0.5, 0.25, 1.0)).images_per_second(100).median == 200
    assert Seconds((0.5, 0.25, 1.0)).milliseconds().median == 500


def test_better_is_more_images_less_time_and_less_memory() -> None:
    assert Figure(300, 0, "images/s").times_better_than(Figure(100, 0, "images/s")) == 3
    assert Figure(2, 0, "ms").times_better_than(Figure(8, 0, "ms")) == 4
    assert Figure(4, 0, "GiB").times_better_than(Figure(2, 0, "GiB")) == 0.5


def test_runs_take_turns_and_the_first_of_each_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    def run(name: str, *takes: float) -> Any:
        left = iter(takes * CASE.rounds)

        def go() -> None:
            order.append(name)
            clock[0] += next(left)

        return go

    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: clock[0])
    case = replace(CASE, rounds=2, repeats=2)
    first, second = alternate(case, run("a", 100, 1, 2), run("b", 50, 3, 4))
    assert order == ["a", "a", "a", "b", "b", "b"] * 2
    assert first.samples == (1, 2, 1, 2)
    assert second.samples == (3, 4, 3, 4)


def test_the_limit_is_the_sum_of_what_bounds_each_operator() -> None:
    floor = Floor.of([Work(10, 3), Work(2, 30)], Ceilings(bytes_per_second=2, operations_per_second=3), images=30)
    assert floor.seconds == 10 / 2 + 30 / 3
    assert (floor.bytes, floor.operations) == (12, 33)
    assert floor.best("images/s") == 2
    assert floor.best("ms") == 15_000


def test_layers_of_4_384_multiply_as_often_as_its_geometry_says() -> None:
    single = replace(CASE, batch=1)
    found = layers(ours.build(single, "plain").eval(), ours.batch(single)[0])
    stem = [27 * 48 * 1024, *(4 * n for n in (432 * 96 * 1024, 864 * 192 * 1024, 1728 * 384 * 256, 3456 * 384 * 64))]
    block = [4 * 64 * 384 * n for n in (3 * 384, 384, 4 * 384, 4 * 384)]
    assert [layer.multiplications for layer in found] == [*stem, *block * 4, 3840]
    assert [layer.name for layer in found if layer.membrane] == [
        f"blocks.{i}.{name}" for i in range(4) for name in ("attn.proj", "mlp.fc2")
    ]


def test_work_counts_what_moves_by_hand() -> None:
    two = [Layer("stem", 5, 8, 16), Layer("head", 7, 24, 2)]
    forward = [Work(2 * 24, 10), Work(2 * (16 + 24)), Work(2 * 26, 14), Work(2 * 2)]
    assert model_work(two, training=False) == forward
    training = model_work(two, training=True, weights=3)
    assert sum(work.operations for work in training) == 3 * 24 - 10  # pixels need no gradient
    backward = (2 * 16 + 2 * 8) + 2 * (24 + 2 * 16) + (2 * 2 + 24 / 8) + 2 * 26 + 2 * 2 * 2
    bits = 24 / 8
    assert sum(w.bytes for w in training) == sum(w.bytes for w in forward) + bits + backward + 3 * ADAMW_BYTES
    assert model_work(two, training=False, images=5)[0] == Work(5 * 48, 50)


def test_packed_spikes_move_as_bits_by_hand() -> None:
    found = [
        Layer("stem", 5, 8, 16),
        Layer("attn.qkv", 6, 24, 48),
        Layer("attn.proj", 7, 16, 16),
        Layer("head", 1, 8, 2),
    ]
    assert packed_work(found, images=3) == [
        Work(3 * (8 * 4 + 24 / 8), 30),
        Work(3 * (24 + 48) / 8, 36),
        Work(3 * (48 + 16) / 8),
        Work(3 * ((16 + 8) / 8 + 4 * 16), 42),
        Work(3 * 8 / 8, 6),
    ]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> rows.Results:
    monkeypatch.setattr(rows, "commit", lambda: "abc1234")
    return rows.Results(replace(CASE, results=tmp_path / "deep"))


def test_rows_are_appended_and_read_back(results: rows.Results, tmp_path: Path) -> None:
    floor = Floor(8e9, 4e9, 0.5, Ceilings(4e12, 8e14), images=200)
    results.add("a, b", Figure(100.0, 3.0, "images/s"), "peer", Figure(50.0, 1.0, "images/s"), floor=floor)
    results.add("held", Figure(4.0, 0.0, "GiB"))
    first, second = rows.read(tmp_path / "deep" / "train_step.csv")
    assert (first.what, first.median, first.spread, first.unit) == ("a, b", 100, 3, "images/s")
    assert (first.peer, first.peer_median, first.peer_spread, first.ratio) == ("peer", 50, 1, 2)
    assert (first.gigabytes, first.gigaoperations) == (8, 4)
    assert (first.copy_gigabytes_per_second, first.product_teraoperations_per_second) == (4000, 800)
    assert (first.limit, first.distance) == (400, 4)
    assert (first.commit, first.command) == ("abc1234", "python -m benchmarks.train_step")
    assert (second.peer, second.ratio, second.limit) == ("", None, None)
    assert rows.read(tmp_path / "none.csv") == []


def test_a_race_sets_each_of_ours_beside_the_peer(results: rows.Results, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([Seconds((2.0,)), Seconds((1.0,)), Seconds((4.0,))])
    monkeypatch.setattr(rows, "alternate", lambda case, *runs: [next(times) for _ in runs])
    entries = [Contestant("slow", int), Contestant("fast", int, Figure(2.0, 0.0, "GiB"))]
    peer = Contestant("peer", int, Figure(6.0, 0.0, "GiB"))
    floor = Floor(1, 1, 0.5, Ceilings(1, 1))
    results.race(entries, peer, Seconds.milliseconds, floor)
    assert results.path is not None
    written = rows.read(results.path)
    assert [(row.what, row.unit, row.ratio, row.distance) for row in written] == [
        ("slow", "ms", 2, 4),
        ("fast", "ms", 4, 2),
        ("fast: peak memory", "GiB", 3, None),
    ]


def test_the_commit_is_what_the_environment_says_before_git_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2TDPT_COMMIT", "1234567")  # a copy elsewhere may have a git that knows another commit
    assert rows.commit() == "1234567"

    def no_git(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    monkeypatch.delenv("S2TDPT_COMMIT")
    assert rows.commit() == "unknown"


def test_error_ratio_takes_nothing_that_is_not_a_number_for_right() -> None:
    truth = torch.tensor([3.0, 4.0])
    assert parity.error_ratio(truth + torch.tensor([0.0, 0.5]), truth) == pytest.approx(0.1)
    assert parity.error_ratio(torch.tensor([3.0, math.nan]), truth) == math.inf
    with pytest.raises(Red, match="loss is off"):
        parity.require("loss", math.nan, 1.0)
    parity.require("loss", 1.0, 1.0)


def test_gradients_are_compared_one_by_one() -> None:
    truth = {"fc.weight": torch.ones(4), "fc.bias": torch.full((2,), 1e-7), "norm.weight": torch.ones(2)}
    parity.compare_gradients(truth, {**truth, "fc.bias": torch.zeros(2)})  # a bias before BatchNorm: rounding
    with pytest.raises(Red, match=r"norm\.weight"):
        parity.compare_gradients(truth, {**truth, "norm.weight": torch.tensor([1.0, 1.1])})
    with pytest.raises(Red, match=r"fc\.bias"):
        parity.compare_gradients(truth, {**truth, "fc.bias": torch.full((2,), 0.5)})
    with pytest.raises(Red, match=r"only one .* fc\.bias"):
        parity.compare_gradients(truth, {k: v for k, v in truth.items() if k != "fc.bias"})


def test_few_images_may_meet_a_flipped_spike() -> None:
    truth = torch.ones(8, 3)
    found = truth.clone()
    found[:2] += 1
    parity.same_images("model", found, truth)
    found[2] = math.nan
    with pytest.raises(Red, match="38%"):
        parity.same_images("model", found, truth)


def test_refusals_and_errors_are_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def red(_: Case) -> None:
        raise Red("the loss is off")

    def missing(_: Case) -> None:
        raise InputError("no device")

    assert start(red, "x", None, ["--no-peers"], gpu=False) == 1
    assert capsys.readouterr() == ("", "refused: parity is red: the loss is off\n")
    assert start(missing, "x", None, [], gpu=False) == 2
    assert capsys.readouterr() == ("", "error: no device\n")
    assert start(lambda _: None, "x", None, [], gpu=False) == 0


def test_all_of_them_fit_into_nine_minutes() -> None:
    assert sum(all_gpu.LIMITS.values()) < 540


def test_one_that_hangs_or_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$2" in *hangs) sleep 600;; *fails) exit 3;; *) echo "$@";; esac\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert all_gpu.main(["--smoke", "--no-peers"], {"hangs": 0.5, "fails": 60, "works": 60}) == 1
    said = capfd.readouterr().out
    assert "hangs: stopped after 0.5 s" in said
    assert "fails: exit code 3" in said
    assert "works: done" in said
    assert "-m benchmarks.works --results" in said
    assert "--smoke --no-peers" in said
    assert all_gpu.main(["--smoke"], {"works": 60}) == 0


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_NNN", "products and convolutions"),
        (
            "sm90_xmma_wgrad_indexed_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize",
            "products and convolutions",
        ),
        ("void cublasLt::splitKreduce_kernel<32, 16, int>", "products and convolutions"),
        ("tile_backward_kernel", "attention"),
        ("backward_norm_kernel", "norm, residual, neuron, pooling"),
        ("neuron_backward_kernel", "attention"),
        ("stats_finish_kernel", "norm, residual, neuron, pooling"),
        ("multi_tensor_apply_kernel<FusedOptimizer>", "optimiser"),
        ("Memcpy DtoD (Device -> Device)", "copies, fills and the rest"),
    ],
)
def test_kernels_by_kind(kernel: str, kind: str) -> None:
    assert kernels.kind_of(kernel) == kind


def test_launches_are_summed_by_step() -> None:
    assert kernels.per_step([1.0, 2.0, 3.0, 4.0], 2) == [3.0, 7.0]


def test_the_picture_shows_the_latest_rows(results: rows.Results, tmp_path: Path) -> None:
    floor = Floor(1, 1, 0.01, Ceilings(1, 1), images=256)
    for speed in (10_000.0, 11_000.0):
        for peer, theirs in (("SpikingJelly 2.0.0 eager", 2_900.0), ("SpikingJelly 2.0.0 compiled", 5_700.0)):
            ours_, his = Figure(speed, 50.0, "images/s"), Figure(theirs, 20.0, "images/s")
            results.add("training step, CUDA graph", ours_, peer, his, floor=floor)
    attention = rows.Results(replace(CASE, name="stdp_attention", results=tmp_path / "deep"))
    for n in (64, 1024):
        attention.add(f"STDP N={n}", Figure(0.2, 0.0, "ms"), "flash", Figure(n / 64, 0.0, "ms"), floor=floor)
    assert results.path is not None
    assert [row.median for row in plots.latest(rows.read(results.path), "images/s")] == [11_000, 11_000]
    out = tmp_path / "img" / "benchmarks.png"
    assert plots.main(["--results", str(tmp_path / "deep"), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_no_results_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plots.main(["--results", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err.startswith("error: there are no results in")
