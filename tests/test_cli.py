"""The command line as a person meets it: exit codes, messages, resume, tables."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from commands import TINY, bench

from inpbench.harness.api import MethodInfo, Preprocess
from inpbench.harness.cli.run import run
from inpbench.harness.cli.run_options import GROUPS
from inpbench.harness.registry import METHODS

RAW = ["run", "--methods", "raw_pixel", *TINY]


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["run", "-m", "inpformer", *TINY], 2, "Unknown method 'inpformer'. Did you mean: inp_former", "bench list methods"),
        (["run", "-m", "raw_pixel", "-d", "mvtech"], 2, "Unknown dataset 'mvtech'. Did you mean: mvtec_ad", "bench list datasets"),
        ([*RAW, "-s", "multi"], 2, "Unknown setting 'multi'", "bench list settings"),
        ([*RAW, "--preset", "slow"], 2, "no preset 'slow'", "bench list methods"),
        ([*RAW, "--set", "raw_pixel.corp_size=3"], 2, "Did you mean: crop_size", "--params"),
        ([*RAW, "--set", "dinomaly.lr=1"], 2, "'dinomaly' is not part of this run", "--set"),
        ([*RAW, "--seeds", "one"], 2, "--seeds takes whole numbers", "--seeds 0,1,2"),
        ([*RAW, "--device", "tpu"], 2, "Unknown device 'tpu'", "--device"),
        ([*RAW, "--shots", "4"], 2, "multi_class has no shots", "few_shot"),
        (["run", "-m", "raw_pixel", "-d", "mvtec_ad"], 3, "mvtec_ad: no data found", "--data-root"),
        (["run", "-m", "raw_pixel", "-d", "folder", "--data-root", "/nowhere"], 3, "/nowhere", "--data-root"),
        (["run", "-m", "inp_former", *TINY], 3, "dinov2_vitb14_reg4_pretrain.pth", "INPBENCH_WEIGHTS"),
        ([*RAW, "-s", "generalist"], 4, "raw_pixel supports", "bench list settings"),
        ([*RAW, "--categories", "wodo"], 2, "Did you mean: wood", "--categories"),
        (["run", "-m", "raw_pixel"], 2, "Missing option '--dataset'", "bench run --help"),
        (["runn"], 2, "runn", "bench --help"),
        (["leaderboard"], 4, "No record", "bench run"),
        (["check", "--baselines", "/nowhere"], 4, "no baselines", "--update"),
    ],
    ids=lambda value: " ".join(word for word in value if word not in TINY) if isinstance(value, list) else "",
)
def test_errors_are_two_lines_that_help(
    arguments: list[str], code: int, message: str, hint: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INPBENCH_RESULTS", str(results))
    outcome = bench(*arguments)
    assert outcome.code == code, outcome.err
    assert message in outcome.err and hint in outcome.err
    assert "Traceback" not in outcome.err
    assert not results.exists(), "an error before the run leaves nothing behind"


def test_dry_run_lists_every_cell_with_its_reason(results: Path) -> None:
    cells = bench(*RAW[:2], "raw_pixel,inp_former", *TINY, "--seeds", "1,2", "--results", results, "--dry-run", "--json").json()[
        "cells"
    ]
    assert [(c["method"], c["seed"], c["status"]) for c in cells] == [
        ("raw_pixel", 1, "todo"),
        ("raw_pixel", 2, "todo"),
        ("inp_former", 1, "impossible"),
        ("inp_former", 2, "impossible"),
    ]
    assert "dinov2_vitb14_reg4_pretrain.pth" in cells[2]["reason"]
    assert not results.exists()


def test_run_then_nothing_to_do(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench(*RAW, "--results", results)
    assert first.code == 0, first.err
    assert "raw_pixel" in first.out and "1 to do" in first.err
    import inpbench.harness.runner as runner

    monkeypatch.setattr(runner, "resolve", lambda target: pytest.fail("a finished cell was built again"))
    again = bench(*RAW, "--results", results)
    assert again.code == 0 and "1 done, 0 to do" in again.err
    assert again.out == first.out
    assert len(list(results.rglob("*.json"))) == 1 and not list(results.rglob("*.work"))


def test_record_says_what_was_run(results: Path) -> None:
    assert bench(*RAW, "--results", results, "--limit", "2").code == 0
    record = json.loads(next(results.rglob("*.json")).read_text())
    assert record["status"] == "done" and record["schema"] == 1
    assert record["identity"]["categories"] == ["weave", "nut"] and record["identity"]["limit"] == 2
    assert record["marks"] == ["limited to 2 images a group"]
    assert set(record["metrics"]["mean"]) == {"i_auroc", "i_ap", "i_f1max", "p_auroc", "p_ap", "p_f1max", "aupro"}
    assert record["metrics"]["counts"]["nut"]["normal"] == 2
    assert record["cost"]["fit_s"] >= 0 and record["cost"]["parameters_trainable"] > 0
    assert record["stamp"]["packages"]["torch"]


def test_seeds_give_mean_and_deviation(results: Path) -> None:
    assert bench(*RAW, "--seeds", "0,1,2", "--results", results).code == 0
    out = bench("leaderboard", "--results", results, "--format", "markdown").out
    assert "±" in out and "| 3 |" in out


@pytest.mark.parametrize("format_", ["terminal", "markdown", "csv", "latex", "json"])
def test_leaderboard_formats(format_: str, results: Path) -> None:
    assert bench(*RAW, "--results", results).code == 0
    for by in ("mean", "category"):
        outcome = bench("leaderboard", "--results", results, "--format", format_, "--by", by)
        assert outcome.code == 0
        shown = outcome.out.replace("\\_", "_")
        assert "raw_pixel" in shown and (by == "mean" or "weave" in shown)


def test_check_learns_compares_and_catches_a_planted_regression(results: Path, tmp_path: Path) -> None:
    assert bench(*RAW, "--results", results).code == 0
    options = ["--results", results, "--baselines", tmp_path / "baselines"]
    (tmp_path / "baselines").mkdir()
    assert bench("check", *options).code == 4, "nothing to compare with is no success"
    assert bench("check", *options, "--update").code == 2, "an update needs a reason"
    assert bench("check", *options, "--update", "--reason", "first").code == 0
    assert bench("check", *options).code == 0
    path = next(results.rglob("*.json"))
    record = json.loads(path.read_text())
    for table in (record["metrics"]["mean"], *record["metrics"]["categories"].values()):
        table["i_auroc"] -= 0.05
    path.write_text(json.dumps(record))
    outcome = bench("check", *options, "--junit", tmp_path / "junit.xml")
    assert outcome.code == 1 and "REGRESSED" in outcome.out
    assert "<failure" in (tmp_path / "junit.xml").read_text()


# --- methods that misbehave -----------------------------------------------------------------------------------------


class Broken:
    """Fails on purpose while fitting."""

    def __init__(self, params: Any, ctx: Any) -> None:
        self.ctx = ctx

    def fit(self, train: Any) -> None:
        raise ZeroDivisionError("on purpose")


class Counting:
    """Mean absolute value; counts its fits, and stops at a chosen category as a killed process would."""

    fits: ClassVar[list[str]] = []
    stop_at = ""

    def __init__(self, params: Any, ctx: Any) -> None:
        self.ctx = ctx

    def fit(self, train: Any) -> None:
        name = "+".join(train.categories)
        Counting.fits.append(name)
        if Counting.stop_at and Counting.stop_at in name:
            raise KeyboardInterrupt

    def predict(self, images: Any) -> Any:
        from inpbench.harness.api import Prediction

        return Prediction(images.abs().mean(1))

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Any) -> None:
        assert not state


class NotANumber(Counting):
    """Returns NaN maps."""

    def predict(self, images: Any) -> Any:
        from inpbench.harness.api import Prediction

        return Prediction(images.mean(1) * float("nan"))


from dataclasses import dataclass  # noqa: E402


@dataclass(frozen=True)
class Params:
    size: int = 64

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(resize=(self.size, self.size), crop=(self.size, self.size))


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch):
    """Put a class of this file into the registry for one test."""

    def put(kind: type) -> str:
        import inpbench.harness.runner as runner

        monkeypatch.setattr(runner, "resolve", lambda target: kind)
        METHODS.add(
            MethodInfo(
                name="local", version=1, title="t", target="x:y", params=Params, settings=frozenset({"multi_class", "single_class"})
            )
        )
        return "local"

    Counting.fits, Counting.stop_at = [], ""
    yield put
    METHODS._added.clear()


def test_failure_is_recorded_retried_and_never_ranked(register: Any, results: Path) -> None:
    command = ["run", "-m", register(Broken), *TINY, "--results", results]
    first = bench(*command)
    assert first.code == 1 and "ZeroDivisionError: on purpose" in first.err
    record = json.loads(next(results.rglob("*.json")).read_text())
    assert record["status"] == "failed" and "ZeroDivisionError" in record["error"]["traceback"]
    again = bench(*command)
    assert again.code == 1 and "failed before with ZeroDivisionError" in again.err.replace("\n", " ")
    assert "failed" in again.out and "I-AUROC" not in [
        line.split()[0] for line in again.out.splitlines() if line.startswith("local ")
    ]


def test_nan_scores_are_an_error_that_names_the_category(register: Any, results: Path) -> None:
    outcome = bench("run", "-m", register(NotANumber), *TINY, "--results", results)
    assert outcome.code == 1 and "weave" in outcome.err and "NaN" in outcome.err


def test_interrupted_single_class_goes_on_where_it_was(register: Any, results: Path) -> None:
    command = ["run", "-m", register(Counting), *TINY, "-s", "single_class", "--results", results]
    Counting.stop_at = "nut"
    assert bench(*command).code == 130
    assert Counting.fits == ["weave", "nut"]
    record = json.loads(next(results.rglob("local/*.json")).read_text())
    assert record["status"] == "started"
    Counting.stop_at = ""
    outcome = bench(*command)
    assert outcome.code == 0 and "was interrupted" in outcome.err.replace("\n", " ")
    assert Counting.fits == ["weave", "nut", "nut"], "weave is not trained again"


def test_force_runs_again(register: Any, results: Path) -> None:
    command = ["run", "-m", register(Counting), *TINY, "--results", results]
    assert bench(*command).code == 0 and bench(*command, "--force").code == 0
    assert Counting.fits == ["weave+nut"] * 2


@pytest.mark.parametrize("kind", ["methods", "datasets", "settings", "metrics", "encoders"])
def test_lists(kind: str) -> None:
    assert bench("list", kind).code == 0
    rows = bench("list", kind, "--json").json()
    assert rows and all(row["name"] for row in rows)


def test_help_is_whole_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = bench("run", "--help").out
    assert all(len(line) <= 80 for line in text.splitlines()) and "…" not in text
    assert "Data:\n  --data-root DIR|NAME=DIR" in text and text.rstrip().splitlines()[-1].lstrip().startswith("-h, --help")
    for whole in ("--pixel-cache / --no-pixel-cache", "<exact|paper|dinomaly|crr>", "$INPBENCH_DATA/NAME"):
        assert whole in text
    assert "Read" in bench("--help").out and "--data-root" in bench("data", "verify", "--help").out
    monkeypatch.setenv("COLUMNS", "160")
    assert "╭─ Weights and models ─" in bench("run", "--help").out


def test_every_option_of_run_is_in_one_group_of_its_help() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(inspect.signature(run).parameters)


def test_every_encoder_that_a_method_takes_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row["name"]: row for row in bench("list", "encoders", "--json").json()}
    assert rows["resnet18"]["file"] == "resnet18-f37072fd.pth" and rows["wide_resnet50_2"]["only"] == "patchcore"
    assert bench("run", "-m", "patchcore", "--encoder", "resnet18", "--weights", "random", *TINY, "--dry-run").code == 0
    monkeypatch.setenv("COLUMNS", "80")
    shown = bench("list", "encoders").out.splitlines()
    assert {"dinov2reg_vit_large_14", "wide_resnet50_2"} <= {line.split()[0] for line in shown} and max(map(len, shown)) <= 80
    assert any("super_multi_class" in line for line in bench("list", "methods").out.splitlines()), "words stay whole"


def test_list_of_parameters() -> None:
    rows = {row["parameter"]: row for row in bench("list", "methods", "--params", "inp_former", "--json").json()}
    assert rows["inp_num"]["default"] == 6 and rows["batch_size"]["default"] == 16 and "images" in rows["batch_size"]["meaning"]
    shown = bench("list", "methods", "--params", "inp_former").out
    assert "centre crop" in shown and "smoke" in shown and "crop_size=112" in shown, "as --set takes it"


def test_data_verify_and_show(tmp_path: Path) -> None:
    settings = [argument for argument in TINY if argument not in ("--dataset", "synthetic", "--categories", "weave,nut")]
    report = bench("data", "verify", "synthetic", *settings, "--json").json()
    assert report["ok"] and report["counts"]["nut"]["train"]["good"] == 6
    sheet = tmp_path / "sheet.png"
    outcome = bench("data", "show", "synthetic", *settings, "--out", sheet)
    assert outcome.code == 0 and sheet.stat().st_size > 1000


def test_doctor() -> None:
    rows = bench("doctor", "--json").json()
    assert {"python", "torch", "cuda", "results", "cache"} <= {row["what"] for row in rows}


def test_doctor_says_the_same_of_many_once() -> None:
    from inpbench.harness.cli.doctor import _joined

    def row(ok: bool | None, what: str, detail: str, advice: str = "") -> dict[str, object]:
        return {"ok": ok, "what": what, "detail": detail, "advice": advice}

    alone = [row(True, "visa: data", "there"), row(True, "elpv: data", "there"), row(None, "threads", "1"), row(None, "cuda", "1")]
    missing = [row(None, f"{name}: data", "not found", f"Type: bench data show {name}") for name in ("sdd", "mpdd")]
    assert _joined([*alone, missing[0]]) == [*alone, missing[0]], "one row stays as it is"
    assert _joined([*alone, *missing])[-1] == row(None, "2 x data", "sdd, mpdd: not found", "Type: bench data show NAME")


# --- models ---------------------------------------------------------------------------------------------------------

SMOKE = ["run", "--methods", "inp_former", "--encoder", "builtin", "--preset", "smoke", *TINY]


def test_export_official_and_test_it(results: Path, tmp_path: Path) -> None:
    assert bench(*SMOKE, "--results", results).code == 0
    record = json.loads(next(results.rglob("inp_former/*.json")).read_text())
    model = tmp_path / "model.pth"
    outcome = bench("export", record["id"][:8], "--results", results, "--out", model)
    assert outcome.code == 0, outcome.err
    again = bench(*SMOKE, "--checkpoint", model, "--results", tmp_path / "again")
    assert again.code == 0, again.err
    tested = json.loads(next((tmp_path / "again").rglob("*.json")).read_text())
    assert tested["identity"]["checkpoint"].startswith("sha256:")
    assert tested["metrics"]["mean"] == record["metrics"]["mean"]


def test_export_errors(results: Path, tmp_path: Path) -> None:
    assert bench(*RAW, "--results", results, "--no-keep-models").code == 0
    id12 = next(results.rglob("raw_pixel/*.json")).stem
    missing = bench("export", "0123456789", "--results", results, "--out", tmp_path / "m")
    assert missing.code == 4 and "No record" in missing.err
    not_kept = bench("export", id12, "--results", results, "--out", tmp_path / "m")
    assert not_kept.code == 3 and "--no-keep-models" in not_kept.err


def test_hostile_checkpoint_is_refused(results: Path, tmp_path: Path) -> None:
    import os
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "model.pth").write_bytes(pickle.dumps(Evil()))
    outcome = bench(*SMOKE, "--checkpoint", tmp_path / "model.pth", "--results", results)
    assert outcome.code == 1 and "model.pth" in outcome.err
    assert not (tmp_path / "owned").exists()


def test_checkpoint_is_for_one_model(results: Path, tmp_path: Path) -> None:
    outcome = bench(*SMOKE, "-s", "single_class", "--checkpoint", tmp_path / "m.pth", "--results", results)
    assert outcome.code == 2 and "one model" in outcome.err
