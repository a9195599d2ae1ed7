"""The sets of the generalist benchmark and three more of industry: layouts, splits, protocols, and what must be said."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import raw_trees
import trees
from commands import bench
from golden import COMMITTED as GOLDEN

from inpbench.datasets import btad, cifar10, mnist, mpdd, mvtec_ad_2, splits
from inpbench.datasets.splits import split_normals
from inpbench.harness.api import Counts, DatasetInfo, Finding, Sample
from inpbench.harness.audit import audit
from inpbench.harness.conversion import prepare
from inpbench.harness.errors import DataError
from inpbench.harness.registry import DATASETS, resolve
from inpbench.harness.samples import unpack

NEW = ("sdd", "aitex", "brainmri", "headct", "mnist", "cifar10", "mpdd", "btad", "mvtec_ad_2")


def scan(info: DatasetInfo, root: Path, **params: object) -> tuple[list[Sample], list[Finding]]:
    found: list[Finding] = []
    samples = resolve(info.scan)(root, info.params(**params), found.append)
    return samples, found


def clean(name: str, root: Path, **params: object) -> list[Sample]:
    samples, found = scan(DATASETS.get(name), root, **params)
    assert found == []
    assert all((root / sample.image).is_file() for sample in samples)
    return samples


def tally(samples: list[Sample]) -> dict[tuple[str, str], int]:
    return dict(Counter((sample.split, sample.defect) for sample in samples))


class Published(dict[str, Path]):
    """A small published copy of each set, made when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        make = {"mnist": raw_trees.mnist_idx, "cifar10": raw_trees.cifar}.get(name) or getattr(raw_trees, name)
        self[name] = make(self.folder / name)
        return self[name]


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path)


@pytest.mark.parametrize("name", NEW)
def test_registered_with_their_facts(name: str) -> None:
    info = DATASETS.get(name)
    assert info.name == name and info.licence and info.homepage and info.expected_tree
    assert set(info.counts) == set(info.categories) and info.textures <= set(info.categories)
    assert bool(info.archives) != bool(info.obtain), "an address, or how a person gets it"


def test_published_totals() -> None:
    def total(name: str) -> list[int]:
        return [sum(column) for column in zip(*DATASETS.get(name).counts.values(), strict=True)]

    assert total("mpdd") == [888, 176, 282] and total("btad") == [1799, 451, 290] and total("mvtec_ad_2") == [2528, 379, 705]
    assert total("mnist") == [60000, 10000, 90000] and total("cifar10") == [50000, 10000, 90000]
    assert mnist.MnistParams(protocol="multi_class").published == {"even_digit": Counts(29492, 4926, 5074)}
    assert cifar10.CifarParams(protocol="multi_class").published == {"animal": Counts(30000, 6000, 4000)}


def test_sizes_of_the_published_splits_follow_from_the_rule() -> None:
    for name, normal in (("sdd", 1143), ("aitex", 141 * 16), ("brainmri", 98), ("headct", 100), ("elpv", 1508)):
        train, test = split_normals([str(i) for i in range(normal)])
        (counts,) = DATASETS.get(name).counts.values()
        assert (len(train), len(test)) == counts[:2], name


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 12, 21, 98, 1143])
def test_split_is_that_of_scikit_learn(number: int) -> None:
    names = [f"{i}" for i in range(number)]
    if number > 1:
        from sklearn.model_selection import train_test_split

        assert split_normals(names) == tuple(train_test_split(names, test_size=0.25, random_state=42))
    assert splits.tested(names) == set(split_normals(names)[1])


def test_split_is_that_of_the_golden_cases() -> None:
    cases = json.loads((GOLDEN / "inctrl_winclip" / "misc.json").read_text())["train_test_split"]
    assert cases
    for case in cases:
        train, test = split_normals([str(i) for i in range(case["n"])])
        assert ([int(i) for i in train], [int(i) for i in test]) == (case["train"], case["test"])


# --- through the command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEW)
def test_show_and_list(name: str) -> None:
    shown = bench("data", "show", name)
    assert shown.code == 0 and DATASETS.get(name).homepage in shown.out and "expected tree" in shown.out
    listed = {row["name"]: row for row in bench("list", "datasets", "--json").json()}
    assert listed[name]["train"] and listed[name]["licence"]


