"""Golden cases of the family `data`: input pipelines, mask rules, the ELPV split and the few-shot draws."""

from __future__ import annotations

import hashlib
import re

import pytest
from golden import COMMITTED, ROOT, Case, case_names, data_folder, read_case
from golden_images import check_real_image

from inpbench.datasets.elpv import scan, split_normals
from inpbench.datasets.mvtec import CATEGORIES as MVTEC
from inpbench.datasets.mvtec import COUNTS
from inpbench.datasets.visa import CATEGORIES as VISA
from inpbench.datasets.visa import VISA as VISA_INFO
from inpbench.harness.api import NoParams, Sample
from inpbench.harness.support import draw_support, support_samples


def check_pipeline(case: Case) -> None:
    folder = data_folder()
    for name, entry in case.config["cases"].items():
        data = (folder / entry["image"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["image_sha256"], f"{entry['image']} is another file"
        check_real_image(entry, case.arrays, name, folder)


def check_elpv(case: Case) -> None:
    expected = case.config
    folder = data_folder() / "elpv"
    rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines()]
    normal = [row[0] for row in rows if float(row[1]) == 0]
    train, test = split_normals(normal)
    assert len(normal) == expected["n_normal"]
    assert len(rows) - len(normal) - sum(float(row[1]) == 1 for row in rows) == expected["dropped"]
    assert train[: len(expected["first_train"])] == expected["first_train"]
    assert test[: len(expected["first_test"])] == expected["first_test"]
    for names, key in ((train, "train_sha256"), (test, "test_sha256")):
        assert hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest() == expected[key]
    samples = scan(folder, NoParams(), lambda finding: pytest.fail(str(finding)))
    counts = {"train_good": 0, "test_good": 0, "test_mono": 0, "test_poly": 0}
    for sample in samples:
        counts[f"{sample.split}_{sample.defect}"] += 1
    assert counts == {key: expected[key] for key in counts}
    assert {s.image for s in samples if s.split == "train"} == set(train)


def _seed(case: Case) -> int:
    """What the originals seed Python's generator with: stated as a number, or in the note."""
    noted = re.search(r"random\.seed\((\d+)\)", case.config.get("note", ""))
    return int(case.config.get("seed", noted.group(1) if noted else 1))


def _visa_names() -> dict[str, dict[int, str]]:
    """Names of VisA's training images by category and position: those of the (position, name) pairs of the family inp_former."""
    names: dict[str, dict[int, str]] = {category: {} for category in VISA}
    for root in (COMMITTED, ROOT):
        for path in sorted((root / "inp_former").glob("fewshot_sampling*.json")):
            for title, picks in read_case("inp_former", path.stem, root).config["samples"].items():
                if title.startswith("VisA"):
                    for category, pairs in picks.items():
                        names[category].update(pair for pair in pairs if isinstance(pair, list))
    return names


def check_selection(case: Case) -> None:
    """MVTec names are numbers from 000; a VisA name that no pair gives must at least lie between those of its neighbours."""
    seed, names = _seed(case), _visa_names()
    assert set(case.config["selection"]) <= {"MVTec-AD", "VisA"}
    for shots, expected in case.config["selection"].get("MVTec-AD", {}).items():
        assert tuple(expected) == MVTEC
        drawn = draw_support({category: COUNTS[category].train for category in MVTEC}, int(shots), seed)
        assert {category: [f"{i:03d}.png" for i in found] for category, found in drawn.items()} == expected
    for shots, expected in case.config["selection"].get("VisA", {}).items():
        drawn = draw_support({category: VISA_COUNTS[category].train for category in VISA}, int(shots), seed)
        assert set(drawn) == set(expected)
        for category, found in drawn.items():
            picks = dict(zip(found, expected[category], strict=True))
            together = {**picks, **names[category]}
            assert {i: together[i] for i in picks} == picks, (category, shots)
            assert [together[i] for i in sorted(together)] == sorted(set(together.values())), (category, shots)


def check_given_pack(case: Case) -> None:
    from inpbench.datasets.folder import FolderParams
    from inpbench.datasets.folder import scan as scan_folder

    samples: list[Sample] = scan_folder(data_folder() / "mtd_mvtec", FolderParams(), lambda finding: pytest.fail(str(finding)))
    for shots, expected in case.config["given_pack_mtd_mvtec"].items():
        drawn = support_samples(samples, int(shots), _seed(case))
        assert [s.image.rpartition("/")[2] for s in drawn] == expected["magnetic_tile"]


VISA_COUNTS = VISA_INFO.counts
CHECKS = {"data_pipeline": check_pipeline, "elpv_split": check_elpv, "few_shot_selection": check_selection}


def kind_of(case: Case) -> str:
    """Cases of this family are told apart by their schema, so that another root may name its files as it likes."""
    for key, kind in (("cases", "data_pipeline"), ("n_normal", "elpv_split"), ("selection", "few_shot_selection")):
        if key in case.config:
            return kind
    return "unknown"


@pytest.mark.parametrize("name", case_names("data"))
def test_golden_data(name: str) -> None:
    case = read_case("data", name)
    kind = kind_of(case)
    assert kind in CHECKS, f"{name}: a golden case of a kind that this runner does not know"
    CHECKS[kind](case)


@pytest.mark.parametrize("name", [n for n in case_names("data") if "given_pack_mtd_mvtec" in read_case("data", n).config])
def test_golden_draw_from_the_given_pack(name: str) -> None:
    check_given_pack(read_case("data", name))


def test_the_family_is_not_empty() -> None:
    assert case_names("data"), "no golden case of the family data was found"
