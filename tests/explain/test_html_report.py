"""The report as a reader's browser would take it: parsed, without network, complete, and small."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from s2tdpt import energy
from s2tdpt.errors import InputError
from s2tdpt.explain import report, write_report
from s2tdpt.explain.report import seen

VOID = {"meta", "img", "br", "link", "input", "hr", "path", "use", "rect", "circle", "line"}


class Page(HTMLParser):
    """Sections with their text, all links and pictures, ids, and whether tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.charts: list[str | None] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.sections: dict[str, str] = {}
        self.words = ""
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "xlink:href", "action", "data") and v]
        self.ids += [v for k, v in attrs if k == "id" and v]
        if tag == "img":
            self.images.append(values)
        if tag == "svg":
            self.charts.append(values.get("aria-label"))
        if tag == "section":
            self._section = values["id"] or ""
            self.sections[self._section] = ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._section and "section" in self._open:
            self.sections[self._section] += data


HISTORY = [
    {
        "epoch": str(e),
        "time_steps": "1" if e < 3 else "4",
        "train_loss": 1 / e,
        "test_top1": "" if e % 2 else 0.5 + e / 10,
    }
    for e in range(1, 5)
]


@pytest.fixture(scope="module", autouse=True)
def _short_curves() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen, "POINTS", 3)
        patch.setattr(seen, "DRAWS", 1)
        yield


@pytest.fixture(scope="module")
def full(build_model, images, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    model, x = build_model(), images(3)
    path = write_report(
        tmp_path_factory.mktemp("report") / "new/folder/report.html",
        title="Digits <b>& co</b>",
        model=model,
        images=x,
        labels=[0, 1, 2],
        classes=["<zero>", "one", "two", "three", "four"],
        metrics={"test_top1": 0.9876, "n": 360, "mean_firing_rate": 0.123, "attention_firing_rate": [0.02, 0.6]},
        history=HISTORY,
        energy=energy.count(model, x),
        ann_metrics={"top1": 0.9912, "energy_mj": 0.5},
        show=2,
        command="make <demo>",
        notes=["A note of one's own."],
    )
    text = path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]
    return Page(text), text


def test_every_section_is_there(full) -> None:
    page, _ = full
    assert list(page.sections) == list(report.SECTIONS)
    for key, words in page.sections.items():
        assert len(words.split()) > 8, key
        assert f"#{key}" in page.links  # the table of contents leads to it
    assert len(page.ids) == len(set(page.ids))


def test_nothing_comes_from_outside(full) -> None:
    page, text = full
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    assert not re.search(r"@import|url\((?!#)", text)
    assert "http" not in re.sub(r"data:image/[^\"]*", "", text)
    targets = [link[1:] for link in page.links if link.startswith("#")]
    assert set(targets) <= set(page.ids)


def test_pictures_are_whole_and_described(full) -> None:
    page, text = full
    assert len(page.images) > 40
    for image in page.images:
        assert len(image["alt"] or "") > 5
        Image.open(io.BytesIO(base64.b64decode((image["src"] or "").partition("base64,")[2]))).verify()
    assert len(page.charts) == 9
    assert all(len(label or "") > 20 for label in page.charts)
    assert len(text.encode()) < report.MAX_BYTES


def test_figures_are_those_given(full) -> None:
    page, _ = full
    summary = " ".join(page.sections["summary"].split())
    for figure in ("98.8 %", "99.1 %", "360 test images", "12.3 %", "2.0–60.0 %", "1 of 2 blocks", "0.5 mJ"):
        assert figure in summary
    assert "train_loss ends at 0.25" in page.sections["training"]
    assert "test_top1 ends at 90 %" in page.sections["training"]
    assert "pixels" in page.sections["energy"]
    assert "stem.conv.0" in page.sections["energy"]
    assert "All figures are per image" in page.sections["energy"]  # the counting rules
    assert "make <demo>" in page.sections["made"]
    assert torch.__version__ in page.sections["made"]
    assert "A note of one's own." in page.sections["limits"]


def test_text_is_escaped(full) -> None:
    page, text = full
    assert "<b>" not in text
    assert "Digits <b>& co</b>" in page.words
    assert "<zero>" in page.words


