"""Commands that measure: their figures are those of the library, under stable keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from s2tdpt import data, energy
from s2tdpt.cli import subject
from s2tdpt.models import save_weights
from s2tdpt.training.evaluate import firing_rates

EVALUATE = {
    "model", "data", "split", "n", "top1", "top5", "loss", "mean_firing_rate", "attention_firing_rate", "time_steps",
    "precision", "images_per_second",
}  # fmt: skip


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture
def expected(finished: Path, digits: data.ImageSet) -> torch.Tensor:
    """Probabilities [30, 10] of test digits, by the library alone and one at a time: rounding flips spikes."""
    net, _ = subject.load(str(finished), "cpu", None)
    with torch.no_grad():
        return torch.cat([net(x).softmax(-1) for x, _ in data.DeviceLoader(digits.limit(30), 1).epoch(0)])


def test_evaluate(cli, finished: Path, tmp_path: Path, digits: data.ImageSet, expected: torch.Tensor) -> None:
    options = ["--limit", "30", "--device", "cpu", "--batch-size", "1", "--json", tmp_path / "new/out.json"]
    result = cli("evaluate", finished, *options)
    figures = read(tmp_path / "new/out.json")
    assert figures.keys() == EVALUATE
    top1 = (expected.argmax(-1) == digits.limit(30).labels).double().mean().item()
    assert figures["top1"] == pytest.approx(top1)
    assert (figures["n"], figures["data"], figures["split"], figures["time_steps"]) == (30, "digits", "test", 2)
    assert 0 < figures["mean_firing_rate"] < 1
    assert len(figures["attention_firing_rate"]) == 2
    assert f"{top1:.2%}" in result.stdout
    assert result.stderr == ""


def test_evaluate_options(cli, finished: Path, tmp_path: Path) -> None:
    arguments = ["--limit", "7", "--split", "train", "--time-steps", "3", "--precision", "bfloat16"]
    assert cli("evaluate", finished, *arguments, "--json", tmp_path / "out.json").exit_code == 0
    figures = read(tmp_path / "out.json")
    assert (figures["n"], figures["split"], figures["time_steps"]) == (7, "train", 3)


def test_evaluate_takes_rates_in_the_arithmetic_of_its_score(cli, finished, tmp_path, digits) -> None:
    options = ["--limit", "100", "--device", "cpu", "--precision", "bfloat16", "--json", tmp_path / "out.json"]
    assert cli("evaluate", finished, *options).exit_code == 0
    net, _ = subject.load(str(finished), "cpu", None)
    x = subject.first_batch(net, digits.limit(100), 100)
    exact = firing_rates(net, x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = firing_rates(net, x)
    figures = read(tmp_path / "out.json")
    assert {key: figures[key] for key in rounded} == rounded != exact


def test_evaluate_on_a_folder_keeps_the_models_normalisation(
    cli, finished, picture, tmp_path, digits, expected
) -> None:
    net, card = subject.load(str(finished), "cpu", None)
    card["data"]["mean"], card["data"]["std"] = [0.25], [0.5]
    images = subject.load_images(net, card, "digits", "test", None, 5)
    assert (images.mean, images.std) == ((0.25,), (0.5,))


def test_predict_answers_as_the_model_does(cli, finished: Path, picture: Path, tmp_path: Path, expected) -> None:
    result = cli("predict", finished, picture, "--top", "2", "--json", tmp_path / "out.json")
    assert result.exit_code == 0
    answer = read(tmp_path / "out.json")["predictions"][0]
    assert answer["file"] == str(picture)
    assert answer["class"] == str(expected[0].argmax().item())
    assert answer["probability"] == pytest.approx(expected[0].max().item(), abs=1e-5)
    assert [entry["class"] for entry in answer["top"]] == [str(i) for i in expected[0].topk(2).indices.tolist()]
    assert (expected.argmax(-1) != expected[0].argmax()).any()  # else any picture would do
    assert result.stdout.startswith(f"{picture} {answer['class']} ")


def test_predict_takes_folders_and_batches(cli, finished: Path, picture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(picture.read_bytes())
    (folder / "notes.txt").write_text("not a picture")
    cli("predict", finished, folder, picture, "--batch-size", "2", "--json", tmp_path / "out.json")
    answers = read(tmp_path / "out.json")["predictions"]
    assert [Path(answer["file"]).name for answer in answers] == ["0.png", "1.png", "2.png", "digit.png"]
    assert len({answer["probability"] for answer in answers}) == 1


def test_energy_is_that_of_the_library(cli, finished: Path, tmp_path: Path, digits: data.ImageSet) -> None:
    result = cli("energy", finished, "--limit", "10", "--json", tmp_path / "out.json")
    figures = read(tmp_path / "out.json")
    net, _ = subject.load(str(finished), "cpu", None)
    report = energy.count(net, next(data.DeviceLoader(digits.limit(10), 10).epoch(0))[0])
    assert figures["energy_mj"] == pytest.approx(report.energy_mj())
    assert {
        "model",
        "time_steps",
        "sops",
        "macs",
        "layers",
        "rules",
        "cost_table",
        "non_binary_edges",
    } <= figures.keys()
    assert (figures["model"], figures["images"]) == (str(finished), 10)
    assert f"{figures['energy_mj']:.4g} mJ" in result.stdout
    assert "source" in result.stdout


def test_energy_of_untrained_models(cli, tmp_path: Path) -> None:
    result = cli("energy", "vit_4_384", "--json", tmp_path / "out.json")
    assert read(tmp_path / "out.json")["energy_mj"] == pytest.approx(4.297, abs=5e-4)
    assert result.stderr == ""
    assert "mean nothing" in cli("energy", "s2tdpt_tiny").stderr


def test_energy_of_weights_that_do_not_say_what_they_are_for(cli, refused, finished: Path, tmp_path: Path) -> None:
    net, card = subject.load(str(finished), "cpu", None)
    save_weights(net, tmp_path / "mute" / "model", meta={"model": card["model"]})
    assert "does not say what data they are for: name it with --data" in refused("energy", tmp_path / "mute")
    result = cli("energy", tmp_path / "mute", "--data", "digits", "--limit", "2")
    assert (result.exit_code, result.stderr) == (0, "")


def test_energy_tables_differ(cli, tmp_path: Path) -> None:
    cli("energy", "vit_tiny", "--table", "horowitz_45nm_int8", "--exact", "--json", tmp_path / "out.json")
    figures = read(tmp_path / "out.json")
    assert figures["cost_table"]["name"] == "horowitz_45nm_int8"
    assert figures["exact"]["energy_mj"] > 0


def test_models(cli, tmp_path: Path) -> None:
    result = cli("models", "--json", tmp_path / "out.json")
    entries = {entry["name"]: entry for entry in read(tmp_path / "out.json")["models"]}
    assert entries["s2tdpt_4_384"]["parameters"] == 9_320_122
    assert not entries["s2tdpt_4_384"]["trained"]
    assert entries["s2tdpt_tiny.digits"]["trained"]
    for name in entries:
        assert f"\n{name} " in result.stdout


def test_explain_writes_one_page(cli, finished: Path, picture: Path, tmp_path: Path) -> None:
    (finished / "metrics.json").write_text('{"test_top1": 0.4321}')
    (finished / "log.csv").write_text("epoch,time_steps,train_loss\n1,2,1.5\n2,2,1.25\n")
    result = cli("explain", finished, picture, picture, "--out", tmp_path / "deep/report.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "deep/report.html").read_text()
    for content in ("digit.png", "Grad-CAM", "data:image/png;base64", "43.2", "1.25"):
        assert content in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert str(tmp_path / "deep/report.html") in result.stdout


def test_figures_replace_a_file_whole_or_not_at_all(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "out.json"
    file.write_text("before")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr(Path, "write_text", full)
    result = cli("models", "--json", file)
    assert (result.exit_code, file.read_bytes()) == (2, b"before")
    assert "no space left" in result.stderr


def test_figures_go_through_links_and_never_replace_a_stream(cli, tmp_path: Path) -> None:
    (tmp_path / "out.json").symlink_to(tmp_path / "real.json")
    cli("models", "--json", tmp_path / "out.json")
    assert (tmp_path / "out.json").is_symlink()
    assert "models" in read(tmp_path / "real.json")
    # /dev/fd/N leads to a file here, as /dev/stdout does after `s2tdpt … > file`
    with (tmp_path / "stream.json").open("a") as stream:
        cli("models", "--json", f"/dev/fd/{stream.fileno()}")
        assert os.fstat(stream.fileno()).st_ino == (tmp_path / "stream.json").stat().st_ino
    assert read(tmp_path / "stream.json") == read(tmp_path / "real.json")


def test_figures_are_saved_also_where_nobody_reads_the_rest(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "s2tdpt", "models", "--json", str(tmp_path / "out.json")]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
    assert "models" in read(tmp_path / "out.json")


def test_predict_answers_twice_where_a_picture_is_named_twice(cli, finished, picture, tmp_path) -> None:
    cli("predict", finished, picture, picture, "--json", tmp_path / "out.json")
    assert [p["file"] for p in read(tmp_path / "out.json")["predictions"]] == [str(picture)] * 2
