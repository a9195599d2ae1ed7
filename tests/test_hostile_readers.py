"""Fuzz: whatever a file of ours or of a data set holds, reading it is an answer. INPBENCH_FUZZ=100 for a night.

The answer is a `BenchError` of two lines or a reading that is documented to be tolerant; never another exception, never a hang,
and never a number that differs from the undamaged one (where the format can tell: see docs/robustness.md).
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import raw_trees
import recordkit
import trees
from mutations import ROUNDS, VALUES, damaged, retyped, survive

from inpbench.harness import baselines, history, params, reported, samples
from inpbench.harness.api import Finding, Sample
from inpbench.harness.category_result import CategoryResult
from inpbench.harness.errors import BenchError, RecordError
from inpbench.harness.kept_maps import read_inputs, read_maps
from inpbench.harness.manifest import open_manifest
from inpbench.harness.records import RecordStore, from_bytes, identity_id, to_text
from inpbench.harness.registry import DATASETS, METHODS, resolve
from inpbench.harness.small_files import parse_json, read_bytes


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("inpbench"), "disabled", True)


# --- our own files --------------------------------------------------------------------------------------------------


def test_damaged_records_keep_their_numbers_or_are_refused() -> None:
    made = recordkit.record(0.8125, notes=["a note"])
    data = to_text(made).encode()

    def attack(rng: random.Random) -> None:
        found = from_bytes(damaged(data, rng))
        for metric, value in made.metrics["mean"].items():
            assert found.mean(metric) == pytest.approx(value, abs=1e-8)
        assert found.identity == made.identity and list(found.metrics["categories"]) == list(made.metrics["categories"])

    refused, _ = survive(attack, 1500, "record")
    assert refused > 800, "the attack must bite"


def test_records_with_values_of_other_kinds() -> None:
    document = recordkit.record().as_document()

    def attack(rng: random.Random) -> None:
        changed = retyped(document, rng)
        if isinstance(changed, dict) and isinstance(changed.get("identity"), dict) and rng.random() < 0.5:
            changed["id"] = identity_id(changed["identity"])
        to_text(from_bytes(json.dumps(changed).encode()))

    refused, _ = survive(attack, 1500, "record")
    assert refused > 800


def one_digit(text: str, number: str) -> str:
    assert text.count(number) == 1, (number, text.count(number))
    return text.replace(number, ("2" if number[0] != "2" else "3") + number[1:])


@pytest.mark.parametrize("where", ["mean", "categories"])
def test_one_changed_digit_of_a_result_is_noticed(where: str) -> None:
    made = recordkit.record(0.5)
    made.metrics = recordkit.measured(0.5, p_ap=0.7123456789)
    table = made.metrics["mean"] if where == "mean" else made.metrics["categories"]["bottle"]
    digits = repr(table["p_ap"]).removeprefix("0.")
    with pytest.raises(RecordError, match=r"p_ap .* does not follow from its categories.*edited or damaged"):
        from_bytes(one_digit(to_text(made), digits).encode())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["categories"].pop("bottle"), "categories of the identity"),
        (lambda m: m["counts"].pop("bottle"), "counts are not of"),
        (lambda m: m["counts"]["bottle"].update(normal=-1), "must count images"),
        (lambda m: m["counts"]["bottle"].update(normal=1.5), "must count images"),
        (lambda m: [t.update(p_ap=7.0) for t in (m["mean"], *m["categories"].values())], "must be a fraction"),
        (lambda m: m["mean"].update(p_ap=None), "does not follow"),
        (lambda m: m["categories"]["bottle"].update(p_ap=None), "does not follow"),
    ],
)
def test_results_that_cannot_be(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    made = recordkit.record()
    change(made.metrics)
    with pytest.raises(RecordError, match=words):
        from_bytes(json.dumps(made.as_document()).encode())


@pytest.mark.parametrize("key", ["metrics", "identity", "mean"])
def test_a_key_that_stands_twice_is_refused(key: str) -> None:
    text = to_text(recordkit.record())
    assert from_bytes(text.encode())
    place = text.index(f'"{key}": {{')
    with pytest.raises(RecordError, match=f"'{key}' stands there twice"):
        from_bytes((text[:place] + f'"{key}": {{}}, ' + text[place:]).encode())


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', "[-Infinity]", "1e999", "9" * 400, "[" * 100_000, '{"a": 1, "a": 2}', "\ufeff{}", "", "\x00", "{}{}"]
)
def test_strict_json_raises_value_error_alone(text: str) -> None:
    for data in (text, text.encode(), text.encode("utf-16")):
        with pytest.raises(ValueError):
            parse_json(data)


def test_pipes_devices_and_endless_files_are_not_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "x.json")
    (tmp_path / "link.json").symlink_to("/dev/zero")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 33)  # 8 GiB, none of it on the disk
    for name in ("x.json", "link.json", "large.json", "."):
        with pytest.raises(OSError, match=r"regular file|larger than"):
            read_bytes(tmp_path / name)


def test_a_pipe_among_the_records_is_a_warning(tmp_path: Path) -> None:
    import os

    store = RecordStore(tmp_path)
    path = store.write(recordkit.record())
    os.mkfifo(path.with_name("0123456789ab.json"))
    listing = store.all()
    assert len(listing) == 1 and "no regular file" in listing.warnings[0]


SCORES = {
    "bottle": {"image": ["a/é.png", "b.png"], "score": [0.3, -1e300], "label": [0, 1], "draws": np.full((7, 20), 0.5)},
    "câble": {"image": ["c"], "score": [0.5], "label": [1]},
}


def test_damaged_scores_keep_their_values_or_are_refused() -> None:
    data = samples.pack(SCORES)
    sound = samples.unpack(data, "x")

    def attack(rng: random.Random) -> None:
        found = samples.unpack(damaged(data, rng), "x.npz")
        for category, table in found.items():
            for key, values in table.items():
                assert np.array_equal(values, sound[category][key]), key

    refused, _ = survive(attack, 400, "scores")
    assert refused > 150


def packed(**changes: Any) -> bytes:
    import io

    arrays = {
        "categories": np.asarray(["a"]),
        "image_0": np.asarray(["x", "y"]),
        "score_0": np.asarray([0.1, 0.2]),
        "label_0": np.asarray([0, 1], np.int8),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **(arrays | changes))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"categories": np.asarray(["a", "a"])},
        {"categories": np.asarray("a")},
        {"categories": np.asarray([1])},
        {"categories": np.asarray(["a"], dtype=object)},
        {"score_0": np.asarray([0.1])},
        {"score_0": np.asarray([0.1, np.nan])},
        {"score_0": np.asarray(["0.1", "0.2"])},
        {"label_0": np.asarray([[0, 1]], np.int8)},
        {"label_0": np.asarray([0, 1])},
        {"image_0": np.asarray([1, 2])},
        {"draws_0": np.zeros(3, np.float32)},
        {"draws_0": np.zeros((2, 3))},
    ],
    ids=str,
)
def test_scores_of_other_types_and_lengths_are_refused(changes: dict[str, Any]) -> None:
    assert samples.unpack(packed(), "x")
    with pytest.raises(RecordError, match="no file of scores"):
        samples.unpack(packed(**changes), "x.npz")


def test_scores_that_unpack_to_too_much_are_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "LARGEST", 1 << 20)
    data = packed(score_0=np.zeros(1 << 18))
    assert len(data) < 1 << 13
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(RecordError, match=f"its {len(data)} bytes unpack to 2"):
        samples.unpack(data, "x.npz")


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = tmp_path / "maps"
    folder.mkdir()
    np.save(folder / "nut.npy", np.random.RandomState(0).rand(3, 16, 16).astype(np.float32))
    np.save(folder / "nut.masks.npy", np.zeros((3, 16, 2), np.uint8))
    np.save(folder / "nut.inputs.npy", np.zeros((3, 8, 8, 3), np.uint8))
    facts = {"image": ["a", "b", "c"], "score": [0.1, 0.2, 0.3], "label": [0, 1, 0], "has_pixels": [True, True, False]}
    (folder / "nut.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("file", ["nut.json", "nut.npy", "nut.masks.npy", "nut.inputs.npy"])
def test_damaged_kept_maps(file: str, maps: Path) -> None:
    data = (maps / file).read_bytes()
    assert read_maps(maps, "nut").maps.shape == (3, 16, 16) and read_inputs(maps, "nut").shape == (3, 8, 8, 3)

    def attack(rng: random.Random) -> None:
        # The header is where the shape stands: half of the wounds go there.
        wound = damaged(data[:128], rng) + data[128:] if rng.random() < 0.5 else damaged(data, rng)
        (maps / file).write_bytes(wound)
        found = read_maps(maps, "nut")
        assert found.maps.dtype == np.float32 and len(found.scores) == len(found.maps) == len(found.masks)
        assert read_inputs(maps, "nut").dtype == np.uint8

    survive(attack, 200, file)


def test_kept_maps_whose_header_promises_terabytes(maps: Path) -> None:
    data = (maps / "nut.npy").read_bytes()
    (maps / "nut.npy").write_bytes(data.replace(b"(3, 16, 16)", b"(3, 16000000000, 16)".ljust(11))[: len(data)])
    with pytest.raises(RecordError, match="cannot be read"):
        read_maps(maps, "nut")


BASELINE_FOLDER = Path(__file__).resolve().parents[1] / "results" / "baselines"


def test_damaged_baselines(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "runs")
    store.write(recordkit.record())
    (path,) = baselines.update(store, tmp_path / "baselines", "first")
    data = path.read_bytes()
    sound = baselines.read(path)

    def attack(rng: random.Random) -> None:
        if rng.random() < 0.5:
            path.write_bytes(damaged(data, rng))
        else:
            path.write_text(json.dumps(retyped(json.loads(data), rng)))
        found = baselines.read(path)
        for entry in found.entries:
            baselines.metric_hardware(entry.hardware)
            for value in entry.metrics.values():
                assert np.isfinite([value.value, value.tolerance]).all() and value.tolerance >= 0
        baselines.to_text(found)

    survive(attack, 600, "baseline")
    assert baselines.read(next(BASELINE_FOLDER.glob("*.json"))) and sound.entries


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "true", '"0.1"', "-0.1", "null", "9" * 400])
def test_a_tolerance_that_lets_everything_pass_is_refused(value: str, tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "runs")
    store.write(recordkit.record())
    (path,) = baselines.update(store, tmp_path / "baselines", "first")
    path.write_text(path.read_text().replace('"tolerance": 0.02', f'"tolerance": {value}', 1))
    with pytest.raises(RecordError, match="no baseline"):
        baselines.read(path)


def test_damaged_histories_lose_only_their_broken_lines(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "runs")
    store.write(recordkit.record())
    (path,) = baselines.update(store, tmp_path / "baselines", "first")
    base = baselines.read(path)
    line = {
        "date": "2026-01-01",
        "commit": "c",
        "dirty": False,
        "hardware": "cpu-x86_64-2",
        "record": "r",
        "metrics": {"p_ap": 0.5},
    }
    lines = [json.dumps(line | {"record": str(number)}) for number in range(5)]
    file = tmp_path / "h.jsonl"

    def attack(rng: random.Random) -> None:
        broken = rng.randrange(5)
        wound = damaged(lines[broken].encode(), rng).replace(b"\n", b" ")
        file.write_bytes(b"\n".join(wound if i == broken else text.encode() for i, text in enumerate(lines)) + b"\n")
        found = history.read(file)
        kept = [item["record"] for item in found]
        assert [name for name in map(str, range(5)) if name != str(broken) and name not in kept] == []
        history.trend(base, found)

    survive(attack, 400, "history")


def test_damaged_tables_of_published_numbers() -> None:
    folder = BASELINE_FOLDER.parent / "reported"
    path = min((p for p in folder.glob("*.json")), key=lambda p: p.stat().st_size)
    document = json.loads(path.read_text(encoding="utf-8"))
    document["entries"] = document["entries"][:5]
    data = json.dumps(document).encode()

    def attack(rng: random.Random) -> None:
        wound = damaged(data, rng) if rng.random() < 0.5 else json.dumps(retyped(document, rng)).encode()
        for entry in reported.parse(wound.decode("utf-8", "replace"), "x.json"):
            assert all(value is None or 0 <= value <= 1 for value in entry.metrics.values())
            hash((entry.method, entry.dataset, entry.setting, entry.shots, entry.category))

    survive(attack, 500, "published numbers")


def test_damaged_results_of_an_unfinished_cell_are_measured_again(tmp_path: Path) -> None:
    """Their numbers become a record's: what is read is what was written, or nothing."""
    result = CategoryResult(
        {"p_ap": 0.5}, {}, {"p_ap": 0.0}, {"normal": 1, "anomalous": 1}, {"image": ["a"], "draws": [[float("nan")]]}, 2, 1.0
    )
    result.write(tmp_path, "nut")
    data = (tmp_path / "nut.json").read_bytes()
    sound = CategoryResult.read(tmp_path, "nut")
    assert sound is not None and sound.metrics == {"p_ap": 0.5}

    def attack(rng: random.Random) -> None:
        wound = damaged(data, rng)
        (tmp_path / "nut.json").write_bytes(wound)
        found = CategoryResult.read(tmp_path, "nut")
        assert found is None or repr(found) == repr(sound)

    survive(attack, 300, "result")