def test_colours_follow_the_page(full) -> None:
    _, text = full
    assert "prefers-color-scheme: dark" in text
    assert text.count("var(--series-1)") > 5
    assert "#0102" not in text  # no stand-in for a colour is left


@pytest.mark.parametrize("key", ["gradcam", "faithfulness", "firing", "attention", "rasters"])
def test_maps_come_from_the_model(build_model, images, tmp_path: Path, key: str) -> None:
    pages = []
    model = build_model()
    for change in (False, False, True):
        if change:
            torch.nn.init.normal_(model.stem.conv[0].weight, std=0.5)
        pages.append(
            _section(write_report(tmp_path / "r.html", title="t", model=model, images=images(2), sections=[key]))
        )
    assert pages[0] == pages[1]
    assert pages[0] != pages[2]


def _section(path: Path) -> str:
    """The page without the running numbers of its charts."""
    return re.sub(r"\bc\d+-", "c-", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("options", "batch", "channels", "size"),
    [
        ({"time_steps": 1, "in_channels": 1}, 1, 1, (8, 12)),
        ({"depth": 1, "num_heads": 1}, 2, 3, (2, 2)),  # one token
        ({"attention": "identity"}, 1, 3, (8, 12)),
        ({"time_steps": 9}, 1, 3, (30, 26)),  # more steps and tokens than are shown
    ],
)
def test_any_geometry(build_model, images, tmp_path: Path, options, batch, channels, size) -> None:
    model = build_model(size=size, **options)
    page = Page(
        write_report(tmp_path / "r.html", title="t", model=model, images=images(batch, channels, size)).read_text()
    )
    assert set(report.SECTIONS) - set(page.sections) == {"training", "energy"}
    if options.get("attention"):
        assert "no STDP attention" in page.sections["attention"]
    if size == (30, 26):
        assert "One token in 3 of all 195 is shown" in page.sections["attention"]
        assert "The first 8 of 9 steps" in page.sections["attention"]


def test_ann_twin_says_what_it_cannot_have(ann, images, tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "r.html", title="t", model=ann, images=images(2)).read_text())
    for key in ("firing", "firing-map", "window", "attention", "rasters"):
        assert "This model is an ANN" in page.sections[key]
    assert "margin" in page.sections["faithfulness"]


def test_silent_model(build_model, images, tmp_path: Path) -> None:
    model = build_model()
    for block in model.blocks:
        block.attn.qkv.weight.data.zero_()
        block.attn.qkv_norm.running_mean.fill_(1.0)
        block.attn.qkv_norm.bias.data.zero_()
    page = Page(write_report(tmp_path / "r.html", title="t", model=model, images=images(2)).read_text())
    assert "2 of 2 attention neurons are outside the band" in page.sections["firing"]
    assert "0 spikes in all" in page.sections["rasters"]


def test_without_a_model(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "r.html", title="t", metrics={"top1": 0.5}, history=HISTORY).read_text())
    assert list(page.sections) == ["summary", "training", "limits", "made"]


def test_bytes_and_floats_are_the_same_images(build_model, tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    floats = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    options = {"title": "t", "model": build_model(), "mean": mean, "std": std, "sections": ["examples"]}
    one = write_report(tmp_path / "1.html", images=pixels, **options)
    two = write_report(tmp_path / "2.html", images=floats, **options)
    assert one.read_text() == two.read_text()


def test_bad_input(spiking, images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.html"
    path.write_text("before")
    for options, message in (
        ({"sections": ["summry"]}, "no section 'summry': choose from summary, training"),
        ({"images": images(2), "labels": [1]}, "2 images but 1 labels"),
        ({"images": images(2)[0]}, r"\[B, C, H, W\]"),
        ({"images": images(2), "model": None}, "need the model"),
    ):
        with pytest.raises(InputError, match=message):
            write_report(path, **({"title": "t", "model": spiking} | options))
    monkeypatch.setattr(report, "MAX_BYTES", 10_000)
    with pytest.raises(InputError, match="show fewer images than 8"):
        write_report(path, title="t", model=spiking, images=images(2), sections=["examples", "gradcam"])
    assert path.read_text() == "before"


def test_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(tmp_path / "r.html", title="first")
    before = path.read_text()

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_report(path, title="second")
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
