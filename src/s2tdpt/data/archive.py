"""Fetch a public archive whole or not at all, and copy the known members, and only those, out of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from s2tdpt.errors import DataError, require

MIRRORS_VARIABLE = "S2TDPT_MIRRORS"


def fetch(url: str, md5: str, folder: Path, *, progress: bool = True) -> Path:
    """Download `url` into `folder` and return the file, whose md5 is then `md5`.

    The mirrors in $S2TDPT_MIRRORS (addresses of folders, separated by spaces or commas) are tried first. A download
    goes into a temporary file and is moved into place once its checksum is right, so that a broken one leaves nothing.
    Raises `DataError` with every source's reason when none delivers.
    """
    pooch = require("pooch", "all")
    pooch.get_logger().setLevel("WARNING")
    name = url.rsplit("/", 1)[-1]
    mirrors = os.environ.get(MIRRORS_VARIABLE, "").replace(",", " ").split()
    reasons = []
    for source in [f"{mirror.rstrip('/')}/{name}" for mirror in mirrors] + [url]:
        downloader = pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 20, timeout=30)
        try:
            # pooch's hash comparison raises ValueError; requests' errors and a full disk are OSErrors.
            pooch.retrieve(source, known_hash=f"md5:{md5}", fname=name, path=folder, downloader=downloader)
            return folder / name
        except (OSError, ValueError) as error:
            reasons.append(f"{source}: {_first_line(error)}")
    raise DataError(
        f"{name} could not be downloaded into {folder} ({'; '.join(reasons)}): check the network, name a mirror in "
        f"${MIRRORS_VARIABLE}, or put the file there yourself"
    )


def check_md5(file: Path, md5: str) -> None:
    """Raise `DataError` unless `file` has the published checksum."""
    if file_md5(file) != md5:
        raise DataError(f"{file} is truncated or altered (its md5 is not {md5}): delete it and get it again")


def file_md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def unpack(archive: Path, folder: str, members: Mapping[str, int], into: Path) -> Path:
    """Copy `folder`/name for each name in `members` (name -> bytes) from a .tar.gz; returns `into`/`folder`.

    All of them appear at once, by renaming a finished temporary folder. Raises `DataError` when the archive cannot be
    read, lacks a member, holds one with another size, or names anything outside its folder or a link.
    """
    target = into / folder
    try:
        with tempfile.TemporaryDirectory(dir=into, prefix=f".{folder}-") as work:
            _copy_members(archive, folder, members, Path(work))
            fresh = Path(work) / folder
            try:
                fresh.rename(target)
            except OSError:
                # Another process may have finished first; what it wrote passed the same checks.
                if not all((target / name).is_file() for name in members):
                    raise
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(
            f"{archive} is truncated or damaged ({_first_line(error)}): delete it and get it again"
        ) from error
    except OSError as error:
        raise DataError(f"{archive} could not be unpacked into {into}: {_first_line(error)}") from error
    return target


def _copy_members(archive: Path, folder: str, members: Mapping[str, int], work: Path) -> None:
    (work / folder).mkdir()
    missing = set(members)
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or "\\" in member.name:
                raise DataError(f"{archive} holds a path outside its folder ({member.name!r}): do not trust this file")
            if not (member.isfile() or member.isdir()):
                raise DataError(f"{archive} holds a link or device ({member.name!r}): do not trust this file")
            name = path.name
            if str(path) != f"{folder}/{name}" or name not in members:
                continue
            if not member.isfile() or member.size != members[name] or name not in missing:
                raise DataError(
                    f"{archive}: {member.name} has {member.size:,} bytes instead of {members[name]:,}, or comes twice: "
                    "delete it and get it again"
                )
            source = tar.extractfile(member)
            assert source is not None  # it is a regular file
            with source, (work / folder / name).open("xb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            missing.discard(name)
    if missing:
        raise DataError(f"{archive} lacks {folder}/{min(missing)}: delete it and get it again")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
