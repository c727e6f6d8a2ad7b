"""Whatever is wrong on the command line or in a file gets one line on stderr and exit code 2, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "No such command"),
        (["--bogus"], "No such option"),
        (["evaluate"], "Missing argument"),
        (["evaluate", "s2tdpt_tniy.digits"], "unknown"),
        (["evaluate", "s2tdpt_4_384"], "no weights"),
        (["evaluate", "no/such/folder"], "is no folder of a run"),
        (["evaluate", "x", "--limit", "0"], "--limit"),
        (["evaluate", "x", "--limit", "many"], "--limit"),
        (["energy", "vit_tiny", "--device", "gpu7"], "device"),
        (["energy", "vit_tiny", "--device", "cuda:99"], "cuda:99"),
        (["energy", "vit_tiny", "--table", "free"], "cost table"),
        (["energy", "vit_tiny", "--time-steps", "2"], "one time step"),
        (["train", "no_such_recipe"], "no such recipe"),
        (["train", "no/such/file.yaml"], "no/such/file.yaml"),
        (["train", "digits", "--set", "optimizer.lr=fast"], "optimizer.lr"),
        (["train", "digits", "--set", "optimiser.lr=1"], "optimiser"),
        (["train", "digits", "--set", "optimizer.lr"], "KEY=VALUE"),
        (["train", "digits", "--set", "model.name=s2tdpt_9"], "s2tdpt_9"),
        (["train", "digits", "--set", "data.name=cifar11"], "cifar11"),
        (["train", "digits", "--set", "schedule.time_steps=4"], "schedule.time_steps"),
        (["train", "digits", "--set", "optimizer.lr=true"], "optimizer.lr: must be a number"),
        (["train", "digits", "--set", "model.options.time_steps=3"], "schedule.time_steps decides it"),
        (["train", "digits", "--set", "model.options.num_classes=3"], "the data decides it"),
        (["train", "digits", "--set", "model.options.stem_channels=[a,b,c]"], "stem_channels must be a list of int"),
        (["train", "digits", "--set", "model.options.stem_channels=[0,1,2]"], "stem_channels must be at least 1"),
        (["train", "digits", "--out", "/dev/null"], "is a file"),
        (["train", "digits", "--seed", "-1"], "--seed"),
        (["train", "digits", "--device", "gpu7"], "device"),
    ],
)
def test_command_lines(
    refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(*arguments)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_data_that_does_not_fit(refused, finished: Path, tmp_path: Path) -> None:
    assert "unknown data set" in refused("evaluate", finished, "--data", "mnist")
    assert "split" in refused("evaluate", finished, "--split", "dev")
    assert "use auto (" in refused("evaluate", finished, "--precision", "int8")
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), "red").save(tmp_path / "pets" / name / f"{i}.png")
    assert "channel" in refused("evaluate", finished, "--data", f"folder:{tmp_path / 'pets'}")
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("evaluate", finished, "--data", f"folder:{tmp_path / 'empty'}")


def damage(weights: Path, how: str) -> None:
    content = bytearray(weights.read_bytes())
    if how == "flipped bit":
        content[len(content) // 2] ^= 1
    elif how == "truncated":
        del content[-100:]
    elif how == "emptied":
        content.clear()
    weights.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "emptied"])
@pytest.mark.parametrize("command", ["evaluate", "predict", "energy", "explain"])
def test_damaged_weights(refused, finished: Path, picture: Path, command: str, how: str) -> None:
    damage(finished / "model.safetensors", how)
    files = [picture] if command in ("predict", "explain") else []
    assert "model.safetensors is damaged" in refused(command, finished, *files)


def test_weights_for_another_geometry(refused, finished: Path) -> None:
    card = json.loads((finished / "model.json").read_text())
    card["config"]["embed_dim"] = 128
    card["config"]["stem_channels"][-1] = 128
    (finished / "model.json").write_text(json.dumps(card))
    assert "another geometry" in refused("evaluate", finished)


@pytest.mark.parametrize("key", ["data", "classes"])
def test_weights_that_do_not_say_what_they_are_for(refused, finished: Path, picture: Path, key: str) -> None:
    card = json.loads((finished / "model.json").read_text())
    del (card if key in card else card["data"])[key]
    (finished / "model.json").write_text(json.dumps(card))
    assert "what data they are for" in refused("evaluate", finished)
    assert "what data they are for" in refused("predict", finished, picture)


def test_incomplete_run_folders(refused, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "tensorless")
    (tmp_path / "tensorless/model.safetensors").unlink()
    assert "model.safetensors" in refused("evaluate", tmp_path / "tensorless")
    (tmp_path / "empty").mkdir()
    assert "model.json" in refused("evaluate", tmp_path / "empty")
    (finished / "model.json").write_text("{")
    assert "model.json" in refused("evaluate", finished)


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_bad_pictures(refused, finished: Path, picture: Path, tmp_path: Path, command: str) -> None:
    empty, cut, text = tmp_path / "empty.png", tmp_path / "cut.png", tmp_path / "text.png"
    empty.touch()
    cut.write_bytes(picture.read_bytes()[:60])
    text.write_text("no picture")
    for file in (empty, cut, text, tmp_path / "missing.png"):
        assert str(file) in refused(command, finished, file)
    (tmp_path / "folder").mkdir()
    assert "holds no pictures" in refused(command, finished, tmp_path / "folder")


def test_one_bad_picture_does_not_lose_the_others(cli, finished: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    result = cli("predict", finished, picture, tmp_path / "empty.png", "--json", tmp_path / "out.json")
    assert result.exit_code == 2
    assert "empty.png" in result.stderr
    assert result.stdout.startswith(str(picture))
    assert [p["file"] for p in json.loads((tmp_path / "out.json").read_text())["predictions"]] == [str(picture)]


def test_figures_that_cannot_be_written(refused, finished: Path, picture: Path) -> None:
    assert "no space left" in refused("predict", finished, picture, "--json", "/dev/full")
    said = refused("predict", finished, picture, "--json", picture / "out.json")
    assert str(picture) in said
    assert "choose another place" in said
    assert "is a directory" in refused("explain", finished, picture, "--out", finished)


def test_figures_are_on_the_terminal_where_the_file_cannot_be_written(cli, finished: Path, tmp_path: Path) -> None:
    for command in (["evaluate", finished, "--limit", "5"], ["energy", finished, "--limit", "2"], ["models"]):
        result = cli(*command, "--json", tmp_path)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert str(tmp_path) in result.stderr
        assert len(result.stdout.splitlines()) > 4


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_says_what_to_lower(refused, finished: Path, monkeypatch: pytest.MonkeyPatch, error) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("s2tdpt.training.evaluate.evaluate", full)
    assert "out of memory: lower --batch-size" in refused("evaluate", finished)


def test_a_bug_keeps_its_trace(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2tdpt.models.list_models", lambda pretrained=False: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli("models")