@pytest.mark.parametrize("name", NEW)
def test_verify_reads_each_and_compares_counts(name: str, published: Published, tmp_path: Path) -> None:
    root = published[name]
    if name in ("sdd", "aitex", "mnist", "cifar10"):
        refused = bench("data", "verify", name, "--data-root", root)
        assert refused.code == 3 and f"bench data prepare {name} --from {root}" in refused.err
        assert bench("data", "prepare", name, "--from", root, "--to", tmp_path / "new").code == 0
        root = tmp_path / "new"
    outcome = bench("data", "verify", name, "--data-root", root, "--json")
    report = outcome.json()
    assert outcome.code == 1 and {f["status"] for f in report["files"]} <= {"count", "missing_category", "empty_mask"}
    assert {f["status"] for f in report["files"]} >= {"count"}


@pytest.mark.parametrize("name", NEW)
def test_another_folder_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    outcome = bench("data", "verify", name, "--data-root", tmp_path)
    assert outcome.code == 3 and "photos" in outcome.err and f"bench data show {name}" in outcome.err
    assert "Traceback" not in outcome.err


# --- one by one -------------------------------------------------------------------------------------------------------


def test_brainmri_and_headct_as_published(published: Published) -> None:
    brain = clean("brainmri", published["brainmri"])
    assert tally(brain) == {("train", "good"): 6, ("test", "good"): 3, ("test", "defect"): 4}
    names = sorted(f"no/{path.name}" for path in (published["brainmri"] / "no").iterdir())
    assert {s.image for s in brain if s.label == 0 and s.split == "test"} == set(split_normals(names)[1])
    head = clean("headct", published["headct"])
    assert tally(head) == {("train", "good"): 3, ("test", "good"): 2, ("test", "defect"): 5}
    assert {Path(s.image).stem for s in head if s.label} == {"001", "003", "005", "007", "009"}


def test_headct_bad_rows_are_reported(published: Published) -> None:
    (published["headct"] / "labels.csv").write_text("id,label\r\n0,0\r\n0,1\r\n1,2\r\nx,0\r\n2\r\n99,1\r\n\r\n3,1\r\n")
    samples, found = scan(DATASETS.get("headct"), published["headct"])
    assert [f.status for f in found] == ["bad_entry", "bad_entry", "bad_entry", "bad_entry", "missing_image"]
    assert len(samples) == 2


def test_a_tree_of_inctrl_is_read(tmp_path: Path) -> None:
    """ROOT/<name>/{train/good, test/good, test/<defect>} without masks, as InCTRL's scripts write image-level sets."""
    for name, folder in (("elpv", "elpv"), ("brainmri", "brainmri"), ("headct", "headct")):
        for i, place in enumerate(("train/good", "test/good", "test/defect")):
            trees.save(trees.picture(i), tmp_path / folder / place / "a.png")
        assert tally(clean(name, tmp_path)) == {("train", "good"): 1, ("test", "good"): 1, ("test", "defect"): 1}


def test_classes_against_all_others(tmp_path: Path) -> None:
    raw_trees.class_folders(tmp_path / "CIFAR-10")
    samples = clean("cifar10", tmp_path)
    assert list(dict.fromkeys(s.category for s in samples)) == list(cifar10.CLASSES)
    cats = [s for s in samples if s.category == "cat"]
    assert {Path(s.image).parent.name for s in cats if s.split == "train"} == {"cat"}
    assert tally(cats) == {("train", "good"): 2, ("test", "good"): 2} | {
        ("test", c): 2 for c in cifar10.CLASSES if c != "cat"
    }  # fmt: skip
    assert all(s.label == (s.defect != "good") and s.mask is None for s in samples)


@pytest.mark.parametrize(("train", "test"), [("training", "testing"), ("train", "test")])
def test_some_classes_together(tmp_path: Path, train: str, test: str) -> None:
    raw_trees.class_folders(tmp_path, mnist.DIGITS, (train, test))
    samples = clean("mnist", tmp_path, protocol="multi_class")
    assert {s.category for s in samples} == {"even_digit"}
    assert {Path(s.image).parent.name for s in samples if s.split == "train"} == set("02468")
    assert {s.defect for s in samples if s.label} == set("13579") and len(samples) == 10 + 20


def test_the_same_test_image_in_ten_categories_is_no_duplicate(tmp_path: Path) -> None:
    raw_trees.class_folders(tmp_path)
    report = audit(DATASETS.get("cifar10"), cifar10.CifarParams(), tmp_path)
    assert {f.status for f in report.findings} == {"count"}
    together = audit(DATASETS.get("cifar10"), cifar10.CifarParams(protocol="multi_class"), tmp_path)
    assert [(f.file, f.status) for f in together.findings] == [("animal", "count")]


