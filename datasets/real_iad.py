"""Real-IAD: 30 categories, five views of each object, listed by one json a category.

The label is the entry's anomaly_class, not the folder: a defect that a camera cannot see is an entry under NG/ with class OK.
Entries keep the order of the json (the official few-shot draw depends on it), so samples are not sorted by path here. The training
entries of the fuiad lists are all given as normal, as the protocol has it; `defect` keeps their class. Both known depths of the
json folder and of the image folder are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inpbench.datasets.listing import Listing, find_base, folders, in_order, join, path_problem, read_json
from inpbench.harness.api import Counts, DatasetInfo, Finding, Report, Sample, Split
from inpbench.harness.errors import DataError

# The order that the methods' authors train in: usb, usb_adaptor, u_block.
_NAMES = """
    audiojack bottle_cap button_battery end_cap eraser fire_hood mint mounts pcb phone_battery plastic_nut plastic_plug
    porcelain_doll regulator rolled_strip_base sim_card_set switch tape terminalblock toothbrush toy toy_brick transistor1
    usb usb_adaptor u_block vcpill wooden_beads woodstick zipper
"""
CATEGORIES = tuple(_NAMES.split())
JSONS = {
    "base": "realiad_jsons",
    "sv": "realiad_jsons_sv",
    "fuiad_0.0": "realiad_jsons_fuiad_0.0",
    "fuiad_0.1": "realiad_jsons_fuiad_0.1",
    "fuiad_0.2": "realiad_jsons_fuiad_0.2",
    "fuiad_0.4": "realiad_jsons_fuiad_0.4",
}
_FUIAD = Counts(57840, 20157, 9843)
TOTALS = {"base": Counts(36465, 63256, 51329), "sv": Counts(10408, 10387, 9415)}
SPECIMEN = re.compile(r"([a-zA-Z][a-zA-Z0-9_]*_[0-9]{4}_[A-Z][A-Z_]*[A-Z])_C[0-9]_")  # the official pattern
_VIEW = re.compile(r"C[0-9]+")
KEYS = ("category", "anomaly_class", "image_path", "mask_path")


@dataclass(frozen=True, kw_only=True)
class RealIadParams:
    """Which lists, and which copy of the images."""

    variant: Literal["base", "sv", "fuiad_0.0", "fuiad_0.1", "fuiad_0.2", "fuiad_0.4"] = "base"  # base: all views; sv: top view
    resolution: Literal["1024", "512", "256", "raw"] = "1024"  # the folder realiad_<resolution>; the published methods use 1024

    @property
    def published(self) -> Mapping[str, Counts]:
        """Counts of all categories together; those of single categories are not published."""
        return {"total": TOTALS.get(self.variant, _FUIAD)}


def scan(root: Path, params: RealIadParams, report: Report) -> list[Sample]:
    """The entries of every json of the variant; `DataError` when there is no json or no folder of images."""
    name, pictures = JSONS[params.variant], f"realiad_{params.resolution}"
    base = find_base(root, ("Real-IAD", "real_iad", "realiad"), lambda path: (path / name).is_dir())
    levels = [] if base is None else [level for level in (join(base, name), join(base, name, name)) if _jsons(root / level)]
    if base is None or not levels:
        raise DataError(
            f"{root} holds no {name}/<category>.json (nor {name}/{name}/<category>.json).",
            "Type: bench data show real_iad, for the layout; other lists: --set real_iad.variant=sv",
        )
    if not (root / base / pictures).is_dir():
        there = [folder.removeprefix("realiad_") for folder in folders(root / base) if folder in _PICTURES]
        raise DataError(
            f"{root / base} has no folder {pictures}.",
            f"Type: --set real_iad.resolution={there[0]}" if there else f"Unpack the images into {root / base / pictures}.",
        )
    folder, listing, samples = levels[0], Listing(root), []
    for category in in_order(_jsons(root / folder), CATEGORIES):
        reader = _Category(category, join(folder, f"{category}.json"), join(base, pictures), params, listing, report)
        samples += reader.read(root)
    return samples


_PICTURES = {f"realiad_{resolution}" for resolution in ("1024", "512", "256", "raw")}


def _jsons(folder: Path) -> list[str]:
    """Categories with a json in the folder."""
    if not folder.is_dir():
        return []
    return sorted(p.stem for p in folder.iterdir() if p.suffix.lower() == ".json" and not p.name.startswith(".") and p.is_file())


@dataclass(frozen=True)
class _Category:
    """One json and where its images lie."""

    name: str
    table: str
    pictures: str
    params: RealIadParams
    listing: Listing
    report: Report

    def read(self, root: Path) -> list[Sample]:
        """The samples of the lists train and test, in their order."""
        try:
            data = read_json(root, self.table)
        except (OSError, ValueError) as error:
            return self._bad(f"no valid json: {error}")
        if not isinstance(data, dict) or not isinstance(data.get("train"), list) or not isinstance(data.get("test"), list):
            return self._bad('expected {"meta": {...}, "train": [...], "test": [...]}')
        meta = data.get("meta", {})
        if not isinstance(meta, dict) or not isinstance(meta.get("normal_class", ""), str):
            return self._bad('expected "meta" to be an object, with a text as "normal_class"')
        prefix = meta.get("prefix", f"{self.name}/")
        if not isinstance(prefix, str) or (prefix and path_problem(prefix)):
            return self._bad(f"meta.prefix {prefix!r} is no relative path")
        normal = meta.get("normal_class", "OK")
        samples: dict[str, Sample] = {}
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            for index, entry in enumerate(data[split]):
                sample = self._sample(f"{split}[{index}]", split, entry, prefix.strip("/"), normal)
                if sample is not None and sample.image in samples:
                    self.report(Finding(sample.image, "bad_entry", f"{self.table}, {split}[{index}] lists it a second time"))
                elif sample is not None:
                    samples[sample.image] = sample
        return list(samples.values())

    def _bad(self, message: str) -> list[Sample]:
        self.report(Finding(self.table, "bad_entry", message))
        return []

    def _sample(self, where: str, split: Split, entry: Any, prefix: str, normal: Any) -> Sample | None:
        where = f"{self.table}, {where}"
        fits = isinstance(entry, dict) and all(isinstance(entry.get(key), str) and entry[key] for key in KEYS[1:3])
        if not fits or not isinstance(entry.get("mask_path"), (str, type(None))):
            self.report(Finding(self.table, "bad_entry", f"{where}: expected {', '.join(KEYS)}; found {str(entry)[:120]}"))
            return None
        for key in ("image_path", "mask_path"):
            problem = path_problem(entry[key]) if entry.get(key) else ""
            if problem:
                self.report(Finding(entry[key], "bad_path", f"{where}, {key}: {problem}"))
                return None
        image = self._find(prefix, entry["image_path"])
        if image is None:
            self.report(Finding(join(self.pictures, prefix, entry["image_path"]), "missing_image", f"{where} lists it"))
            return None
        kind, named = entry["anomaly_class"], entry.get("mask_path") or None
        label = int(kind != normal)
        if split == "train" and self.params.variant.startswith("fuiad"):
            label = 0
        mask = None
        if label and (mask := self._find(prefix, named) if named else None) is None:
            expected = join(self.pictures, prefix, named) if named else f"a mask_path in {where} (anomaly_class {kind})"
            self.report(Finding(image, "missing_mask", f"expected {expected}"))
        if named and kind == normal:
            self.report(Finding(image, "ignored", f"{where}: the mask of an entry of class {normal} is not used"))
        name = image.rpartition("/")[2]
        found, fields = SPECIMEN.search(name), name.rpartition(".")[0].split("_")
        view = fields[-2] if len(fields) > 1 and _VIEW.fullmatch(fields[-2]) else None
        defect = "good" if kind == normal else kind
        return Sample(image, self.name, split, label, mask, defect, found.group(1) if found else None, view)

    def _find(self, prefix: str, path: str) -> str | None:
        """<images>/<prefix>/<path>, or one level deeper, as some archives unpack."""
        return self.listing.find(join(self.pictures, prefix, path)) or self.listing.find(
            join(self.pictures, self.name, self.name, path)
        )


REAL_IAD = DatasetInfo(
    name="real_iad",
    version=1,
    title="Real-IAD",
    scan="inpbench.datasets.real_iad:scan",
    params=RealIadParams,
    categories=CATEGORIES,
    licence="CC BY-NC-SA 4.0",
    homepage="https://realiad4ad.github.io/Real-IAD/",
    expected_tree="""\
<root>/realiad_jsons/<category>.json      (or realiad_jsons/realiad_jsons/; also realiad_jsons_sv, realiad_jsons_fuiad_0.1 ...)
<root>/realiad_1024/<category>/OK/S0001/<category>_0001_OK_C1_20231020135742.jpg     (or <category>/<category>/OK/...)
<root>/realiad_1024/<category>/NG/AK/S0001/<category>_0001_NG_AK_C1_20231020135742.{jpg,png}""",
    obtain="request access on https://realiad4ad.github.io/Real-IAD/ or for the gated Hugging Face data set Real-IAD/Real-IAD",
)
