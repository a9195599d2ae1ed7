"""Files from strangers, and folders that are traps: checkpoints, kept models, snapshots, archives, data folders.

Nothing in a file is ever run, nothing fills the memory, nothing hangs; what was changed is refused or noticed.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import random
import resource
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trees
from commands import bench
from interpreter import PYTHON
from mutations import damaged as wounded
from mutations import survive, within

from inpbench.harness.category_result import check_names
from inpbench.harness.errors import BenchError, DataError, UsageError, WeightsError
from inpbench.harness.image_files import find_images
from inpbench.harness.manifest import open_manifest
from inpbench.harness.models import read_model, save_model
from inpbench.harness.prompt_files import PromptImages
from inpbench.harness.registry import DATASETS
from inpbench.harness.snapshots import Fitting, FolderSnapshots
from inpbench.harness.user_paths import expanded
from inpbench.harness.weights import WeightStore, read_tensors

STATE = {"layer.weight": torch.arange(600.0).reshape(30, 20), "layer.bias": torch.zeros(30), "steps": torch.tensor(7)}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("inpbench"), "disabled", True)


def same(found: dict[str, Any], wanted: dict[str, Any] = STATE) -> bool:
    return list(found) == list(wanted) and all(torch.equal(found[key], wanted[key]) for key in wanted)


# --- checkpoints ----------------------------------------------------------------------------------------------------


class Runs:
    """A pickle that writes a file when it is loaded the ordinary way."""

    def __init__(self, file: Path, how: str) -> None:
        self.file, self.how = file, how

    def __reduce__(self) -> Any:
        if self.how == "system":
            return os.system, (f"touch {self.file}",)
        if self.how == "eval":
            return eval, (f"open({str(self.file)!r}, 'w')",)
        return Path.write_text, (self.file, "owned")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("how", ["system", "eval", "method"])
@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_payload_is_never_run(form: str, how: str, tmp_path: Path) -> None:
    """As a checkpoint, as encoder weights, as a prompt file and as a snapshot; in each format that torch reads."""
    owned, file = tmp_path / "owned", tmp_path / "x.pth"
    content = {"model": STATE, "epoch": Runs(owned, how)}
    if form == "bare":
        file.write_bytes(pickle.dumps(content["epoch"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError) as caught:
        read_tensors(file)
    assert caught.value.hint
    file.rename(tmp_path / "nut.pt")
    with pytest.raises(DataError):
        PromptImages(tmp_path, "nut", 1, (8, 8), torch.device("cpu"), torch.float32)
    (tmp_path / "nut.pt").rename(tmp_path / "snapshot.pt")
    assert FolderSnapshots(tmp_path).load() is None
    assert not owned.exists(), "the file was run"
    # The payload is a real one: the ordinary reader would run it.
    pickle.loads(pickle.dumps(Runs(owned, how)))
    assert owned.exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_damaged_checkpoints(form: str, tmp_path: Path) -> None:
    """A zip keeps its numbers or is refused. The two other formats hold no checksum: there the record's hash of the file tells."""
    from safetensors.torch import save

    file = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=form == "zip")
    data = save(STATE) if form == "safetensors" else buffer.getvalue()
    file.write_bytes(data)
    assert same(dict(sorted(read_tensors(file).items())), dict(sorted(STATE.items())))

    def attack(rng: random.Random) -> None:
        file.write_bytes(wounded(data[:300], rng) + data[300:] if rng.random() < 0.5 else wounded(data, rng))
        found = read_tensors(file)
        assert all(isinstance(value, torch.Tensor) and value.numel() < 1 << 20 for value in found.values())
        if form == "zip":
            for key in set(found) & set(STATE):
                assert found[key].shape != STATE[key].shape or torch.equal(found[key], STATE[key]), "another number, in silence"

    refused, _ = survive(attack, 150, form)
    assert refused > 50


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.zeros(1).expand(10**12), "shows 4000000000000 bytes of the 4 that are stored"),
        (lambda: torch.zeros(3, device="meta"), "on meta"),
        (lambda: torch.zeros(3).to_sparse(), "sparse"),
        (lambda: torch.zeros(3, dtype=torch.complex64), "complex64"),
        (lambda: torch.zeros(3).to(torch.float8_e4m3fn), "no arithmetic"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "qint8"),
        (lambda: torch.tensor([1.0, float("nan")]), "not finite"),
        (lambda: torch.tensor([float("inf")]), "not finite"),
    ],
)
def test_tensors_that_no_method_can_use(make: Callable[[], torch.Tensor], words: str, tmp_path: Path) -> None:
    torch.save({"good": torch.zeros(3), "bad": make()}, tmp_path / "x.pth")
    with within(20, words), pytest.raises(WeightsError, match="bad") as caught:
        read_tensors(tmp_path / "x.pth")
    assert words in caught.value.message


