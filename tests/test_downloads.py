"""`bench data download` against a small server on this machine: ranges, broken transfers, wrong files, licences."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trees
from commands import bench

from inpbench.harness import downloads, new_folder
from inpbench.harness.api import Archive, DatasetInfo
from inpbench.harness.errors import BenchError, DataError, PrerequisiteError, UsageError
from inpbench.harness.registry import DATASETS


class Shop:
    """What the server has, how it behaves, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []  # path, Range
        self.cut: list[int] = []  # bytes after which the next answers break off
        self.status: list[int] = []  # of the next answers
        self.ranges, self.length, self.etag, self.redirect = True, True, '"one"', ""
        self.address = ""


class Handler(http.server.BaseHTTPRequestHandler):
    shop: Shop

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        shop = self.shop
        asked = self.headers.get("Range")
        shop.asked.append((self.path, asked))
        if shop.status:
            self.send_error(shop.status.pop(0))
            return
        if shop.redirect:
            self.send_response(302)
            self.send_header("Location", shop.redirect)
            self.end_headers()
            return
        if self.path not in shop.files:
            self.send_error(404)
            return
        data, start = shop.files[self.path], 0
        if asked and shop.ranges and self.headers.get("If-Range") == shop.etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if shop.length:
            self.send_header("Content-Length", str(len(data) - start))
        if shop.etag:
            self.send_header("ETag", shop.etag)
        self.end_headers()
        self.wfile.write(data[start:][: shop.cut.pop(0)] if shop.cut else data[start:])
        self.close_connection = True


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shop]:
    monkeypatch.setattr(downloads, "PAUSE_S", 0.001)
    monkeypatch.setenv("INPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    shop = Shop()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"shop": shop}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    shop.address = f"http://127.0.0.1:{server.server_port}"
    yield shop
    server.shutdown()
    server.server_close()
    thread.join()


def packed(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


@pytest.fixture
def info(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetInfo:
    """A set like MPDD, published by the shop as toy.zip."""
    source = trees.mvtec(tmp_path / "source", ("tubes",))
    data = packed({p.relative_to(source).as_posix(): p.read_bytes() for p in sorted(source.rglob("*.png"))})
    shop.files["/toy.zip"] = data
    archive = Archive(url=f"{shop.address}/toy.zip", file="toy.zip", sha256=hashlib.sha256(data).hexdigest())
    toy = replace(DATASETS.get("mpdd"), name="toy", archives=(archive,), obtain="")
    monkeypatch.setitem(DATASETS._added, "toy", toy)
    return toy


def command(to: Path, *more: object) -> tuple[object, ...]:
    return "data", "download", "toy", "--to", to, "--accept-licence", "toy", *more


def beside(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name not in ("source", "cache"))


def test_download_then_verify(info: DatasetInfo, shop: Shop, tmp_path: Path) -> None:
    outcome = bench(*command(tmp_path / "data"))
    assert outcome.code == 0 and f"bench data verify toy --data-root {tmp_path / 'data'}" in outcome.out, outcome.err
    assert (tmp_path / "data" / "tubes" / "train" / "good" / "000.png").is_file()
    about = json.loads((tmp_path / "data" / "provenance.json").read_text())
    assert about["archives"] == {"toy.zip": info.archives[0].sha256} and about["licence"] == info.licence
    assert beside(tmp_path) == ["data"] and not list((tmp_path / "data").glob(".*"))
    asked = len(shop.asked)
    again = bench(*command(tmp_path / "data"))
    assert again.code == 0 and "already there" in again.out and len(shop.asked) == asked
    assert bench("data", "verify", "toy", "--data-root", tmp_path / "data").code == 1  # other counts than published


@pytest.mark.parametrize("accepted", [[], ["--accept-licence", "mpdd"], ["--accept-licence", "yes"]])
def test_the_licence_must_be_accepted_by_name(info: DatasetInfo, shop: Shop, tmp_path: Path, accepted: list[str]) -> None:
    outcome = bench("data", "download", "toy", "--to", tmp_path / "data", *accepted)
    assert outcome.code == 2 and info.licence in outcome.err and "--accept-licence toy" in outcome.err
    assert not shop.asked and beside(tmp_path) == []


@pytest.mark.parametrize("name", ["mvtec_ad", "real_iad", "aitex", "brainmri", "headct", "mpdd", "mvtec_ad_2"])
def test_sets_behind_a_form_say_where_to_go(name: str, tmp_path: Path) -> None:
    outcome = bench("data", "download", name, "--to", tmp_path / "data", "--accept-licence", name)
    assert outcome.code == 3 and DATASETS.get(name).obtain in outcome.err and beside(tmp_path) == []


def test_addresses_and_checksums_are_well_formed() -> None:
    for name in DATASETS.names():
        for archive in DATASETS.get(name).archives:
            assert archive.url.startswith("https://") and "/" not in archive.file
            assert archive.sha256 == "" or (len(archive.sha256) == 64 and set(archive.sha256) <= set("0123456789abcdef"))


def test_a_broken_transfer_goes_on_where_it_stopped(info: DatasetInfo, shop: Shop, tmp_path: Path) -> None:
    shop.cut = [1000, 500]
    assert downloads.download(info, tmp_path / "data", "toy").new
    assert [asked for _, asked in shop.asked] == [None, "bytes=1000-", "bytes=1500-"]


def test_an_interrupted_command_goes_on_where_it_stopped(
    info: DatasetInfo, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "TRIES", 1)
    shop.cut = [2000]
    outcome = bench(*command(tmp_path / "data"))
    assert outcome.code == 3 and "run the same command again" in outcome.err
    assert not (tmp_path / "data").exists()
    assert bench(*command(tmp_path / "data")).code == 0
    assert [asked for _, asked in shop.asked] == [None, "bytes=2000-"] and beside(tmp_path) == ["data"]


def test_another_file_on_the_server_is_not_glued_to_the_old_part(info: DatasetInfo, shop: Shop, tmp_path: Path) -> None:
    shop.cut, shop.etag = [2000], '"old"'
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError):
        patch.setattr(downloads, "TRIES", 1)
        downloads.download(info, tmp_path / "data", "toy")
    shop.etag = '"new"'
    assert downloads.download(info, tmp_path / "data", "toy").sha256["toy.zip"] == info.archives[0].sha256


@pytest.mark.parametrize("change", [{"ranges": False}, {"etag": ""}, {"etag": 'W/"weak"'}, {"length": False}])
def test_servers_that_cannot_continue(info: DatasetInfo, shop: Shop, tmp_path: Path, change: dict[str, object]) -> None:
    for key, value in change.items():
        setattr(shop, key, value)
    shop.cut = [] if "length" in change else [1500, 700]
    assert downloads.download(info, tmp_path / "data", "toy").new


@pytest.mark.parametrize(("codes", "comes"), [([503, 429, 500], True), ([503] * 9, False), ([404], False), ([403], False)])
def test_busy_and_missing(info: DatasetInfo, shop: Shop, tmp_path: Path, codes: list[int], comes: bool) -> None:
    shop.status = list(codes)
    if comes:
        assert downloads.download(info, tmp_path / "data", "toy").new
    else:
        with pytest.raises(DataError, match=str(codes[0])):
            downloads.download(info, tmp_path / "data", "toy")
        assert not (tmp_path / "data").exists() and len(shop.asked) == (5 if codes[0] == 503 else 1)


def test_a_part_longer_than_the_file_begins_anew(info: DatasetInfo, shop: Shop, tmp_path: Path) -> None:
    shop.cut = [2000]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError):
        patch.setattr(downloads, "TRIES", 1)
        downloads.download(info, tmp_path / "data", "toy")
    (part,) = (tmp_path / ".data.draft").rglob("*.part")
    part.write_bytes(bytes(10**6))
    assert downloads.download(info, tmp_path / "data", "toy").new


def test_a_wrong_file_is_refused_and_removed(info: DatasetInfo, shop: Shop, tmp_path: Path) -> None:
    shop.files["/toy.zip"] = packed({"tubes/train/good/evil.png": b"x"})
    outcome = bench(*command(tmp_path / "data"))
    assert outcome.code == 3 and "is not the published file" in outcome.err and info.archives[0].sha256 in outcome.err
    assert beside(tmp_path) == []


def test_without_a_published_checksum_the_first_one_is_remembered(info: DatasetInfo, shop: Shop, tmp_path: Path) -> None:
    loose = replace(info, archives=(replace(info.archives[0], sha256=""),))
    DATASETS._added["toy"] = loose
    outcome = bench(*command(tmp_path / "one"))
    assert outcome.code == 0 and "no checksum is published" in outcome.err and info.archives[0].sha256 in outcome.err
    assert json.loads((tmp_path / "one" / "provenance.json").read_text())["checksum_first_seen_here"] == ["toy.zip"]
    second = bench(*command(tmp_path / "two"))
    assert second.code == 0 and "no checksum" not in second.err
    shop.files["/toy.zip"] = packed({"tubes/train/good/evil.png": b"x"})
    with pytest.raises(DataError, match="not the same file"):
        downloads.download(loose, tmp_path / "three", "toy")
    assert beside(tmp_path) == ["one", "two"]


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x.zip", "file:///etc/passwd"])
def test_redirects_elsewhere_are_not_followed(info: DatasetInfo, shop: Shop, tmp_path: Path, target: str) -> None:
    shop.redirect = target
    with pytest.raises(DataError, match=r"not followed|not allowed"):
        downloads.download(info, tmp_path / "data", "toy")
    with pytest.raises(DataError, match="no address of the web"):
        downloads.fetch(target, tmp_path / "x")


def test_no_way_down_from_https() -> None:
    import urllib.request

    request = urllib.request.Request("https://example.org/a.zip")
    with pytest.raises(DataError, match="not followed"):
        downloads._Redirects().redirect_request(request, None, 302, "Found", {}, "http://example.org/a.zip")


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png"])
def test_a_hostile_archive_leaves_nothing(info: DatasetInfo, shop: Shop, tmp_path: Path, name: str) -> None:
    data = packed({"tubes/train/good/000.png": b"x", name: b"x"})
    shop.files["/toy.zip"] = data
    hostile = replace(info, archives=(replace(info.archives[0], sha256=hashlib.sha256(data).hexdigest()),))
    DATASETS._added["toy"] = hostile
    outcome = bench(*command(tmp_path / "data"))
    assert outcome.code == 3 and "refused" in outcome.err and "Traceback" not in outcome.err
    assert beside(tmp_path) == [] and not list(tmp_path.rglob("evil.png"))


def test_files_that_are_no_archives_are_kept_as_they_are(info: DatasetInfo, shop: Shop, tmp_path: Path) -> None:
    shop.files |= {"/a.gz": b"aaaa", "/b.gz": b"bb"}
    sums = {name: hashlib.sha256(shop.files[f"/{name}"]).hexdigest() for name in ("a.gz", "b.gz")}
    both = replace(info, archives=tuple(Archive(url=f"{shop.address}/{n}", file=n, sha256=s) for n, s in sums.items()))
    done = downloads.download(both, tmp_path / "data", "toy")
    assert done.files == 2 and (tmp_path / "data" / "b.gz").read_bytes() == b"bb"


def test_a_full_disk_keeps_what_came(info: DatasetInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(new_folder.PausedError, match="no room"):
        downloads.download(info, tmp_path / "data", "toy")
    assert not (tmp_path / "data").exists()
    # The archive fits, its content does not.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    real = downloads.unpack

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device", "x.png")

    monkeypatch.setattr(downloads, "unpack", full)
    outcome = bench(*command(tmp_path / "data"))
    assert outcome.code == 3 and "is full" in outcome.err and not (tmp_path / "data").exists()
    monkeypatch.setattr(downloads, "unpack", real)
    assert list((tmp_path / ".data.draft").rglob("toy.zip")), "what was fetched is kept"
    assert bench(*command(tmp_path / "data")).code == 0 and beside(tmp_path) == ["data"]


def test_a_folder_with_something_in_it_is_left_alone(info: DatasetInfo, shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("x")
    for more in ([], ["--force"]):
        assert bench(*command(tmp_path / "data", *more)).code == 2
    assert not shop.asked and (tmp_path / "data" / "mine.txt").read_text() == "x"
    with pytest.raises(UsageError):
        downloads.download(info, tmp_path / "data", "toy")


def test_what_a_download_needs_next_is_said(info: DatasetInfo, shop: Shop, tmp_path: Path) -> None:
    import raw_trees

    raw = raw_trees.sdd(tmp_path / "source" / "sdd")
    data = packed({p.relative_to(raw).as_posix(): p.read_bytes() for p in sorted(raw.rglob("*.*"))})
    shop.files["/sdd.zip"] = data
    archive = Archive(url=f"{shop.address}/sdd.zip", file="sdd.zip", sha256=hashlib.sha256(data).hexdigest())
    DATASETS._added["toy"] = replace(DATASETS.get("sdd"), name="toy", archives=(archive,))
    outcome = bench(*command(tmp_path / "data"))
    assert outcome.code == 0 and f"bench data prepare sdd --from {tmp_path / 'data'}" in outcome.out


def test_a_set_that_is_drawn_has_nothing_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no address"):
        downloads.download(DATASETS.get("synthetic"), tmp_path / "x", "synthetic")
    assert issubclass(new_folder.PausedError, BenchError)
