"""Records: identity, schema, atomic writing, folders of them, and that nothing but RecordError ever comes out of reading."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from recordkit import identity, measured, record

from inpbench.harness import atomic, records
from inpbench.harness.errors import RecordError, UsageError
from inpbench.harness.records import RecordStore, canonical_json, from_bytes, identity_id, new_record, to_text

V1 = Path(__file__).parent / "data" / "records_v1"


# --- identity -------------------------------------------------------------------------------------------------------


def test_identity_id_is_the_sha256_of_sorted_compact_json():
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5]}'
    assert identity_id({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_identity_does_not_depend_on_key_order_or_tuples():
    document = identity()
    assert identity_id(document) == identity_id(dict(reversed(document.items())))
    assert identity_id(identity(categories=("a", "b"))) == identity_id(identity(categories=["a", "b"]))
    assert identity_id(identity(seed=1)) != identity_id(document)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1, 2}, b"x", np.float32(1)])
def test_identity_of_what_json_cannot_say_is_refused(bad):
    with pytest.raises(RecordError):
        identity_id({"a": bad})


# --- one record -----------------------------------------------------------------------------------------------------


def test_round_trip_keeps_every_bit_and_the_key_order():
    made = record(0.1 + 0.2, marks=["built-in encoder"], notes=["ünïcode ☃"])
    text = to_text(made)
    assert text.endswith("}\n") and "ünïcode ☃" in text and "0.30000000000000004" in text
    assert list(json.loads(text))[:4] == ["schema", "id", "status", "label"]
    assert from_bytes(text.encode()) == made
    assert to_text(from_bytes(text.encode())) == text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra": 1}, "unknown keys"),
        ({"status": "partial"}, "status must be"),
        ({"label": 3}, "'label'"),
        ({"marks": [1]}, "'marks'"),
        ({"stamp": []}, "'stamp'"),
        ({"id": "0" * 64}, "edited"),
        ({"identity": {}}, "identity has no"),
        ({"metrics": {}}, "'metrics' must have"),
        ({"metrics": measured() | {"mean": {"i_auroc": "0.9"}}}, "finite number"),
        ({"metrics": measured() | {"mean": {"i_auroc": True}}}, "finite number"),
        ({"metrics": measured() | {"counts": {"a": {"normal": None}}}}, "finite number"),
        ({"error": {"type": "E", "message": "", "traceback": ""}}, "'error' belongs"),
        ({"samples": {"file": "../x.npz", "sha256": ""}}, "plain file name"),
        ({"skipped": [{"file": "a"}]}, "'skipped'"),
        ({"schema": 2}, "has schema 2, this bench reads <= 1"),
        ({"schema": 0}, "which no release has written"),
        ({"schema": True}, "number 'schema'"),
    ],
)
def test_a_wrong_field_is_named(change, words):
    document = record().as_document() | change
    with pytest.raises(RecordError, match=words):
        from_bytes(json.dumps(document).encode())


def test_each_missing_field_is_named():
    for key in record().as_document():
        document = record().as_document()
        del document[key]
        with pytest.raises(RecordError, match=key):
            from_bytes(json.dumps(document).encode())


def test_identity_fields_are_typed():
    for key in identity():
        changed = identity(**{key: 1.5})
        document = record().as_document() | {"identity": changed, "id": identity_id(changed)}
        with pytest.raises(RecordError, match=rf"identity\.{key}"):
            from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "-1e999", "1" * 400, "1" * 5000])
def test_numbers_that_no_float_holds_are_refused(text):
    whole = to_text(record(0.125)).replace("0.125", text, 1)
    with pytest.raises(RecordError):
        from_bytes(whole.encode())


def test_numpy_floats_are_numbers():
    made = record()
    for table in (made.metrics["mean"], *made.metrics["categories"].values()):
        table["p_ap"] = np.float64(0.25)
    assert from_bytes(to_text(made).encode()).mean("p_ap") == 0.25
    made.metrics["mean"]["p_ap"] = np.float32(0.25)
    with pytest.raises(RecordError, match="p_ap"):
        to_text(made)


def test_nan_is_never_written(tmp_path):
    store, made = RecordStore(tmp_path), record()
    made.metrics["mean"]["p_ap"] = float("nan")
    with pytest.raises(RecordError, match="p_ap"):
        store.write(made)
    assert list(tmp_path.rglob("*")) == []


def test_fuzzed_records_give_a_record_or_a_record_error():
    rng = random.Random(0)
    good = to_text(record()).encode()
    words = [b"NaN", b"null", b"[]", b"{}", b"-1", b"1e999", b'"\\ud800"', b"\x00", b"\xff", b"true", b"[" * 3000, b'"a":']
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[place] = rng.randrange(256)
            elif kind == 1:
                del data[place : place + rng.randint(1, 200)]
            elif kind == 2:
                data[place:place] = rng.choice(words)
            else:
                data = data[:place] or bytearray(b" ")
        with contextlib.suppress(RecordError):
            from_bytes(bytes(data))
    for length in range(200):
        with pytest.raises(RecordError):
            from_bytes(rng.randbytes(length))


def test_fuzzed_values_of_any_json_type_give_a_record_or_a_record_error():
    rng = random.Random(1)
    values = [None, True, -1, 1e308, 10**500, "", "\ud800", "../..", [], [[]], {}, {"a": {}}, [None], {"": None}]

    def mutate(node):
        if isinstance(node, dict) and node and rng.random() < 0.9:
            key = rng.choice(list(node))
            return {**node, key: mutate(node[key])}
        if isinstance(node, list) and node and rng.random() < 0.9:
            return [mutate(node[0]), *node[1:]]
        return rng.choice(values)

    for _ in range(1500):
        document = mutate(record().as_document())
        if isinstance(document, dict) and isinstance(document.get("identity"), dict) and rng.random() < 0.5:
            document["id"] = identity_id(document["identity"])
        with contextlib.suppress(RecordError):
            from_bytes(json.dumps(document).encode())


def test_older_schemas_are_brought_up_to_date(monkeypatch):
    def migrate(document):
        document = dict(document)
        document["marks"] = document.pop("warnings")
        return document | {"schema": 1}

    old = record(marks=["m"]).as_document() | {"schema": 0}
    old["warnings"] = old.pop("marks")
    monkeypatch.setitem(records.MIGRATIONS, 0, migrate)
    assert from_bytes(json.dumps(old).encode()) == record(marks=["m"])
    del old["warnings"]
    with pytest.raises(RecordError, match="brought up to date"):
        from_bytes(json.dumps(old).encode())


@pytest.mark.parametrize("path", sorted(V1.rglob("*.json")), ids=lambda path: path.stem)
def test_records_of_schema_1_still_load_and_their_ids_still_follow(path):
    loaded = RecordStore(V1).read(path)
    assert identity_id(loaded.identity) == loaded.id and loaded.id12 == path.stem
    assert RecordStore(V1).path_of(loaded.identity) == path
    assert to_text(loaded) == path.read_text(encoding="utf-8")


def test_there_are_old_records_of_every_status():
    assert {loaded.status for loaded in RecordStore(V1).all()} == {"started", "done", "failed"}


# --- atomic files ---------------------------------------------------------------------------------------------------


def _no_temporaries(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_atomic_write_replaces_and_respects_the_umask(tmp_path):
    path = tmp_path / "a" / "b.json"
    atomic.write_text(path, "old")
    atomic.write_text(path, "nü")
    assert path.read_bytes() == "nü".encode()
    before = os.umask(0o022)
    try:
        atomic.write_bytes(tmp_path / "shared", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o644
    assert _no_temporaries(tmp_path)


@pytest.mark.parametrize(("step", "code"), [("fsync", errno.ENOSPC), ("fsync", errno.EIO), ("replace", errno.EROFS)])
def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, step, code):
    path = tmp_path / "r.json"
    atomic.write_text(path, "old")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(RecordError) as caught:
        atomic.write_text(path, "new")
    assert os.strerror(code) in caught.value.message and str(path) in caught.value.message and caught.value.hint
    assert path.read_text() == "old" and _no_temporaries(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_disk_that_fills_up_in_the_middle_of_a_file(tmp_path):
    """For real: the kernel refuses the bytes beyond the limit."""
    path = tmp_path / "r.json"
    atomic.write_text(path, "old")
    _in_a_process(_write_beyond_the_limit, str(path))
    assert path.read_text() == "old" and _no_temporaries(tmp_path)


def _write_beyond_the_limit(path: str) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        atomic.write_text(Path(path), "x" * 1_000_000)
    except RecordError as error:
        assert "File too large" in error.message
        return
    raise AssertionError("written beyond the limit")


def test_an_interrupt_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    atomic.write_text(path, "old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_text(path, "new")
    assert path.read_text() == "old" and _no_temporaries(tmp_path)


def test_a_file_where_a_folder_is_needed(tmp_path):
    (tmp_path / "toy").write_text("I am a file")
    with pytest.raises(RecordError, match="Cannot write"):
        RecordStore(tmp_path).write(record())
    (tmp_path / "r.json").mkdir()
    with pytest.raises(RecordError, match="Cannot write"):
        atomic.write_text(tmp_path / "r.json", "x")
    assert _no_temporaries(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_read_only_folder(tmp_path):
    """As another user, because root writes anywhere."""
    path = tmp_path / "r.json"
    path.write_text("old")
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        if os.geteuid() != 0:
            with pytest.raises(RecordError, match="Permission denied"):
                atomic.write_text(path, "new")
        else:
            _in_a_process(_write_as_nobody, str(path))
        assert path.read_text() == "old" and _no_temporaries(tmp_path)
    finally:
        tmp_path.chmod(0o755)


def _write_as_nobody(path: str) -> None:
    for folder in Path(path).parents:
        if not os.access(folder, os.X_OK):
            return
    os.setuid(65534)
    try:
        atomic.write_text(Path(path), "new")
    except RecordError as error:
        assert "Permission denied" in error.message and "permissions" in error.hint
        return
    raise AssertionError("a read-only folder was written")


def _in_a_process(target, *arguments) -> None:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join(30)
    assert process.exitcode == 0


def test_a_killed_writer_leaves_the_old_or_the_new_record(tmp_path):
    code = (
        "import sys; from pathlib import Path; from inpbench.harness.atomic import write_text\n"
        "print('go', flush=True)\n"
        "while True:\n"
        "    for letter in 'ab': write_text(Path(sys.argv[1]), letter * 200000)"
    )
    path = tmp_path / "r.json"
    for delay in (0.0, 0.01, 0.05):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=tmp_path)
        assert process.stdout is not None and process.stdout.readline().strip() == b"go"
        while not path.exists():
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        text = path.read_text()
        assert len(text) == 200000 and len(set(text)) == 1


def _write_many(folder: str, seed: int) -> None:
    store = RecordStore(Path(folder))
    for number in range(30):
        store.write(record(0.5 + seed / 100, notes=[f"{seed}-{number}" * 500]))


def test_two_processes_writing_one_record(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(str(tmp_path), seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        listing = RecordStore(tmp_path).all()
        assert not listing.warnings
        reads += len(listing)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(RecordStore(tmp_path).all()) == 1 and _no_temporaries(tmp_path)


# --- the folder -----------------------------------------------------------------------------------------------------


def test_store_writes_finds_and_filters(tmp_path):
    store = RecordStore(tmp_path)
    first, second = record(seed=0), record(seed=1, method="dinomaly")
    path = store.write(first)
    store.write(second)
    assert path == tmp_path / "toy" / "multi_class" / "inp_former" / f"{first.id12}.json" == store.path_of(first.identity)
    assert store.find(first.id) == first and store.find(first.id[:8]) == first
    assert store.find("0" * 64) is None and store.find("../../x") is None and store.find("") is None
    assert [found.label for found in store.all()] == ["dinomaly", "inp_former"]
    assert list(store.all(method=["dinomaly", "x"], status="done")) == [second]
    assert list(store.all(seed=0, dataset=None)) == [first]
    assert len(RecordStore(tmp_path / "absent").all()) == 0


def test_an_ambiguous_beginning_is_refused(tmp_path):
    store = RecordStore(tmp_path)
    made = record()
    store.write(made)
    twin = record(seed=1)
    twin_path = store.write(twin)
    store_find = store.find(made.id[:6])
    assert store_find == made or made.id[:6] == twin.id[:6]
    # A second record whose id begins alike cannot be made, so one is read twice under two names.
    twin_path.rename(twin_path.with_name(made.id[:6] + "000000.json"))
    original = RecordStore.read
    renamed = made.id[:6] + "0" * 58

    class Pretending(RecordStore):
        def read(self, path):
            found = original(self, path)
            found.id = renamed if path.stem.endswith("000000") else found.id
            return found

    with pytest.raises(UsageError, match="fits 2 records"):
        Pretending(tmp_path).find(made.id[:6])


@pytest.mark.parametrize("name", ["{} (copy).json", "{}.old.json", "../copies/{}.json"])
def test_a_copy_of_before_a_cell_was_run_again_is_no_record(tmp_path, name):
    """Its identity is the same and its numbers are the old ones: it may neither be found nor stand in a table."""
    store = RecordStore(tmp_path)
    path = store.write(record(0.5))
    copy = path.parent / name.format(path.stem)
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(path.read_bytes())
    new = record(0.9)
    store.write(new)
    listing = store.all()
    assert [each.mean("i_auroc") for each in listing] == [0.9] and "is a copy" in listing.warnings[0]
    assert store.find(new.id).mean("i_auroc") == 0.9 and store.find(new.id[:8]).mean("i_auroc") == 0.9
    path.unlink()
    assert store.find(new.id) is None and copy.is_file()


def test_broken_and_foreign_files_are_reported_and_kept(tmp_path):
    store = RecordStore(tmp_path)
    path = store.write(record())
    broken = {"empty": b"", "cut": path.read_bytes()[:300], "list": b"[]", "latin": b"\xe9", "newer": b'{"schema": 99}'}
    for name, data in broken.items():
        path.with_name(f"{name}.json").write_bytes(data)
    path.with_name("folder.json").mkdir()
    path.with_name(".x.json.123.tmp").write_bytes(b"{")
    path.with_name("notes.txt").write_text("hello")
    listing = store.all()
    assert len(listing) == 1 and len(listing.warnings) == len(broken) + 1
    assert any("newer.json has schema 99, this bench reads <= 1" in warning for warning in listing.warnings)
    assert all(path.with_name(f"{name}.json").exists() for name in broken)


@pytest.mark.parametrize("name", ["../../../etc", "pkg/mine", "a b/ü", "..", ".hidden", "x" * 300, "mvtec_ad,visa"])
def test_names_never_leave_the_store(tmp_path, name):
    store = RecordStore(tmp_path)
    made = record(method=name, dataset=name)
    path = store.write(made)
    assert path.resolve().relative_to(tmp_path.resolve()).parts[3:] == (path.name,)
    assert list(store.all()) == [made]


def test_paths_that_are_no_utf8_survive(tmp_path):
    odd = os.fsdecode(b"caf\xe9.png")
    made = record(skipped=[{"file": odd, "status": "unreadable", "message": odd}])
    store = RecordStore(tmp_path)
    store.write(made)
    assert store.find(made.id) == made


def test_three_thousand_records_list_quickly(tmp_path):
    first = record()
    text = to_text(first)
    folder = RecordStore(tmp_path).path_of(first.identity).parent
    folder.mkdir(parents=True)
    for seed in range(3000):
        id = identity_id(identity(seed=seed))
        (folder / f"{id[:12]}.json").write_text(
            text.replace(first.id, id).replace('"seed": 0', f'"seed": {seed}'), encoding="utf-8"
        )
    begin = time.process_time()
    listing = RecordStore(tmp_path).all()
    assert len(listing) == 3000 and not listing.warnings
    assert time.process_time() - begin < 6  # about 1 s; the rest is for a busy machine


# --- per-image scores -----------------------------------------------------------------------------------------------

SAMPLES = {
    "bottle": {"image": ["a/é.png", "b.png"], "score": [0.1 + 0.2, -1e300], "label": [0, 1]},
    "câble": {"image": [], "score": [], "label": []},
}


def test_samples_round_trip(tmp_path):
    store, made = RecordStore(tmp_path), record()
    made.samples = store.write_samples(made.identity, SAMPLES)
    store.write(made)
    back = store.read_samples(made)
    assert list(back) == ["bottle", "câble"]
    assert back["bottle"]["score"].tolist() == SAMPLES["bottle"]["score"] and back["bottle"]["score"].dtype == np.float64
    assert back["bottle"]["image"].tolist() == SAMPLES["bottle"]["image"] and back["bottle"]["label"].tolist() == [0, 1]
    assert store.write_samples(made.identity, SAMPLES) == made.samples  # same scores, same bytes
    assert len(store.all()) == 1


def test_a_new_run_keeps_the_old_scores_until_its_record_is_written(tmp_path):
    store, made = RecordStore(tmp_path), record()
    made.samples = store.write_samples(made.identity, SAMPLES)
    store.write(made)
    newer = store.write_samples(made.identity, {"bottle": SAMPLES["bottle"]})
    assert store.read_samples(made)  # a crash here loses nothing
    made.samples = newer
    path = store.write(made)
    assert [file.name for file in path.parent.glob("*.npz")] == [newer["file"]]


def test_changed_missing_and_hostile_scores_are_refused(tmp_path):
    store, made = RecordStore(tmp_path), record()
    with pytest.raises(RecordError, match="no per-image scores"):
        store.read_samples(made)
    made.samples = store.write_samples(made.identity, SAMPLES)
    file = store.path_of(made.identity).with_name(made.samples["file"])
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RecordError, match="not the file"):
        store.read_samples(made)
    file.unlink()
    with pytest.raises(RecordError, match="Cannot read"):
        store.read_samples(made)
    from inpbench.harness.samples import unpack

    pickled = tmp_path / "evil.npz"
    np.savez(pickled, categories=np.asarray(["a"], dtype=object))
    for data in (pickled.read_bytes(), b"", b"PK", os.urandom(100)):
        with pytest.raises(RecordError, match="no file of scores"):
            unpack(data, "x")


# --- imports --------------------------------------------------------------------------------------------------------


def test_no_heavy_import():
    code = (
        "import sys\n"
        "from inpbench.harness import records, stamp, leaderboard, reported, check, baselines, verdicts, tables, samples\n"
        "stamp.make_stamp('cpu')\n"
        "heavy = {'torch', 'numpy', 'pandas', 'sklearn', 'PIL', 'rich', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert answer.returncode == 0, answer.stderr


def test_new_record_computes_its_id():
    made = new_record(identity(categories=("a",)), "x")
    assert made.status == "started" and made.id == identity_id(identity(categories=["a"])) and made.identity["categories"] == ["a"]
    assert from_bytes(to_text(made).encode()) == made