def test_a_missing_class_is_an_error(tmp_path: Path) -> None:
    raw_trees.class_folders(tmp_path, cifar10.CLASSES[:9])
    _, found = scan(DATASETS.get("cifar10"), tmp_path)
    assert [(f.file, f.status) for f in found] == [("train/truck", "missing_category"), ("test/truck", "missing_category")]


def test_category_names_are_the_words_of_the_prompts() -> None:
    """InCTRL's text prior takes these very words; it has its own short prompts for CIFAR-10's."""
    short = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
    assert set(DATASETS.get("cifar10").categories) == short and set(cifar10.ABOUT.counts("multi_class")) == {"animal"}
    assert DATASETS.get("mnist").categories == tuple("0123456789")
    assert [DATASETS.get(n).categories for n in ("elpv", "sdd", "aitex", "brainmri", "headct")] == [
        ("elpv",), ("sdd",), ("aitex",), ("brainmri",), ("headct",),
    ]  # fmt: skip


def test_btad_pairs_masks_of_either_extension(published: Published) -> None:
    for root in (published["btad"], published["btad"].parent):
        if root != published["btad"]:
            (published["btad"]).rename(root / btad.TOP)
        samples = clean("btad", root)
        assert list(dict.fromkeys(s.category for s in samples)) == ["01", "02", "03"]
        ends = {s.category: (Path(s.image).suffix, Path(s.mask).suffix) for s in samples if s.mask}
        assert ends == {"01": (".bmp", ".png"), "02": (".png", ".png"), "03": (".bmp", ".bmp")}
        assert tally(samples) == {("train", "good"): 9, ("test", "good"): 3, ("test", "ko"): 9}


def test_mpdd_from_the_root_or_its_parent(tmp_path: Path) -> None:
    raw_trees.mpdd(tmp_path / "MPDD")
    assert [s.category for s in clean("mpdd", tmp_path)] == [s.category for s in clean("mpdd", tmp_path / "MPDD")]
    assert list(dict.fromkeys(s.category for s in clean("mpdd", tmp_path))) == ["bracket_black", "tubes"]
    assert mpdd.MPDD.counts["connector"] == Counts(128, 30, 14)


def test_mvtec_ad_2_measures_the_public_test_set_only(published: Published) -> None:
    root = published["mvtec_ad_2"]
    samples = clean("mvtec_ad_2", root)
    assert list(dict.fromkeys(s.category for s in samples)) == ["can", "vial"]
    can = [s for s in samples if s.category == "can"]
    assert tally(can) == {("train", "good"): 3, ("val", "good"): 1, ("test", "good"): 2, ("test", "bad"): 2}
    bad = [s for s in can if s.label == 1]
    assert [s.view for s in bad] == ["regular", "shift_1"] and len({s.specimen for s in bad}) == 1
    assert all(s.mask == f"can/test_public/ground_truth/bad/{Path(s.image).stem}_mask.png" for s in bad)
    private = [s for s in clean("mvtec_ad_2", root, private=True) if s.label < 0]
    assert Counter(s.defect for s in private if s.category == "can") == {"test_private": 2, "test_private_mixed": 1}
    report = audit(mvtec_ad_2.MVTEC_AD_2, mvtec_ad_2.MvtecAd2Params(private=True), root)
    (count,) = [f for f in report.findings if f.status == "count" and f.file == "can"]
    assert "found 3 / 2 / 2" in count.message and report.unlabelled == {"can": 3, "vial": 3}


def test_mvtec_ad_2_reports_masks(published: Published) -> None:
    truth = published["mvtec_ad_2"] / "can" / "test_public" / "ground_truth" / "bad"
    (truth / "001_regular_mask.png").rename(truth / "009_regular_mask.png")
    _, found = scan(DATASETS.get("mvtec_ad_2"), published["mvtec_ad_2"])
    assert [f.status for f in found] == ["missing_mask", "mask_without_image"]