# --- parameters -----------------------------------------------------------------------------------------------------

TEXTS = [
    *(
        "",
        " ",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "-1",
        "0",
        "1",
        "none",
        "None",
        "true",
        "9" * 4000,
        "9" * 5000,
        "0x10",
        "1_0",
        "٣",
        "½",
    ),
    *("0-999999999999", "5-1", "-", "1-", "1,,2", "0;", ";;", "1x", "x1", "1x2x3", "99999999999x1", "\x00", "\ud800", "../../etc"),
    *("a=b", "=", "[1]", "{}", "1e3", "1.5", "__class__", "%s", "1" + ",1" * 20_000),
]
OWN = [name for name in METHODS.names() if METHODS.origin(name) == "inpbench"]


@pytest.mark.parametrize("name", OWN)
def test_any_text_behind_set_is_a_value_or_a_usage_error(name: str) -> None:
    info = METHODS.get(name)
    for key in params.field_types(info.params):
        for text in TEXTS:

            def attack(_: random.Random, key: str = key, text: str = text) -> None:
                made = params.build(name, info.params, {key: text})
                params.plain(made)
                assert made.preprocess

            survive(attack, 1, f"{name}.{key}={text[:40]!r}")


@pytest.mark.parametrize("name", OWN)
def test_parameters_of_a_record_that_anybody_wrote(name: str) -> None:
    """What a hostile or damaged record says its parameters were is checked like what a person types."""
    info = METHODS.get(name)
    sound = params.plain(params.build(name, info.params))

    def attack(rng: random.Random) -> None:
        changed = sound | {rng.choice([*sound, "x"]): rng.choice(VALUES)}
        made = params.build(name, info.params, params.from_plain(changed))
        numbers = [key for key, kind in params.field_types(info.params).items() if kind in (int, float)]
        assert all(isinstance(getattr(made, key), (int, float)) for key in numbers)

    survive(attack, 60, name)


