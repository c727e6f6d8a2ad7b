"""Downloads from a local server, and archives that must not be trusted."""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from s2tdpt.data import archive
from s2tdpt.data.cifar import load_cifar
from s2tdpt.errors import DataError


class Server:
    """Serves `content` at every path below /good; breaks off half-way below /cut; alters a byte below /wrong."""

    def __init__(self) -> None:
        self.content = b""
        self.requests: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.requests.append(self.path)
                kind = self.path.split("/")[1]
                if kind == "gone":
                    self.send_error(404)
                    return
                content = owner.content
                if kind == "wrong":
                    content = content[:-1] + bytes([content[-1] ^ 1])
                self.send_response(200)
                if kind != "endless":  # without a length only the checksum can tell
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if kind in ("cut", "endless") else content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(archive.MIRRORS_VARIABLE, raising=False)
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def served(server: Server, mini, tmp_path: Path) -> Server:
    server.content = mini.write_archive(tmp_path / "source.tar.gz").read_bytes()
    return server


def fetch(served: Server, mini, kind: str, folder: Path) -> Path:
    return archive.fetch(f"{served.url}/{kind}/mini.tar.gz", mini.spec.md5, folder, progress=False)


def test_a_complete_download_arrives(served: Server, mini, tmp_path: Path):
    assert fetch(served, mini, "good", tmp_path / "in").read_bytes() == served.content


@pytest.mark.parametrize("kind", ["cut", "endless", "wrong", "gone"])
def test_a_broken_download_leaves_nothing(served: Server, mini, tmp_path: Path, kind: str):
    with pytest.raises(DataError, match=r"mini\.tar\.gz could not be downloaded") as caught:
        fetch(served, mini, kind, tmp_path / "in")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "in").iterdir()) == []


def test_a_download_after_an_interrupted_one_succeeds(served: Server, mini, tmp_path: Path):
    with pytest.raises(DataError):
        fetch(served, mini, "cut", tmp_path / "in")
    assert fetch(served, mini, "good", tmp_path / "in").read_bytes() == served.content


def test_mirrors_are_tried_in_order(served: Server, mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dead = "http://127.0.0.1:9/nobody"
    monkeypatch.setenv(archive.MIRRORS_VARIABLE, f"{dead}, {served.url}/wrong {served.url}/good/deep/")
    assert fetch(served, mini, "gone", tmp_path / "in").read_bytes() == served.content
    assert served.requests == ["/wrong/mini.tar.gz", "/good/deep/mini.tar.gz"]


def test_every_source_is_named_when_all_fail(served: Server, mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(archive.MIRRORS_VARIABLE, f"{served.url}/cut")
    with pytest.raises(DataError, match=r"/cut/mini.*/gone/mini.*S2TDPT_MIRRORS"):
        fetch(served, mini, "gone", tmp_path / "in")


def test_the_set_is_downloaded_once(served: Server, mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(archive.MIRRORS_VARIABLE, f"{served.url}/good")
    root = tmp_path / "root"
    for split, count in (("train", 10), ("test", 4), ("train", 10)):
        assert len(load_cifar(mini.spec, split, root, progress=False)) == count
    assert served.requests == ["/good/mini.tar.gz"]
    assert sorted(path.name for path in root.iterdir()) == ["mini-bin", "mini.tar.gz"]


def test_without_leave_to_download_it_says_what_is_missing(mini, tmp_path: Path):
    with pytest.raises(DataError, match=r"mini is not in .*mini-bin/, mini-py/ or mini\.tar\.gz"):
        load_cifar(mini.spec, "train", tmp_path, download=False)


def unpack(mini, tmp_path: Path, source: Path) -> Path:
    sizes = {name: len(content) for name, content in mini.files.items()}
    (tmp_path / "root").mkdir()
    return archive.unpack(source, mini.spec.binary.folder, sizes, tmp_path / "root")


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../evil.bin"),
        tarfile.TarInfo("mini-bin/../../evil.bin"),
        tarfile.TarInfo("/tmp/evil.bin"),
        tarfile.TarInfo("mini-bin\\..\\evil.bin"),
        link("mini-bin/evil.bin", tarfile.SYMTYPE, "/etc/passwd"),
        link("mini-bin/evil.bin", tarfile.LNKTYPE, "mini-bin/one.bin"),
        link("mini-bin/evil.bin", tarfile.FIFOTYPE, ""),
    ],
    ids=lambda info: f"{info.name} {info.type!r}",
)
def test_an_archive_with_evil_members_is_refused_and_leaves_nothing(mini, tmp_path: Path, member: tarfile.TarInfo):
    source = mini.write_archive(tmp_path / "mini.tar.gz", [(member, b"")])
    with pytest.raises(DataError, match="do not trust this file"):
        unpack(mini, tmp_path, source)
    assert list((tmp_path / "root").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mini.tar.gz", "root"]


def test_a_known_name_that_is_a_link_is_refused(mini, tmp_path: Path):
    del mini.files["test.bin"]
    source = mini.write_archive(
        tmp_path / "mini.tar.gz", [(link("mini-bin/test.bin", tarfile.SYMTYPE, "/etc/passwd"), b"")]
    )
    with pytest.raises(DataError, match="do not trust"):
        unpack(mini, tmp_path, source)


def test_only_known_members_are_copied(mini, tmp_path: Path):
    extra = [(tarfile.TarInfo("mini-bin/readme.html"), b"x"), (tarfile.TarInfo("elsewhere/one.bin"), b"y")]
    folder = unpack(mini, tmp_path, mini.write_archive(tmp_path / "mini.tar.gz", extra))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == mini.files
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["mini-bin"]


def test_a_missing_member_is_named(mini, tmp_path: Path):
    sizes = {name: len(content) for name, content in mini.files.items()}
    del mini.files["two.bin"]
    source = mini.write_archive(tmp_path / "mini.tar.gz")
    with pytest.raises(DataError, match=r"lacks mini-bin/two\.bin"):
        archive.unpack(source, "mini-bin", sizes, tmp_path)


def test_a_member_of_the_wrong_size_or_twice_is_refused(mini, tmp_path: Path):
    twice = [(tarfile.TarInfo("mini-bin/one.bin"), mini.files["one.bin"])]
    with pytest.raises(DataError, match="comes twice"):
        unpack(mini, tmp_path, mini.write_archive(tmp_path / "twice.tar.gz", twice))
    sizes = {name: len(content) + 1 for name, content in mini.files.items()}
    with pytest.raises(DataError, match="bytes instead of"):
        archive.unpack(mini.write_archive(tmp_path / "size.tar.gz"), "mini-bin", sizes, tmp_path / "root")


@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.99])
def test_a_truncated_archive_is_one_clear_error(mini, tmp_path: Path, keep: float):
    source = mini.write_archive(tmp_path / "mini.tar.gz")
    content = source.read_bytes()
    source.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(DataError, match=r"mini\.tar\.gz") as caught:
        unpack(mini, tmp_path, source)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "root").iterdir()) == []


def test_an_altered_local_archive_is_refused_and_kept(mini, tmp_path: Path):
    source = mini.write_archive(tmp_path / "mini.tar.gz")
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 1
    source.write_bytes(content)
    with pytest.raises(DataError, match="truncated or altered"):
        load_cifar(mini.spec, "train", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mini.tar.gz"]