@pytest.mark.parametrize("set_", [[], ["--set", "mvtec_ad_2.private=true"]])
def test_a_run_counts_no_private_image(set_: list[str], published: Published, tmp_path: Path) -> None:
    outcome = bench(
        *("run", "--methods", "raw_pixel", "--preset", "smoke", "--dataset", "mvtec_ad_2", "--data-root", published["mvtec_ad_2"]),
        *("--categories", "can", "--results", tmp_path / "records", *set_),
    )
    assert outcome.code == 0, outcome.err
    (path,) = (tmp_path / "records").rglob("*.npz")
    assert sorted(unpack(path.read_bytes(), path.name)["can"]["label"]) == [0, 0, 1, 1]


def test_a_prepared_set_is_run(published: Published, tmp_path: Path) -> None:
    raw_trees.sdd(published["sdd"], items=8)
    root = prepare(DATASETS.get("sdd"), DATASETS.get("sdd").params(), published["sdd"], tmp_path / "sdd_new").target
    outcome = bench(
        *("run", "--methods", "raw_pixel", "--preset", "smoke", "--dataset", "sdd", "--data-root", root),
        *("--results", tmp_path / "records"),
    )
    assert outcome.code == 0 and "raw_pixel" in outcome.out, outcome.err


def test_elpv_in_memory_and_as_files_are_the_same_split(tmp_path: Path) -> None:
    raw = trees.elpv(tmp_path / "raw", normal=21)
    info = DATASETS.get("elpv")
    new = prepare(info, info.params(), raw, tmp_path / "new").target

    def membership(samples: list[Sample]) -> set[tuple[str, str, str]]:
        return {(Path(s.image).name, s.split, s.defect) for s in samples}

    assert membership(clean("elpv", new)) == membership(clean("elpv", raw))


def test_visa_converted_by_us_is_what_the_published_tree_says(tmp_path: Path) -> None:
    raw = trees.visa_raw(tmp_path / "raw")
    info = DATASETS.get("visa")
    new = prepare(info, info.params(), raw, tmp_path / "new").target
    raw_samples, new_samples = clean("visa", raw), clean("visa", new)
    assert [(s.category, s.split, s.label, Path(s.image).name) for s in new_samples] == [
        (s.category, s.split, s.label, Path(s.image).name) for s in raw_samples
    ]
    one = next(s for s in new_samples if s.mask)
    assert one.mask == "1cls/candle/ground_truth/bad/000.png" and trees.Image.open(new / one.mask).getextrema() == (0, 255)
    same = {
        Path(s.image).name: hashlib.sha256((raw / s.image).read_bytes()).digest()
        for s in raw_samples
        if s.category == "pcb1" and s.label
    }
    for s in new_samples:
        if s.category == "pcb1" and s.label:
            assert hashlib.sha256((new / s.image).read_bytes()).digest() == same[Path(s.image).name]
    with pytest.raises(DataError, match=r"split_csv/1cls\.csv"):
        prepare(info, info.params(), new, tmp_path / "again")


def test_categories_that_share_their_test_images_share_their_decoded_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten categories of 10,000 CIFAR-10 test images would otherwise fill ten times the disk."""
    from inpbench.harness.api import Preprocess
    from inpbench.harness.manifest import open_manifest
    from inpbench.harness.pixels import open_pixels

    monkeypatch.setenv("INPBENCH_CACHE", str(tmp_path / "cache"))
    root = raw_trees.class_folders(tmp_path / "cifar")
    manifest = open_manifest(DATASETS.get("cifar10"), cifar10.CifarParams(), root)
    geometry = Preprocess(resize=(8, 8), crop=(8, 8))
    files = set()
    for category in manifest.categories:
        test = [s for s in manifest.samples if s.category == category and s.split == "test"]
        rows = open_pixels(manifest, test, geometry, cache=True)
        assert (rows.read([test[3]])[0].transpose(1, 2, 0) == trees.np.asarray(trees.Image.open(root / test[3].image))).all()
        files |= {path.name for path in (tmp_path / "cache" / "pixels").rglob("*.json")}
    assert len(files) == 1


def test_one_model_of_all_classes_is_refused(tmp_path: Path) -> None:
    root = raw_trees.class_folders(tmp_path / "cifar")
    run = ("run", "--methods", "raw_pixel", "--preset", "smoke", "--dataset", "cifar10", "--data-root", root, "--dry-run")
    refused = bench(*run)
    assert refused.code != 0 and "--setting single_class" in refused.err and "Traceback" not in refused.err
    for allowed in (["--setting", "single_class"], ["--set", "cifar10.protocol=multi_class"], ["--categories", "cat"]):
        assert bench(*run, *allowed).code == 0, allowed