@pytest.mark.parametrize("text", ["", "=", ".", "a", "a=1", ".a=1", "a.=1", "a.b", "a.b=\x00", "a.b.c=1=2"])
def test_settings_of_any_form(text: str) -> None:
    survive(lambda _: params.split_settings([text]), 1, text)


# --- lists that come with data sets -----------------------------------------------------------------------------------


def check(root: Path, found: list[Sample]) -> None:
    """What no scan may ever give: a path outside the root, a file that is not there, another label, an image twice."""
    seen = set()
    for sample in found:
        for path in filter(None, (sample.image, sample.mask)):
            assert not path.startswith("/") and ".." not in path.split("/"), path
            assert (root / path).is_file(), path
        assert sample.label in (-1, 0, 1) and sample.split in ("train", "val", "test")
        assert (sample.category, sample.image, sample.split) not in seen
        seen.add((sample.category, sample.image, sample.split))


def inctrl(root: Path) -> Path:
    trees.mvtec(root, ("nut",))
    of = {"normal": "train/good", "val_normal": "test/good", "val_outlier": "test/hole", "outlier": "test/hole"}
    for end, folder in of.items():
        entries = [
            {"image_path": f"nut/{folder}/{number:03d}.png", "target": int("outlier" in end), "type": "nut"} for number in range(2)
        ]
        (root / f"nut_{end}.json").write_text(json.dumps(entries))
    return root


