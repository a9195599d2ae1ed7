"""`bench data prepare`: what the pieces are, odd pictures, interruptions, hostile batches, and folders that must not be touched."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import raw_trees
import trees
from commands import bench
from PIL import Image

from inpbench.datasets import aitex, cifar_batches, idx_files, sdd
from inpbench.harness import conversion, new_folder
from inpbench.harness.api import Piece
from inpbench.harness.conversion import Pictures, prepare
from inpbench.harness.errors import BenchError, DataError, UsageError
from inpbench.harness.registry import DATASETS


def convert(name: str, raw: Path, to: Path, **options: bool) -> conversion.Prepared:
    info = DATASETS.get(name)
    return prepare(info, info.params(), raw, to, **options)


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


# --- what is made -----------------------------------------------------------------------------------------------------


def test_sdd_thirds(tmp_path: Path) -> None:
    raw = raw_trees.sdd(tmp_path / "raw")
    new = convert("sdd", raw, tmp_path / "new").target
    names = {p.stem: p.relative_to(new).as_posix() for p in new.rglob("*_?.png")}
    assert len(names) == 4 * 2 * 3
    assert sdd.thirds(31) == [(0, 10), (10, 20), (20, 31)]
    for item in range(1, 5):
        for part in range(2):
            whole = pixels(raw / f"kos{item:02d}" / f"Part{part}.jpg")
            for i, (top, bottom) in enumerate(sdd.thirds(31)):
                name = f"kos{item:02d}_Part{part}_{i}"
                assert (pixels(new / names[name]) == whole[top:bottom]).all()
                assert names[name].startswith("test/defect/") == (part == 1 and i == 2)
    mask = pixels(new / "ground_truth/defect/kos01_Part1_2_mask.png")
    assert mask.shape == (11, 12) and set(np.unique(mask)) == {0, 255} and mask[2:5, 3:6].all() and mask.sum() == 9 * 255
    from sklearn.model_selection import train_test_split

    normal = sorted(name for name in names if not name.endswith("Part1_2"))
    _, test = train_test_split(normal, test_size=0.25, random_state=42)
    assert {p.stem for p in (new / "test/good").iterdir()} == set(test)


@pytest.mark.parametrize("doubled", [False, True])
def test_aitex_tiles(tmp_path: Path, doubled: bool) -> None:
    raw = raw_trees.aitex(tmp_path / "raw", ("fabric_a", "fabric_b"), doubled=doubled)
    done = convert("aitex", raw, tmp_path / "new")
    new = done.target
    counts = Counter(p.parent.relative_to(new).as_posix() for p in new.rglob("*.png"))
    assert counts["train/good"] == 24 and counts["test/good"] == 8
    assert {p.stem for p in new.glob("test/*/*_?.png") if p.parent.name != "good"} | {
        p.stem for p in new.glob("test/*/*_??.png") if p.parent.name != "good"
    } == {"0001_002_00_1", "0044_019_04_0", "0044_019_04_11", "0094_027_05_2"}
    assert {p.name for p in new.glob("test/*")} == {"good", "Broken_end", "Fuzzyball", "Knots"}
    assert pixels(new / "test/Knots/0094_027_05_2.png").shape == (6, 208)  # the narrow last tile
    mask = pixels(new / "ground_truth/Fuzzyball/0044_019_04_11_mask.png")
    assert mask.shape == (6, 256) and mask[2:4, 3000 - 2816 : 3005 - 2816].all() and mask.sum() == 10 * 255
    assert [(f.file.rpartition("/")[2], f.status) for f in done.findings] == [
        ("0100_025_08.png", "ignored"), ("0106_010_03.png", "ignored"),
    ]  # fmt: skip
    assert json.loads((new / "provenance.json").read_text())["left_out"]


def test_aitex_says_what_it_cannot_name(tmp_path: Path) -> None:
    raw = raw_trees.aitex(tmp_path / "raw")
    strip = raw / "Defect_images" / "0001_002_00.png"
    trees.save(trees.picture(1, (512, 6)), raw / "Defect_images" / "0018_00_01.png")
    assert "0018_00_01" in str(convert("aitex", raw, tmp_path / "new").findings)
    strip.rename(strip.with_name("0001_999_00.png"))
    with pytest.raises(DataError, match="expected NNNN_CODE_FF"):
        convert("aitex", raw, tmp_path / "other")
    assert aitex.DEFECTS["030"] == "Nep"


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_idx(tmp_path: Path, packed: bool) -> None:
    raw = raw_trees.mnist_idx(tmp_path / "raw", packed=packed)
    new = convert("mnist", raw, tmp_path / "new").target
    expected = np.random.RandomState(1).randint(0, 256, (30, 28, 28)).astype(np.uint8)
    for i in range(30):
        assert (pixels(new / "testing" / str(i % 10) / f"{i:05d}.png") == expected[i]).all()
    assert Counter(p.parent.name for p in (new / "training").rglob("*.png")) == {str(d): 3 for d in range(10)}


@pytest.mark.parametrize("binary", [True, False])
def test_cifar_batches(tmp_path: Path, binary: bool) -> None:
    raw = raw_trees.cifar(tmp_path / "raw", binary=binary)
    new = convert("cifar10", raw, tmp_path / "new").target
    third = np.random.RandomState(2).randint(0, 256, (10, 3072)).astype(np.uint8)
    assert (pixels(new / "train/deer/00024.png") == third[4].reshape(3, 32, 32).transpose(1, 2, 0)).all()
    assert len(list(new.rglob("*.png"))) == 60


def test_odd_modes_are_decoded_by_the_rules_of_the_bench(tmp_path: Path) -> None:
    wide = trees.sixteen_bit(size=(12, 31))
    trees.save(wide, tmp_path / "wide.png")
    assert (Pictures(tmp_path).image("wide.png")[..., 0] == (np.asarray(wide) >> 8)).all()
    trees.save(trees.picture(1).convert("CMYK"), tmp_path / "cmyk.jpg")
    assert Pictures(tmp_path).image("cmyk.jpg").shape == (20, 24, 3)
    trees.save(trees.spot(value=3), tmp_path / "index.png")  # class numbers, not grey
    assert Pictures(tmp_path).mask("index.png").any()
    assert Pictures(tmp_path).mask("index.png", "wide.png").shape == (31, 12)
    raw = raw_trees.sdd(tmp_path / "raw")
    (raw / "kos01" / "Part0.jpg").unlink()
    trees.save(wide, raw / "kos01" / "Part0.png")
    new = convert("sdd", raw, tmp_path / "new").target
    piece = next(new.rglob("kos01_Part0_1.png"))
    assert Image.open(piece).mode == "L" and (pixels(piece) == (np.asarray(wide) >> 8)[10:20]).all()


def test_what_people_compare_does_not_depend_on_the_machine(tmp_path: Path) -> None:
    raw = raw_trees.sdd(tmp_path / "raw")
    first = convert("sdd", raw, tmp_path / "a").target
    os.utime(raw / "kos01" / "Part0.jpg", (1, 1))
    second = convert("sdd", raw, tmp_path / "b").target
    told = [json.loads((root / "provenance.json").read_text()) for root in (first, second)]
    assert told[0]["content_sha256"] == told[1]["content_sha256"] and told[0]["key"] != told[1]["key"]
    assert str(tmp_path) not in (first / "provenance.json").read_text()


# --- twice, interrupted, refused --------------------------------------------------------------------------------------


def test_a_second_time_does_nothing(tmp_path: Path) -> None:
    raw = raw_trees.brainmri(tmp_path / "raw")
    assert convert("brainmri", raw, tmp_path / "new").new == 13
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "new").rglob("*")}
    done = convert("brainmri", raw, tmp_path / "new")
    assert (done.new, done.files) == (0, 13) and {p: p.stat().st_mtime_ns for p in (tmp_path / "new").rglob("*")} == before
    next((tmp_path / "new").rglob("Y0.png")).unlink()
    with pytest.raises(UsageError, match="not empty"):
        convert("brainmri", raw, tmp_path / "new")
    assert convert("brainmri", raw, tmp_path / "new", force=True).new == 13


def test_an_interruption_leaves_nothing_and_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_trees.sdd(tmp_path / "raw")
    whole = tree(convert("sdd", raw, tmp_path / "whole").target)
    store, stored = conversion._store, []

    def until_ten(array: np.ndarray, file: Path) -> None:
        if len(stored) == 10:
            file.write_bytes(b"half a fi")
            raise KeyboardInterrupt
        stored.append(file)
        store(array, file)

    monkeypatch.setattr(conversion, "_store", until_ten)
    with pytest.raises(KeyboardInterrupt):
        convert("sdd", raw, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(conversion, "_store", store)
    done = convert("sdd", raw, tmp_path / "new")
    assert done.new == done.files - 10 and tree(done.target) == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "raw", "whole"]


def test_a_draft_of_other_files_is_thrown_away(tmp_path: Path) -> None:
    raw = raw_trees.sdd(tmp_path / "raw")
    draft = tmp_path / ".new.draft"
    (draft / "train" / "good").mkdir(parents=True)
    (draft / ".task").write_text("another task")
    (draft / "train" / "good" / "left.png").write_bytes(b"x")
    new = convert("sdd", raw, tmp_path / "new").target
    assert not (new / "train" / "good" / "left.png").exists() and not (new / ".task").exists()


def test_a_full_disk_is_said_and_leaves_nothing_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_trees.sdd(tmp_path / "raw")
    store = conversion._store

    def full(array: np.ndarray, file: Path) -> None:
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(conversion, "_store", full)
    outcome = bench("data", "prepare", "sdd", "--from", raw, "--to", tmp_path / "new")
    assert outcome.code == 3 and "full" in outcome.err and "run the same command again" in outcome.err
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(conversion, "_store", store)
    assert bench("data", "prepare", "sdd", "--from", raw, "--to", tmp_path / "new").code == 0


@pytest.mark.parametrize("force", [False, True])
def test_what_others_put_there_is_never_replaced(tmp_path: Path, force: bool) -> None:
    raw = raw_trees.brainmri(tmp_path / "raw")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        convert("brainmri", raw, tmp_path / "mine", force=force)
    assert tree(tmp_path / "mine") == {"thesis.txt": b"years of work"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        convert("brainmri", raw, tmp_path / "file", force=force)


def test_force_replaces_what_the_bench_wrote(tmp_path: Path) -> None:
    raw = raw_trees.brainmri(tmp_path / "raw")
    convert("brainmri", raw, tmp_path / "new")
    trees.save(trees.picture(9), raw / "no" / "another.png")
    with pytest.raises(UsageError, match="--force"):
        convert("brainmri", raw, tmp_path / "new")
    assert convert("brainmri", raw, tmp_path / "new", force=True).files == 14
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "raw"]


def test_a_failed_replacement_keeps_the_old(tmp_path: Path) -> None:
    raw = raw_trees.brainmri(tmp_path / "raw")
    old = tree(convert("brainmri", raw, tmp_path / "new").target)
    (raw / "no" / "broken.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match="leads nowhere"):
        convert("brainmri", raw, tmp_path / "new", force=True)
    assert tree(tmp_path / "new") == old and sorted(p.name for p in tmp_path.iterdir()) == ["new", "raw"]


@pytest.mark.parametrize("place", [".", "inside", ".."])
def test_the_new_folder_lies_beside_the_raw_one(tmp_path: Path, place: str) -> None:
    raw = raw_trees.brainmri(tmp_path / "data" / "raw")
    with pytest.raises(UsageError, match="in one another"):
        convert("brainmri", raw, raw / place, force=True)
    assert len(tree(raw)) == 13


def test_a_link_as_target_and_a_loop_of_links(tmp_path: Path) -> None:
    raw = raw_trees.brainmri(tmp_path / "raw")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert convert("brainmri", raw, tmp_path / "link").target == tmp_path / "elsewhere"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(BenchError, match="loop"):
        convert("brainmri", raw, tmp_path / "loop")
    with pytest.raises(BenchError, match="loop"):
        convert("brainmri", tmp_path / "loop", tmp_path / "x")
    (raw / "no" / "again").symlink_to(raw)
    assert convert("brainmri", raw, tmp_path / "y").files == 13


def test_a_broken_raw_image_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    raw = raw_trees.sdd(tmp_path / "raw")
    trees.truncated(trees.picture(3, (200, 200)), raw / "kos02" / "Part0.jpg", "JPEG")
    outcome = bench("data", "prepare", "sdd", "--from", raw, "--to", tmp_path / "new")
    assert outcome.code == 3 and "kos02/Part0.jpg" in outcome.err and "Traceback" not in outcome.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]
    (raw / "kos02" / "Part0_label.bmp").unlink()
    with pytest.raises(DataError, match=r"kos02/Part0_label\.bmp"):
        convert("sdd", raw, tmp_path / "new")


def test_sets_that_need_no_preparation_say_so(tmp_path: Path) -> None:
    outcome = bench("data", "prepare", "mvtec_ad", "--from", tmp_path, "--to", tmp_path / "x")
    assert outcome.code == 2 and "nothing to prepare" in outcome.err
    (tmp_path / "archive.zip").write_bytes(b"x")
    with pytest.raises(DataError, match="unpack it"):
        convert("sdd", tmp_path / "archive.zip", tmp_path / "x")


def test_two_pieces_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(*_: object) -> Iterator[Piece]:
        for name in ("a.png", "A.png"):
            yield Piece(f"train/good/{name}", np.zeros((2, 2), np.uint8))

    monkeypatch.setattr(sdd, "prepare", twice)
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match="two files"):
        convert("sdd", tmp_path / "raw", tmp_path / "new")


def test_two_at_once(tmp_path: Path) -> None:
    raw = raw_trees.brainmri(tmp_path / "raw")
    target = new_folder.real_target(tmp_path / "new", False)
    with new_folder.new_folder(target, "somebody else"), pytest.raises(BenchError, match="Another bench"):
        convert("brainmri", raw, tmp_path / "new")


# --- hostile batches --------------------------------------------------------------------------------------------------


class Attack:
    """Pickled as a call of os.system."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    raw, mark = raw_trees.cifar(tmp_path / "raw"), tmp_path / "pwned"
    for batch in ({b"data": Attack(mark), b"labels": [0]}, Attack(mark), {b"data": eval, b"labels": [0]}):
        (raw / "data_batch_2").write_bytes(pickle.dumps(batch, protocol=2))
        with pytest.raises(DataError, match="data_batch_2 is no batch of CIFAR-10"):
            convert("cifar10", raw, tmp_path / "new")
        assert not mark.exists() and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "batch",
    [
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": ["0"]},
        {b"data": np.zeros((1, 3071), np.uint8), b"labels": [0]},
        {b"data": np.zeros((1, 3072), np.int16), b"labels": [0]},
        {b"data": np.asfortranarray(np.zeros((2, 3072), np.uint8)), b"labels": [0, 1]},
        {b"data": np.array([[None] * 3072]), b"labels": [0]},
        {b"data": [1, 2], b"labels": [0]},
        {b"labels": []},
        [1, 2, 3],
        None,
    ],
    ids=str,
)
def test_other_pickles_are_no_batches(tmp_path: Path, batch: object) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match="no batch of CIFAR-10"):
        cifar_batches.read_batch(tmp_path / "data_batch_1")