def test_a_checkpoint_that_is_a_zip_bomb(tmp_path: Path) -> None:
    """torch never compresses, but reads what is compressed: 200 MB of zeros in 200 kB."""
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(5_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert read_tensors(plain)["a"].shape == (5_000_000,)
    with pytest.raises(WeightsError, match=r"its \d+ bytes unpack to 20\d+"):
        read_tensors(bomb)


LARGE = """
import resource, sys, torch
from pathlib import Path
from inpbench.harness.errors import WeightsError
from inpbench.harness.weights import read_tensors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[1:]:
    try:
        read_tensors(Path(file))
        print("read", file)
    except WeightsError:
        pass
print("MiB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_files_that_declare_terabytes_take_no_memory(tmp_path: Path) -> None:
    """Sizes in the header, the shape, the stride, the member of the zip: measured in a process of its own."""
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "stride.pth")
    torch.save({"a": torch.zeros(64)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "legacy.pth").read_bytes()
    assert data.count(b"K@") >= 1
    (tmp_path / "legacy.pth").write_bytes(data.replace(b"K@", b"J\xff\xff\xff\x7f"))
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    (tmp_path / "y.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + bytes(64))
    names = ["stride.pth", "legacy.pth", "x.safetensors", "y.safetensors"]
    answer = subprocess.run(
        [*PYTHON, "-c", LARGE, *(str(tmp_path / n) for n in names)], capture_output=True, text=True, check=False, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    assert "read" not in answer.stdout and int(answer.stdout.split()[-1]) < 300, answer.stdout


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pth")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    with within(20, "a pipe"):
        for path in (tmp_path / "x.pth", tmp_path / "zero.pth", tmp_path):
            with pytest.raises(WeightsError, match="no weight file"):
                WeightStore().read_file(path)
        with pytest.raises(WeightsError):
            read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("change", ["shape", "type", "missing", "extra", "list", "nothing"])
def test_a_state_dict_that_does_not_fit(change: str, tmp_path: Path) -> None:
    """Through the command line: the official checkpoint of the other shape, type or content."""
    from methodkit import make_context

    from inpbench.methods.inp_former import InpFormerParams
    from inpbench.methods.inp_former.method import InpFormer

    small: dict[str, Any] = {"encoder": "builtin", "input_size": (128, 128), "crop_size": (112, 112)}
    state = dict(InpFormer(InpFormerParams(**small), make_context(dtype=torch.float32)).official_state())
    key = next(k for k, v in state.items() if v.is_floating_point() and v.ndim == 2)
    if change == "shape":
        state[key] = state[key][:1]
    elif change == "type":
        state[key] = state[key].to(torch.int64)
    elif change == "missing":
        del state[key]
    elif change == "extra":
        state["stranger"] = torch.zeros(3)
    content = {"list": list(state), "nothing": {}}.get(change, state)
    torch.save(content, tmp_path / "x.pth")
    trees.save(trees.picture(1, (64, 64)), tmp_path / "photo.png")
    outcome = bench(
        *("predict", "-m", "inp_former", "--encoder", "builtin", "--preset", "smoke", "--checkpoint", tmp_path / "x.pth"),
        *("--images", tmp_path / "photo.png", "--out", tmp_path / "out"),
    )
    assert outcome.code == 3 and "Error: " in outcome.err and "Traceback" not in outcome.err, outcome.err
    assert change not in ("shape", "type", "missing") or key in outcome.err, outcome.err
    assert not (tmp_path / "out").exists()


# --- our own tensors ------------------------------------------------------------------------------------------------


def test_damaged_kept_models(tmp_path: Path) -> None:
    save_model(tmp_path, "all", "f" * 64, STATE, Fitting(1.5))
    file = tmp_path / "all.safetensors"
    data = file.read_bytes()
    assert same(dict(sorted(read_model(file).items())), dict(sorted(STATE.items())))

    def attack(rng: random.Random) -> None:
        file.write_bytes(wounded(data[:400], rng) + data[400:] if rng.random() < 0.3 else wounded(data, rng))
        found = read_model(file)
        # Without its hash (a wound in the header) a file is one of an earlier release.
        assert b'"sha256"' not in file.read_bytes() or same(dict(sorted(found.items())), dict(sorted(STATE.items())))

    refused, _ = survive(attack, 150, "model")
    assert refused > 100


def test_one_changed_number_of_a_kept_model_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "all", "f" * 64, STATE)
    file = tmp_path / "all.safetensors"
    data = bytearray(file.read_bytes())
    data[data.index(torch.tensor([123.0]).numpy().tobytes())] ^= 1
    file.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged: its tensors are not those that were saved") as caught:
        read_model(file)
    assert "--force" in caught.value.hint


def test_models_of_earlier_releases_have_no_hash_and_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save

    (tmp_path / "all.safetensors").write_bytes(save(STATE, {"format": "pt", "record": "x"}))
    assert set(read_model(tmp_path / "all.safetensors")) == set(STATE)


@pytest.mark.parametrize("name", ["snapshot.pt", "fitted.pt"])
def test_damaged_snapshots_begin_anew(name: str, tmp_path: Path) -> None:
    """Training goes on from the very numbers that were saved, or from the beginning."""
    snapshots = FolderSnapshots(tmp_path)
    (snapshots.save if name == "snapshot.pt" else snapshots.save_fitted)(STATE)
    data = (tmp_path / name).read_bytes()

    def attack(rng: random.Random) -> None:
        (tmp_path / name).write_bytes(wounded(data, rng))
        fresh = FolderSnapshots(tmp_path)
        found = fresh.load() if name == "snapshot.pt" else fresh.load_fitted()
        assert found is None or same(found)
        assert (found is not None) == fresh.resumed and 0 <= fresh.earlier_s < 60

    survive(attack, 120, name)
    assert (tmp_path / name).with_suffix(".broken").exists(), "what was damaged is set aside, not deleted"


def test_damaged_prompt_files(tmp_path: Path) -> None:
    images = [torch.rand(3, 8, 8) for _ in range(2)]
    torch.save(images, tmp_path / "nut.pt")
    data = (tmp_path / "nut.pt").read_bytes()

    def read() -> PromptImages:
        return PromptImages(tmp_path, "nut", 2, (8, 8), torch.device("cpu"), torch.float32)

    assert torch.equal(read().batch([0, 1]), torch.stack(images))

    def attack(rng: random.Random) -> None:
        (tmp_path / "nut.pt").write_bytes(wounded(data, rng))
        assert torch.equal(read().batch([0, 1]), torch.stack(images))

    survive(attack, 120, "prompts")
    torch.save([torch.full((3, 8, 8), float("nan"))] * 2, tmp_path / "nut.pt")
    with pytest.raises(DataError, match="image 0 holds values that are not finite"):
        read()


# --- folders of images ----------------------------------------------------------------------------------------------


def test_pipes_and_devices_in_a_data_folder_are_no_hang(tmp_path: Path) -> None:
    root = trees.mvtec(tmp_path / "data", ("a",))
    os.mkfifo(root / "a" / "test" / "good" / "pipe.png")
    info = DATASETS.get("folder")
    with within(30, "a pipe"):
        manifest = open_manifest(info, info.params(), root)
        assert len(manifest.samples) == 8 and {f.status for f in manifest.findings} == {"ignored"}
        outcome = bench("data", "verify", "folder", "--data-root", root)
        (root / "a" / "test" / "good" / "zero.png").symlink_to("/dev/zero")
        with pytest.raises(DataError, match=r"zero\.png: unreadable"):
            open_manifest(info, info.params(), root)
    assert outcome.code == 0 and "not a regular file" in outcome.out


def test_pipes_among_the_images_to_predict_are_no_hang(tmp_path: Path) -> None:
    from inpbench.harness.images import UnreadableError, image_size, read_image, read_mask

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with within(20, "a pipe"):
        root, names = find_images(tmp_path)
        assert names == ["pipe.png", "zero.png"]
        for name in names:
            for read in (read_image, read_mask, image_size):
                with pytest.raises(UnreadableError, match="not a regular file"):
                    read(root / name, name)


def test_folders_nested_a_thousand_deep(tmp_path: Path) -> None:
    """Only named folders are listed, to a fixed depth; a folder of images to predict is walked without recursion."""
    root = trees.mvtec(tmp_path / "data", ("a",))
    info = DATASETS.get("folder")
    before = Path.cwd()
    try:
        os.chdir(root / "a" / "test" / "good")
        for _ in range(1200):
            Path("d").mkdir()
            os.chdir("d")
        os.chdir(before)
        with within(30, "deep folders"):
            assert len(open_manifest(info, info.params(), root).samples) == 8
            assert len(find_images(root)[1]) == 10
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", str(root)], check=True)  # Python's own way to remove it ends at a thousand levels, too


def test_a_loop_of_links_among_the_images_to_predict(tmp_path: Path) -> None:
    trees.save(trees.picture(1), tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    with within(20, "a loop"):
        assert find_images(tmp_path)[1] == ["a.png", "self.png"]


NAMES = [
    *("[/red]", "a\nb", "\x1b[31mred\x1b[2J", "x" * 200, "<script>alert(1)<", "$&%_#{}~^", "a|b", "=cmd()", "CON", "-rf"),
    "Ünï\u202ecode",
]


def test_category_names_that_are_traps(tmp_path: Path) -> None:
    """No markup, escape sequence or script of a folder's name does anything in any output."""
    import csv
    import json

    root = trees.mvtec(tmp_path / "data", NAMES)
    results = tmp_path / "runs"
    run = bench(
        "run", "--methods", "raw_pixel", "--preset", "smoke", "--dataset", "folder", "--data-root", root, "--results", results
    )
    assert run.code == 0, run.err
    outputs = {
        form: bench("leaderboard", "--results", results, "--by", "category", "-f", form).out
        for form in ("terminal", "markdown", "latex", "csv", "json")
    }
    page = tmp_path / "r.html"
    assert bench("report", "--results", results, "--out", page).code == 0
    verify = bench("data", "verify", "folder", "--data-root", root)
    assert verify.code == 0
    for text in (run.out, run.err, verify.out, outputs["terminal"]):
        assert "\x1b" not in text
    assert "<script>alert" not in page.read_text(encoding="utf-8") and "\\x1b[31mred" in outputs["terminal"]
    assert "I-AUROC" in outputs["terminal"].splitlines()[5] or "raw_pixel" in outputs["terminal"], "long names hide no number"
    found = {name for table in json.loads(outputs["json"]) for row in table["rows"] for name in map(str, row.values())}
    assert "a|b" in found or "a|b" in outputs["json"]
    rows = list(csv.reader(io.StringIO(outputs["csv"])))
    assert len({len(row) for row in rows if row}) <= 2, "every line of the csv has its columns"


def test_case_collisions_and_long_names(tmp_path: Path) -> None:
    """Two images that differ in case or extension alone are two images; a name as long as the system takes is a name."""
    root = trees.mvtec(tmp_path / "data", ("a",))
    for name in ("X.png", "x.png", "x.PNG", "x.jpg", "é" * 120 + ".png"):
        trees.save(trees.picture(len(name) + ord(name[0])), root / "a" / "test" / "good" / name, "PNG")
    info = DATASETS.get("folder")
    manifest = open_manifest(info, info.params(), root)
    assert len({s.image for s in manifest.samples}) == len(manifest.samples) == 13


def test_categories_that_would_share_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Nut` and `nut` are two files here and one on most Macs, where the numbers of one would be taken for those of the other."""
    root = trees.mvtec(tmp_path / "data", ("Nut", "nut", "weave"))
    run = ("run", "--methods", "raw_pixel", "--preset", "smoke", "--dataset", "folder", "--data-root", root, "--dry-run", "--json")
    run = (*run, "--results", tmp_path / "new" / "runs")
    assert [cell["status"] for cell in bench(*run).json()["cells"]] == ["todo"]
    with monkeypatch.context() as patch:  # as a file system answers that ignores case
        patch.setattr(Path, "exists", lambda path: os.path.lexists(path) or os.path.lexists(path.with_name(path.name.swapcase())))
        patch.setattr(Path, "samefile", lambda path, other: str(path).lower() == str(other).lower())
        refused = bench(*run)
        assert refused.code == 2 and "'Nut' and 'nut' would be one file" in refused.err and "ignores case" in refused.err
        assert bench(*run, "--categories", "nut,weave").code == 0
    check_names(("a/b", "a_c"), tmp_path)
    with pytest.raises(UsageError, match="'a/b' and 'a_b' would have one file name"):
        check_names(("a/b", "a_b"), tmp_path)


def test_a_home_folder_that_nobody_has() -> None:
    with pytest.raises(UsageError, match="does not know") as caught:
        expanded("~no_such_user_at_all/x")
    assert caught.value.hint
    assert expanded("a/b") == Path("a/b")


def test_few_open_files_are_enough(tmp_path: Path) -> None:
    """`ulimit -n 64`, as on some shared machines."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    root = trees.mvtec(tmp_path / "data", ("a", "b"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(64, len(list(Path("/proc/self/fd").iterdir())) + 32), hard))
        outcome = bench(
            *("run", "--methods", "raw_pixel", "--preset", "smoke", "--dataset", "folder", "--data-root", root),
            *("--results", tmp_path / "runs"),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert outcome.code == 0, outcome.err


def test_errors_are_two_lines() -> None:
    """The base of all of the above: what is wrong, and what to type next."""
    assert str(BenchError("what", "type this")) == "what\ntype this"