def headct(root: Path) -> Path:
    raw_trees.headct(root)
    return root


LISTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "visa": (trees.visa_raw, "split_csv/1cls.csv"),
    "real_iad": (trees.real_iad, "realiad_jsons/audiojack.json"),
    "elpv": (trees.elpv, "labels.csv"),
    "headct": (headct, "labels.csv"),
    "inctrl_lists": (inctrl, "nut_val_normal.json"),
}


def table_of(name: str, root: Path) -> Path:
    make, table = LISTS[name]
    make(root)
    found = root / table
    return found if found.is_file() else next(p for p in sorted(root.rglob("*")) if p.suffix in (".csv", ".json"))


@pytest.mark.parametrize("name", LISTS)
def test_damaged_lists_of_data_sets(name: str, tmp_path: Path) -> None:
    table = table_of(name, tmp_path)
    info = DATASETS.get(name)
    data = table.read_bytes()
    scan = resolve(info.scan)

    def attack(rng: random.Random) -> None:
        table.write_bytes(damaged(data, rng))
        found: list[Finding] = []
        check(tmp_path, scan(tmp_path, info.params(), found.append))
        assert all(finding.severity and finding.message for finding in found)

    survive(attack, 150, name)
    table.write_bytes(data)
    assert open_manifest(info, info.params(), tmp_path).samples