@pytest.mark.parametrize("data", [b"", b"x", b"\x80\x02.", b"(" * 1000, b"c__builtin__\neval\n."])
def test_bytes_that_are_no_pickles(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "test_batch").write_bytes(data)
    with pytest.raises(DataError, match="no batch"):
        cifar_batches.read_batch(tmp_path / "test_batch")
    (tmp_path / "test_batch.bin").write_bytes(data)
    with pytest.raises(DataError, match="no batch"):
        cifar_batches.read_batch(tmp_path / "test_batch.bin")


def test_python_3_pickles_of_every_protocol_are_read(tmp_path: Path) -> None:
    data = np.random.RandomState(0).randint(0, 256, (3, 3072)).astype(np.uint8)
    for protocol in range(2, 5):
        (tmp_path / "b").write_bytes(pickle.dumps({b"data": data, b"labels": [1, 2, 3]}, protocol=protocol))
        pictures, labels = cifar_batches.read_batch(tmp_path / "b")
        assert labels == [1, 2, 3] and (pictures == data.reshape(3, 3, 32, 32).transpose(0, 2, 3, 1)).all()


def test_a_pickle_cannot_change_our_stand_ins(tmp_path: Path) -> None:
    """BUILD on a name sets attributes; on our stand-ins it must fail or do nothing."""
    for name in ("numpy\nndarray", "numpy\ndtype", "_codecs\nencode"):
        (tmp_path / "b").write_bytes(f"c{name}\n(N}}Vstate\nI1\nstb.".encode())
        before = dict(vars(cifar_batches._Array)), dict(vars(cifar_batches._Dtype)), dict(vars(cifar_batches._Encoded))
        with pytest.raises(DataError):
            cifar_batches.read_batch(tmp_path / "b")
        assert before == (dict(vars(cifar_batches._Array)), dict(vars(cifar_batches._Dtype)), dict(vars(cifar_batches._Encoded)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08\x03",
        b"\0\0\x08\x03" + b"\0\0\0\x01" * 3,  # one pixel promised, none there
        b"\0\0\x08\x03" + b"\xff" * 12,  # 2^96 pixels promised
        b"\0\0\x0d\x03" + b"\0\0\0\x01" * 3 + b"abcd",  # floats
        b"\0\0\x08\x01\0\0\0\x01a",  # one dimension
        b"\0\0\x08\x03" + b"\0\0\0\x01" * 3 + b"ab",  # a byte too many
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_broken_idx_files(tmp_path: Path, data: bytes, packed: bool) -> None:
    import gzip

    file = tmp_path / ("a.gz" if packed else "a")
    file.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(DataError):
        idx_files.read_idx(file, 3)
    (tmp_path / "b.gz").write_bytes(data)
    with pytest.raises(DataError):
        idx_files.read_idx(tmp_path / "b.gz", 3)
