"""InCTRL's json lists: read as a data set of their own, and written for any other (`bench data lists`).

Four files a category, each a list of {"image_path", "target" 0|1, "type" = category}: <name>_normal.json (train/good, test/good),
<name>_outlier.json (test anomalies), <name>_val_normal.json and <name>_val_outlier.json (the test set). Read: training images are
those of <name>_normal.json (or <name>_train_normal.json, as its README says) that the test set does not hold. Image level only.
Known deviations when written: sorted as the data set is, not in the order of the file system; and all training images are listed,
where the authors' script leaves out .JPG and .jpeg ones (all of VisA's).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inpbench.datasets.listing import Listing, find_base, join, path_problem, read_json
from inpbench.datasets.prepared import not_there
from inpbench.harness.api import DatasetInfo, Finding, NoParams, Report, Sample

VAL = "_val_normal.json"
FOLDERS = ("AD_json", "json", "lists")


def lists(root: Path, samples: Iterable[Sample]) -> dict[str, list[dict[str, Any]]]:
    """File name -> entries, with absolute image paths; samples of unknown label and of a validation split are left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        if sample.label < 0 or sample.split == "val":
            continue
        ends = {("train", 0): ("normal",), ("test", 0): ("normal", "val_normal"), ("test", 1): ("outlier", "val_outlier")}
        for end in ends.get((sample.split, sample.label), ()):
            path = os.path.abspath(root / sample.image)  # noqa: PTH100 (`resolve` would follow links)
            entry = {"image_path": path, "target": sample.label, "type": sample.category}
            found.setdefault(f"{sample.category}_{end}.json", []).append(entry)
    return found


def scan(root: Path, params: NoParams, report: Report) -> list[Sample]:
    """The samples that the lists below the root name; `DataError` when there is no list."""
    base = find_base(root, FOLDERS, lambda path: any(path.glob(f"*{VAL}")))
    if base is None:
        raise not_there(root, "json lists of InCTRL", "inctrl_lists", f"no <category>{VAL} is there")
    listing = Listing(root)
    samples: list[Sample] = []
    for name in sorted(path.name.removesuffix(VAL) for path in (root / base).glob(f"*{VAL}")):
        normal = _read(root, join(base, f"{name}{VAL}"), 0, listing, report)
        anomalous = _read(root, join(base, f"{name}_val_outlier.json"), 1, listing, report)
        train = next((n for n in (f"{name}_normal.json", f"{name}_train_normal.json") if (root / base / n).is_file()), "")
        if not train:
            report(Finding(join(base, f"{name}_normal.json"), "ignored", "not there: this category has no training images"))
        tested = set(normal)
        trained = [path for path in (_read(root, join(base, train), 0, listing, report) if train else []) if path not in tested]
        samples += [Sample(path, name, "train", 0) for path in sorted(trained)]
        both = [Sample(path, name, "test", 0) for path in normal]
        both += [Sample(path, name, "test", 1, None, Path(path).parent.name or "defect") for path in anomalous]
        samples += sorted(both, key=lambda sample: sample.image)
    return samples


def _read(root: Path, file: str, target: int, listing: Listing, report: Report) -> list[str]:
    """The images of a list, each once, as they are on disk."""
    try:
        entries = read_json(root, file)
    except FileNotFoundError:
        report(Finding(file, "missing_image", "the list is not there"))
        return []
    except (OSError, ValueError) as error:
        report(Finding(file, "bad_entry", f"cannot be read: {error}"))
        return []
    if not isinstance(entries, list):
        report(Finding(file, "bad_entry", "expected a list of {image_path, target, type}"))
        return []
    found: dict[str, None] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("image_path"), str) or entry.get("target") != target:
            report(Finding(file, "bad_entry", f"entry {number}: expected image_path and target {target}; found {str(entry)[:80]}"))
            continue
        path = _inside(root, entry["image_path"])
        if problem := path_problem(path):
            report(Finding(file, "bad_path", f"entry {number}: {problem}: {entry['image_path'][:120]}"))
            continue
        image = listing.find(path)
        if image is None:
            report(Finding(path, "missing_image", f"{file} lists it, it is not there"))
        elif image in found:
            report(Finding(image, "bad_entry", f"{file} lists it a second time"))
        else:
            found[image] = None
    return list(found)


def _inside(root: Path, path: str) -> str:
    """A path of a list relative to the root; an absolute one that does not lie below it stays as it is."""
    if not path.startswith("/"):
        return os.path.normpath(path) if path else path
    try:
        return Path(os.path.normpath(path)).relative_to(os.path.abspath(root)).as_posix()  # noqa: PTH100
    except ValueError:
        return path


INCTRL_LISTS = DatasetInfo(
    name="inctrl_lists",
    version=1,
    title="json lists of InCTRL",
    scan="inpbench.datasets.inctrl_lists:scan",
    licence="that of the listed images",
    homepage="https://github.com/mala-lab/InCTRL",
    expected_tree="""\
<root>/<category>_val_normal.json, <root>/<category>_val_outlier.json, <root>/<category>_normal.json   (or in <root>/AD_json)
the images they name, anywhere below <root>; paths absolute or relative to <root>""",
)