@pytest.mark.parametrize("name", ["real_iad", "inctrl_lists"])
def test_json_lists_with_values_of_other_kinds(name: str, tmp_path: Path) -> None:
    table = table_of(name, tmp_path)
    info = DATASETS.get(name)
    document = json.loads(table.read_text())
    scan = resolve(info.scan)

    def attack(rng: random.Random) -> None:
        table.write_text(json.dumps(retyped(document, rng)))
        check(tmp_path, scan(tmp_path, info.params(), lambda _: None))

    survive(attack, 200, name)


OUTSIDE = ["../../etc/passwd", "/etc/passwd", "..\\..\\x", "C:\\x", "a/../../b", "//x", "a\x00b", ""]


@pytest.mark.parametrize("path", OUTSIDE, ids=repr)
@pytest.mark.parametrize("name", ["visa", "real_iad", "elpv", "inctrl_lists"])
def test_paths_in_a_list_never_leave_the_root(name: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("secret")
    root = tmp_path / "deep" / "root"
    table = table_of(name, root)
    text = table.read_text()
    first = {"visa": "candle/Data/Images/Normal/000.JPG", "elpv": "images/cell0000.png", "inctrl_lists": "nut/test/good/000.png"}
    old = first[name] if name in first else json.loads(text)["train"][0]["image_path"]
    assert old in text
    new = path if name in ("visa", "elpv") else json.dumps(path)[1:-1]
    table.write_text(text.replace(old, new, 1), newline="")
    info = DATASETS.get(name)
    with pytest.raises(BenchError) as caught:
        open_manifest(info, info.params(), root)
    assert caught.value.hint
    found: list[Finding] = []
    try:
        check(root, resolve(info.scan)(root, info.params(), found.append))
    except BenchError:
        return  # the whole list is refused (a NUL)
    assert {f.status for f in found if f.severity == "error"} & {"bad_path", "bad_entry"}


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 4096, b"\xff\xfe", b"[" * 50_000, b'{"a":1', b"\xef\xbb\xbf"], ids=lambda c: repr(c[:8])
)
@pytest.mark.parametrize("name", LISTS)
def test_lists_that_are_none(name: str, content: bytes, tmp_path: Path) -> None:
    table = table_of(name, tmp_path)
    for other in tmp_path.rglob(f"*{table.suffix}"):
        other.write_bytes(content)
    info = DATASETS.get(name)
    with pytest.raises(BenchError) as caught:
        open_manifest(info, info.params(), tmp_path)
    assert caught.value.message and caught.value.hint


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_is_a_pipe_is_no_hang(name: str, tmp_path: Path) -> None:
    import os

    from mutations import within

    table = table_of(name, tmp_path)
    for other in tmp_path.rglob(f"*{table.suffix}"):
        other.unlink()
        os.mkfifo(other)
    info = DATASETS.get(name)
    with within(20, name), pytest.raises(BenchError):
        open_manifest(info, info.params(), tmp_path)


