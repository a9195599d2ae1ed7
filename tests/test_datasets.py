"""Adapters on small trees: layouts, pairing, order, and everything that must be reported instead of guessed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import trees

from inpbench.datasets import elpv, folder, listing, mvtec, real_iad, visa
from inpbench.harness.api import DatasetInfo, Finding, NoParams, Sample
from inpbench.harness.errors import DataError
from inpbench.harness.registry import DATASETS


def scan(info: DatasetInfo, root: Path, **params: object) -> tuple[list[Sample], list[Finding]]:
    from inpbench.harness.registry import resolve

    found: list[Finding] = []
    samples = resolve(info.scan)(root, info.params(**params), found.append)
    return samples, found


def clean(info: DatasetInfo, root: Path, **params: object) -> list[Sample]:
    samples, found = scan(info, root, **params)
    assert found == []
    return samples


def test_every_built_in_is_registered_with_its_facts() -> None:
    for name in ("mvtec_ad", "visa", "real_iad", "folder", "elpv"):
        info = DATASETS.get(name)
        assert info.name == name and info.licence and info.expected_tree
        assert set(info.counts) <= set(info.categories) and info.textures <= set(info.categories)


def test_published_totals() -> None:
    assert [sum(column) for column in zip(*mvtec.COUNTS.values(), strict=True)] == [3629, 467, 1258]
    totals = {"1cls": [8659, 962, 1200], "2cls_highshot": [6493, 3848, 480], "2cls_fewshot": [2164, 7697, 960]}
    for split, expected in totals.items():
        published = visa.VisaParams(split=split).published  # type: ignore[arg-type]
        assert [sum(column) for column in zip(*published.values(), strict=True)] == expected
    assert len(real_iad.CATEGORIES) == 30
    assert sum(real_iad.TOTALS["base"]) == 151_050


# --- MVTec AD and folder --------------------------------------------------------------------------------------------


def test_mvtec_in_the_official_order_from_the_root_or_its_parent(tmp_path: Path) -> None:
    trees.mvtec(tmp_path / "data" / "mvtec_anomaly_detection", ("bottle", "carpet"))
    for root in (tmp_path / "data" / "mvtec_anomaly_detection", tmp_path / "data"):
        samples = clean(mvtec.MVTEC_AD, root)
        assert list(dict.fromkeys(s.category for s in samples)) == ["carpet", "bottle"]
        assert [s.split for s in samples[:8]] == ["train"] * 4 + ["test"] * 4
        bad = [s for s in samples if s.label == 1]
        assert all(s.mask and s.mask.endswith(f"ground_truth/hole/{Path(s.image).stem}_mask.png") for s in bad)
        assert all((root / s.image).is_file() for s in samples)


def test_mvtec_passes_over_other_categories_and_refuses_other_trees(tmp_path: Path) -> None:
    trees.mvtec(tmp_path, ("carpet", "mine"))
    samples, found = scan(mvtec.MVTEC_AD, tmp_path)
    assert {s.category for s in samples} == {"carpet"}
    assert [(f.file, f.status) for f in found] == [("mine", "ignored")]
    with pytest.raises(DataError, match="none of the 15 categories"):
        scan(mvtec.MVTEC_AD, trees.mvtec(tmp_path / "other", ("mine", "yours")))


def test_a_root_behind_a_link(tmp_path: Path) -> None:
    trees.mvtec(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert clean(mvtec.MVTEC_AD, tmp_path / "link") == clean(mvtec.MVTEC_AD, tmp_path / "real")


def test_folder_takes_a_category_as_root(tmp_path: Path) -> None:
    trees.mvtec(tmp_path, ("widget",))
    samples = clean(folder.FOLDER, tmp_path / "widget")
    assert {s.category for s in samples} == {"widget"} and len(samples) == 8
    assert samples[0].image == "train/good/000.png"


@pytest.mark.parametrize("normal", ["ok", "normal", "GOOD"])
def test_folder_knows_other_names_of_normal(tmp_path: Path, normal: str) -> None:
    trees.mvtec(tmp_path, ("a",))
    for split in ("train", "test"):
        (tmp_path / "a" / split / "good").rename(tmp_path / "a" / split / normal)
    samples = clean(folder.FOLDER, tmp_path)
    assert [s.label for s in samples].count(0) == 6 and {s.defect for s in samples} == {"good", "hole"}


def test_folder_with_loose_training_images_and_without_masks(tmp_path: Path) -> None:
    for i in range(3):
        trees.save(trees.picture(i), tmp_path / "train" / f"{i}.png")
        trees.save(trees.picture(9 + i), tmp_path / "test" / "dent" / f"{i}.png")
    samples = clean(folder.FOLDER, tmp_path)
    assert [s.split for s in samples].count("train") == 3
    assert all(s.mask is None for s in samples)
    missing, found = scan(folder.FOLDER, tmp_path, masks="required")
    assert [f.status for f in found] == ["missing_mask"] * 3 and len(missing) == 6


def test_masks_are_paired_by_name_where_positions_would_mislead(tmp_path: Path) -> None:
    """Sorted images and sorted `_mask` files have different orders here, because "_" sorts after digits and "." before."""
    for name in ("1", "10", "11", "12", "2"):
        trees.save(trees.picture(int(name)), tmp_path / "test" / "hole" / f"{name}.png")
        trees.save(trees.spot(), tmp_path / "ground_truth" / "hole" / f"{name}_mask.png")
    samples = clean(folder.FOLDER, tmp_path)
    assert {s.image: s.mask for s in samples} == {
        f"test/hole/{n}.png": f"ground_truth/hole/{n}_mask.png" for n in ("1", "10", "11", "12", "2")
    }


def test_one_missing_and_one_stray_mask_shift_nothing(tmp_path: Path) -> None:
    trees.mvtec(tmp_path, ("a",))
    truth = tmp_path / "a" / "ground_truth" / "hole"
    (truth / "000_mask.png").rename(truth / "zzz_mask.png")
    samples, found = scan(folder.FOLDER, tmp_path)
    assert [s.mask for s in samples if s.label] == [None, "a/ground_truth/hole/001_mask.png"]
    assert {(f.file, f.status) for f in found} == {
        ("a/test/hole/000.png", "missing_mask"),
        ("a/ground_truth/hole/zzz_mask.png", "mask_without_image"),
    }
    assert "a/ground_truth/hole/000_mask.png" in next(f.message for f in found if f.status == "missing_mask")


def test_suffixed_mask_wins_and_unicode_forms_are_one(tmp_path: Path) -> None:
    trees.save(trees.picture(1), tmp_path / "test" / "hole" / "caf\u00e9.png")
    trees.save(trees.spot(), tmp_path / "ground_truth" / "hole" / "cafe\u0301.bmp")
    assert clean(folder.FOLDER, tmp_path)[0].mask == "ground_truth/hole/cafe\u0301.bmp"
    trees.save(trees.spot(), tmp_path / "ground_truth" / "hole" / "caf\u00e9_mask.TIF", "TIFF")
    samples, found = scan(folder.FOLDER, tmp_path)
    assert samples[0].mask == "ground_truth/hole/caf\u00e9_mask.TIF"
    assert [f.status for f in found] == ["mask_without_image"]


def test_masks_of_normal_images_and_of_absent_defects(tmp_path: Path) -> None:
    trees.mvtec(tmp_path, ("carpet",))
    trees.save(trees.spot(), tmp_path / "carpet/ground_truth/good/000_mask.png")
    trees.save(trees.spot(), tmp_path / "carpet/ground_truth/color/000_mask.png")
    _, found = scan(mvtec.MVTEC_AD, tmp_path)
    assert {(f.file, f.status) for f in found} == {
        ("carpet/ground_truth/good", "ignored"), ("carpet/ground_truth/color", "mask_without_image"),
    }  # fmt: skip


def test_names_that_are_no_text_are_reported(tmp_path: Path) -> None:
    trees.mvtec(tmp_path, ("a",))
    path = os.fsencode(tmp_path / "a/train/good") + b"/bad\xff.png"
    with open(path, "wb") as file:  # noqa: PTH123 (bytes)
        file.write(b"x")
    samples, found = scan(folder.FOLDER, tmp_path)
    assert len(samples) == 8 and [(f.file, f.status) for f in found] == [("a/train/good/bad\\udcff.png", "unreadable")]
    os.mkdir(os.fsencode(tmp_path / "a/test") + b"/\xfe")  # noqa: PTH102
    with pytest.raises(DataError, match="not valid Unicode"):
        scan(folder.FOLDER, tmp_path)


def test_nasty_tree_is_scanned_without_a_hang(tmp_path: Path) -> None:
    samples, found = scan(folder.FOLDER, trees.nasty(tmp_path))
    assert {s.category for s in samples} == {"part"}
    assert not [s for s in samples if Path(s.image).name.startswith(".") or "Zone" in s.image or s.image.endswith((".db", ".txt"))]
    by_file = {f.file: f.status for f in found}
    assert by_file["empty"] == by_file["hollow"] == by_file["loop"] == "ignored"
    decoded_only = {"mode", "duplicate", "unreadable", "unreadable_mask", "empty_mask", "size_mismatch"}
    expected = {file: status for file, status in trees.NASTY.items() if status not in decoded_only}
    assert {file: by_file.get(f"part/{file}") for file in expected} == expected
    assert {s.defect for s in samples} == {"good", "hole"}


def test_folder_says_what_it_expected(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"holds no category.*photos"):
        scan(folder.FOLDER, tmp_path)
    (tmp_path / "photos" / "train" / "good").mkdir(parents=True)
    with pytest.raises(DataError, match="not a single image"):
        scan(folder.FOLDER, tmp_path)


# --- VisA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("newline", "bom"), [("\r\n", False), ("\n", False), ("\n", True), ("\r\n", True)])
def test_visa_raw(tmp_path: Path, newline: str, bom: bool) -> None:
    trees.visa_raw(tmp_path / "VisA", ("pcb1", "candle"), newline=newline, bom=bom)
    for root in (tmp_path / "VisA", tmp_path):
        samples = clean(visa.VISA, root)
        assert list(dict.fromkeys(s.category for s in samples)) == ["candle", "pcb1"]
        assert [(s.split, s.label) for s in samples[:7]] == [("train", 0)] * 3 + [("test", 1)] * 2 + [("test", 0)] * 2
        assert all((root / s.image).is_file() and (s.mask is None) == (s.label == 0) for s in samples)


@pytest.mark.parametrize("bad", ["bad", "defect"])
@pytest.mark.parametrize("level", ["", "1cls", "VisA_pytorch/1cls", "visa_pytorch"])
def test_visa_converted(tmp_path: Path, bad: str, level: str) -> None:
    trees.visa_converted(tmp_path / level, bad=bad)
    (tmp_path / level / "fryum" / "train" / "good").mkdir(parents=True)  # the conversion makes all folders, some stay empty
    samples = clean(visa.VISA, tmp_path)
    assert len(samples) == 14 and {s.defect for s in samples} == {"good", "bad"}
    assert all(s.mask and Path(s.mask).stem == Path(s.image).stem for s in samples if s.label)


def test_visa_prefers_the_raw_files(tmp_path: Path) -> None:
    trees.visa_converted(tmp_path / "VisA_pytorch" / "1cls")
    trees.visa_raw(tmp_path)
    assert all("/Data/Images/" in s.image for s in clean(visa.VISA, tmp_path))


def test_visa_reads_the_converted_tree_where_only_the_csv_is_left_of_the_raw_one(tmp_path: Path) -> None:
    trees.visa_raw(tmp_path)
    for name in ("candle", "pcb1"):
        shutil.rmtree(tmp_path / name)
    trees.visa_converted(tmp_path / "VisA_pytorch" / "1cls")
    samples = clean(visa.VISA, tmp_path)
    assert len(samples) == 14 and all(sample.image.startswith("VisA_pytorch/1cls/") for sample in samples)


def test_visa_two_class_split_lists_training_anomalies(tmp_path: Path) -> None:
    base = tmp_path / "2cls_fewshot" / "candle"
    for split in ("train", "test"):
        for i, label in enumerate(("good", "bad")):
            trees.save(trees.picture(i), base / split / label / f"{split}{i}.JPG", "JPEG")
        trees.save(trees.spot(), base / "ground_truth" / split / "bad" / f"{split}1.png")
    samples = clean(visa.VISA, tmp_path, split="2cls_fewshot")
    assert [(s.split, s.label, s.mask is not None) for s in samples] == [
        ("train", 1, True), ("train", 0, False), ("test", 1, True), ("test", 0, False),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"split_csv/1cls.csv"):
        scan(visa.VISA, tmp_path)


def test_visa_bad_rows_are_reported_one_by_one(tmp_path: Path) -> None:
    trees.visa_raw(tmp_path, ("candle",))
    image = "candle/Data/Images/Anomaly/000.JPG"
    trees.write_csv(
        tmp_path / "split_csv" / "1cls.csv",
        [
            "object,split,label,image,mask",
            "candle,train,normal,candle/Data/Images/Normal/000.jpg,",  # another case of the extension: the same file
            "candle,test,anomaly,/etc/passwd,",
            "candle,test,anomaly,../outside.JPG,",
            f"candle,test,anomaly,{image},C:\\mask.png",
            f"candle,test,anomaly,{image},",
            f"candle,test,anomaly,{image},",
            "candle,test,normal,candle/Data/Images/Normal/999.JPG,",
            "../candle,test,normal,candle/Data/Images/Normal/001.JPG,",
            "candle/Data,test,normal,candle/Data/Images/Normal/001.JPG,",
            "candle,valid,normal,candle/Data/Images/Normal/001.JPG,",
            "candle,test,strange,candle/Data/Images/Normal/001.JPG,",
            "candle,test",
            "",
            "pcb9,test,normal,pcb9/000.JPG,",
            '"candle","test","normal","candle/Data/Images/Normal/002.JPG",""',
        ],
    )
    samples, found = scan(visa.VISA, tmp_path)
    assert [s.image.rpartition("/")[2] for s in samples] == ["000.JPG", "000.JPG", "002.JPG"]
    assert [f.status for f in found] == [
        "missing_category", "bad_path", "bad_path", "bad_path", "missing_mask", "missing_mask", "bad_entry",
        "missing_image", "bad_entry", "bad_entry", "bad_entry", "bad_entry", "bad_entry",
    ]  # fmt: skip


def test_visa_refuses_a_csv_without_its_columns(tmp_path: Path) -> None:
    trees.visa_raw(tmp_path)
    trees.write_csv(tmp_path / "split_csv" / "1cls.csv", ["object,split,label,path", "candle,train,normal,x.JPG"])
    with pytest.raises(DataError, match="missing: image, mask"):
        scan(visa.VISA, tmp_path)
    (tmp_path / "split_csv" / "1cls.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        scan(visa.VISA, tmp_path)


# --- Real-IAD -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested_json", [False, True])
@pytest.mark.parametrize("nested_images", [False, True])
def test_real_iad(tmp_path: Path, nested_json: bool, nested_images: bool) -> None:
    trees.real_iad(tmp_path, ("pcb", "audiojack"), nested_json=nested_json, nested_images=nested_images)
    samples = clean(real_iad.REAL_IAD, tmp_path)
    assert list(dict.fromkeys(s.category for s in samples)) == ["audiojack", "pcb"]
    test = [s for s in samples if s.category == "audiojack" and s.split == "test"]
    assert [s.label for s in test] == [0] * 5 + [1] * 4 + [0]  # the fifth camera cannot see the defect
    assert test[-1].defect == "good" and "/NG/" in test[-1].image
    assert (test[-1].specimen, test[-1].view) == ("audiojack__0001_NG_AK", "C5")
    assert (test[0].specimen, test[0].view) == ("audiojack_0002_OK", "C1")


def test_real_iad_noisy_training_is_all_normal(tmp_path: Path) -> None:
    trees.real_iad(tmp_path, ("pcb",), lists="realiad_jsons_fuiad_0.2")
    table = tmp_path / "realiad_jsons_fuiad_0.2" / "pcb.json"
    data = json.loads(table.read_text())
    data["train"].append(data["test"].pop(5))
    table.write_text(json.dumps(data))
    samples = clean(real_iad.REAL_IAD, tmp_path, variant="fuiad_0.2")
    noisy = [s for s in samples if s.split == "train" and s.defect != "good"]
    assert [(s.label, s.mask, s.defect) for s in noisy] == [(0, None, "AK")]
    with pytest.raises(DataError, match=r"realiad_jsons/<category>\.json"):
        scan(real_iad.REAL_IAD, tmp_path)
    with pytest.raises(DataError, match="realiad_256") as caught:
        scan(real_iad.REAL_IAD, tmp_path, variant="fuiad_0.2", resolution="256")
    assert "resolution=1024" in caught.value.hint


def test_real_iad_bad_entries_are_reported(tmp_path: Path) -> None:
    trees.real_iad(tmp_path, ("pcb", "toy"))
    table = tmp_path / "realiad_jsons" / "pcb.json"
    data = json.loads(table.read_text())
    data["test"][5]["mask_path"] = None
    data["test"][6]["mask_path"] = "NG/AK/S0001/none.png"
    data["test"][7]["image_path"] = "../../secret.jpg"
    data["test"][8]["image_path"] = "OK/S0001/none.jpg"
    data["test"].append(dict(data["test"][0]))
    data["test"].append(dict(data["test"][9], mask_path="x.png", image_path=data["test"][1]["image_path"]))
    data["test"] += ["text", {"anomaly_class": "OK"}, {"anomaly_class": "OK", "image_path": 3, "mask_path": None}]
    table.write_text(json.dumps(data))
    (tmp_path / "realiad_jsons" / "toy.json").write_text("{broken")
    (tmp_path / "realiad_jsons" / "zipper.json").write_text("[]")
    samples, found = scan(real_iad.REAL_IAD, tmp_path)
    assert {s.category for s in samples} == {"pcb"}
    assert [f.status for f in found] == [
        "missing_mask", "missing_mask", "bad_path", "missing_image", "bad_entry", "ignored", "bad_entry", "bad_entry", "bad_entry",
        "bad_entry", "bad_entry", "bad_entry",
    ]  # fmt: skip
    assert [s.label for s in samples if s.image.endswith("C1_20231020135742.jpg") and "/NG/" in s.image] == [1]


# --- ELPV and the listing -------------------------------------------------------------------------------------------


def test_elpv(tmp_path: Path) -> None:
    trees.elpv(tmp_path / "src" / "elpv_dataset" / "data")
    samples = clean(elpv.ELPV, tmp_path)
    assert [s.split for s in samples].count("train") == 6  # ceil(9 / 4) = 3 are tested
    assert [(s.defect, s.label) for s in samples if s.label] == [("mono", 1), ("poly", 1)]
    assert len(samples) == 11  # the uncertain cell is left out


def test_elpv_split_is_that_of_scikit_learn() -> None:
    from sklearn.model_selection import train_test_split

    names = [f"cell{i:04d}" for i in range(1508)]
    train, test = train_test_split(names, test_size=0.25, random_state=42)
    assert elpv.split_normals(names) == (train, test)
    assert (len(train), len(test)) == (1131, 377)


def test_elpv_bad_lines(tmp_path: Path) -> None:
    trees.elpv(tmp_path)
    lines = ["images/cell0000.png 0.0", "images/cell0001.png x mono", "../x.png 0.0 mono", "images/none.png 0.0 mono", ""]
    (tmp_path / "labels.csv").write_text("\n".join([*lines, "images/cell0002.png 0 mono", "images/cell0002.png 0 mono"]))
    samples, found = scan(elpv.ELPV, tmp_path)
    assert [f.status for f in found] == ["bad_entry", "bad_entry", "bad_path", "missing_image", "bad_entry"]
    assert len(samples) == 1


@pytest.mark.parametrize("path", ["", "/a.png", "\\\\server\\a.png", "C:/a.png", "a/../../b.png", "..", "a\\..\\b.png", "a\0.png"])
def test_paths_that_are_not_followed(path: str) -> None:
    assert listing.path_problem(path)


def test_paths_that_are_followed() -> None:
    for path in ("a.png", "a/b..c.png", "a b/ü.png", ".../x.png"):
        assert listing.path_problem(path) == ""


def test_no_params_means_none() -> None:
    assert mvtec.MVTEC_AD.params is NoParams