def test_a_list_larger_than_any_published_one_is_refused(tmp_path: Path) -> None:
    table = table_of("elpv", tmp_path)
    with table.open("r+b") as file:
        file.truncate(1 << 34)  # 16 GiB, none of it on the disk
    info = DATASETS.get("elpv")
    with pytest.raises(BenchError, match="larger than"):
        open_manifest(info, info.params(), tmp_path)


def test_a_normal_class_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Otherwise every entry would be anomalous."""
    table = table_of("real_iad", tmp_path)
    document = json.loads(table.read_text())
    info = DATASETS.get("real_iad")
    for meta in ([], {"prefix": document["meta"]["prefix"], "normal_class": ["OK"]}, None):
        table.write_text(json.dumps(document | {"meta": meta}))
        with pytest.raises(BenchError, match="meta"):
            open_manifest(info, info.params(), tmp_path)


# --- raw files of pixels ------------------------------------------------------------------------------------------------


def test_damaged_idx_files(tmp_path: Path) -> None:
    from inpbench.datasets.idx_files import read_idx

    raw_trees.mnist_idx(tmp_path, 4, packed=False)
    file = next(p for p in tmp_path.rglob("*idx3*"))
    data = file.read_bytes()

    def attack(rng: random.Random) -> None:
        file.write_bytes(damaged(data[:16], rng) + data[16:] if rng.random() < 0.5 else damaged(data, rng))
        assert read_idx(file, 3).ndim == 3

    refused, _ = survive(attack, 300, "idx")
    assert refused > 100


@pytest.mark.parametrize("binary", [False, True])
def test_damaged_cifar_batches(binary: bool, tmp_path: Path) -> None:
    from inpbench.datasets.cifar_batches import read_batch

    raw_trees.cifar(tmp_path, 2, binary=binary)
    file = sorted(p for p in tmp_path.rglob("data_batch_1*"))[0]
    data = file.read_bytes()

    def attack(rng: random.Random) -> None:
        file.write_bytes(damaged(data[:400], rng) + data[400:] if rng.random() < 0.5 else damaged(data, rng))
        pixels, labels = read_batch(file)
        assert len(pixels) == len(labels) and all(0 <= label < 10 for label in labels)

    refused, _ = survive(attack, 120, "cifar")
    assert refused > 30


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_damaged_images_and_masks(form: str, tmp_path: Path) -> None:
    import warnings

    from inpbench.harness.images import UnreadableError, image_size, read_image, read_mask

    file = tmp_path / "x.img"
    try:
        trees.save(trees.picture(1), file, form)
    except OSError:
        pytest.skip(f"this Pillow writes no {form}")
    data = file.read_bytes()

    def attack(rng: random.Random) -> None:
        file.write_bytes(damaged(data[:60], rng) + data[60:] if rng.random() < 0.5 else damaged(data, rng))
        answers = []
        for read in (read_image, read_mask, image_size):
            try:
                answers.append(read(file))
            except UnreadableError as error:
                answers.append(error)
        if all(isinstance(answer, UnreadableError) for answer in answers):
            raise answers[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survive(attack, 60, form)


def test_the_rounds_can_be_multiplied() -> None:
    assert ROUNDS >= 1
