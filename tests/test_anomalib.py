"""The adapter for anomalib's models: names and parameters without anomalib, and the fit against stand-ins for it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, Literal

import fake_anomalib
import pytest
import timm
import torch
from commands import TINY, bench
from fake_anomalib import Padim, Score, Trainer
from methodkit import Stripes, make_context

from inpbench.harness import params as parameters
from inpbench.harness import testing
from inpbench.harness.errors import PrerequisiteError, UsageError, WeightsError
from inpbench.harness.registry import METHODS
from inpbench.harness.weights import WeightStore
from inpbench.methods import anomalib as adapter
from inpbench.methods.anomalib.arguments import constructor_arguments, parse


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_anomalib.install(monkeypatch)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(adapter, "version", version)


def build(name: str = "anomalib.padim", preset: str = "paper", **changes: Any) -> Any:
    info = METHODS.get(name)
    small = {"input_size": "32", "crop_size": "32", "batch_size": "4"}
    return parameters.build(info.name, info.params, info.presets[preset], small, changes)


def make(name: str = "anomalib.padim", **changes: Any) -> Any:
    from inpbench.methods.anomalib.method import AnomalibModel

    return AnomalibModel(build(name, **changes), make_context(dtype=torch.float32))


# --- names and parameters -------------------------------------------------------------------------------------------


def test_a_member_is_known_without_importing_anomalib() -> None:
    info = METHODS.get("anomalib.inp_former")
    assert info.name == "anomalib.inp_former" and info.presets["paper"] == {} and METHODS.origin(info.name) == "inpbench"
    defaults = {"input_size": (448, 448), "crop_size": (392, 392), "max_epochs": 200, "max_steps": None, "batch_size": 16}
    found = parameters.plain(info.params())
    assert all(parameters.plain(info.params())[key] == (list(v) if isinstance(v, tuple) else v) for key, v in defaults.items())
    assert found["model"] == "InpFormer" and found["arguments"] == []
    if importlib.util.find_spec("anomalib") is None:
        assert "anomalib" not in sys.modules


def test_any_class_is_reached_by_its_name() -> None:
    assert METHODS.get("anomalib.Padim").params().max_epochs == 1
    assert METHODS.get("anomalib.SomethingNew").params().model == "SomethingNew"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("anomalib.padm", "Did you mean: padim"),
        ("anomalb.padim", "Did you mean: anomalib.padim"),
        ("anomalib", "a family of 29 methods: anomaly_dino, cfa"),
        ("padim", "Did you mean: anomalib.padim"),
        ("no_such_method", "raw_pixel, 29 of anomalib."),
    ],
)
def test_other_names_are_refused_with_the_closest(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        METHODS.get(name)


@pytest.mark.parametrize("name", adapter.MODELS)
def test_every_preset_of_every_member_builds(name: str) -> None:
    info = METHODS.get(f"anomalib.{name}")
    for preset in info.presets.values():
        params = parameters.build(info.name, info.params, preset)
        assert params.preprocess.mean == (0.0, 0.0, 0.0) and params.preprocess.std == (1.0, 1.0, 1.0)


@pytest.mark.usefixtures("fake")
def test_other_keys_are_the_constructors_and_stand_in_the_record() -> None:
    params = build(n_features="50", backbone="resnet34")
    assert params.arguments == ("backbone=resnet34", "n_features=50") and params.given["backbone"] == "resnet34"
    info = METHODS.get("anomalib.padim")
    assert parameters.label(info.name, "paper", build(n_features="50"), build()) == "anomalib.padim(n_features=50)"
    again = parameters.build(info.name, info.params, parameters.from_plain(parameters.plain(params)))
    assert again == params and parameters.plain(params)["version"] == "2.7.0"
    replaced = parameters.build(info.name, info.params, {"arguments": ("n_features=1", "x=2")}, {"n_features": "3"})
    assert replaced.arguments == ("n_features=3", "x=2")


def test_parameters_of_another_version_are_refused(fake: None) -> None:
    with pytest.raises(PrerequisiteError, match=r"with anomalib 2\.6\.0, installed is 2\.7\.0") as caught:
        build(version="2.6.0")
    assert caught.value.hint == "Type: pip install anomalib==2.6.0"


@pytest.mark.parametrize("changes", [{"crop_size": "64"}, {"batch_size": "0"}, {"max_epochs": "none"}])
def test_values_that_do_not_go_together(changes: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        build(**changes)


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("3", int | None, 3),
        ("none", int | None, None),
        ("0.5", float, 0.5),
        ("false", bool, False),
        ("layer1,layer2", list[str], ["layer1", "layer2"]),
        ("1, 2", tuple[int, int], (1, 2)),
        ("2,3,4", tuple[int, ...], (2, 3, 4)),
        ("nll", Score | str, Score.NLL),
        ("other", Score | str, "other"),
        ("./here", Path | str, Path("./here")),
        ("b", Literal["a", "b"], "b"),
    ],
)
def test_texts_are_read_by_the_declared_type(text: str, kind: Any, expected: Any) -> None:
    assert parse(text, kind) == expected


@pytest.mark.parametrize(
    ("text", "kind"), [("x", int), ("maybe", bool), ("1", tuple[int, int]), ("c", Literal["a"]), ("1", dict[str, int])]
)
def test_texts_that_do_not_fit_are_refused(text: str, kind: Any) -> None:
    with pytest.raises(ValueError, match=text):
        parse(text, kind)


def test_a_constructors_arguments_are_checked_by_name_and_type() -> None:
    found = constructor_arguments(Padim, {"layers": "a,b", "score_type": "nll", "n_features": "7"}, "anomalib.padim")
    assert found == {"layers": ("a", "b"), "score_type": Score.NLL, "n_features": 7}
    with pytest.raises(UsageError, match="Did you mean: n_features"):
        constructor_arguments(Padim, {"n_feature": "7"}, "anomalib.padim")
    with pytest.raises(UsageError, match="n_features: expected"):
        constructor_arguments(Padim, {"n_features": "many"}, "anomalib.padim")
    with pytest.raises(UsageError, match="no parameter 'evaluator'"):
        constructor_arguments(Padim, {"evaluator": "x"}, "anomalib.padim")


# --- the command line -----------------------------------------------------------------------------------------------


def test_without_anomalib_the_other_methods_still_run(absent: None, tmp_path: Path) -> None:
    command = ["run", *TINY, "--preset", "smoke", "--results", tmp_path, "--methods"]
    alone = bench(*command, "anomalib.padim")
    assert alone.code == 3 and "pip install 'inpbench[anomalib]'" in alone.err
    both = bench(*command, "anomalib.padim,raw_pixel", "--dry-run", "--json").json()
    cells = {cell["method"]: cell["status"] for cell in (both["cells"] if isinstance(both, dict) else both)}
    assert cells == {"anomalib.padim": "impossible", "raw_pixel": "todo"}


def test_weights_are_fetched_only_when_asked_for(fake: None) -> None:
    (spec,) = METHODS.get("anomalib.padim").weights(build(backbone="resnet34"))
    assert spec.name == "resnet34"
    with pytest.raises(WeightsError, match=r"anomalib-2\.7\.0 fetches these weights") as caught:
        WeightStore().identity(spec)
    assert "--download" in caught.value.hint and "--weights random" in caught.value.hint
    assert WeightStore("random").identity(spec) == "random" and WeightStore("random").state(spec) is None
    allowed = WeightStore(download=True)
    assert allowed.identity(spec) == "package:anomalib-2.7.0" and allowed.state(spec) == {}
    assert METHODS.get("anomalib.ganomaly").weights(build("anomalib.ganomaly")) == ()


def test_a_run_by_the_command_line(fake: None, tmp_path: Path) -> None:
    sizes = [f"--set=anomalib.padim.{key}=32" for key in ("input_size", "crop_size")]
    command = ["run", *TINY, "--methods", "anomalib.padim", *sizes, "--set", "anomalib.padim.n_features=5", "--results", tmp_path]
    assert bench(*command, "--weights", "random").code == 0
    (table,) = bench("leaderboard", "--results", tmp_path, "--json").json()
    (row,) = table["rows"]
    assert row["method"] == "anomalib.padim" and row["i_auroc"] is not None and row["marks"] == ["random weights"]
    wrong = bench(*command, "--weights", "random", "--set", "anomalib.padim.n_feature=5")
    assert wrong.code == 1 and "Did you mean: n_features" in " ".join(wrong.err.split())


def test_the_list_names_the_family_and_what_it_needs(absent: None) -> None:
    rows = {row["name"]: row for row in bench("list", "methods", "--json").json()}
    assert "padim" in rows["anomalib.*"]["members"]
    assert "anomalib" in bench("list", "methods").out
    parameters_of = bench("list", "methods", "--params", "anomalib.padim", "--json").json()
    assert [row["default"] for row in parameters_of if row["parameter"] == "max_epochs"] == [1]


# --- fitting and predicting -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
def test_pixels_are_normalised_once_and_resized_by_us_alone() -> None:
    method, train = make(max_epochs="2"), Stripes((32, 32), 10)
    method.fit(train)
    images = train.batch(range(10))
    seen = torch.cat(method.module.seen[:3])
    assert seen.shape == (10, 3, 32, 32)
    torch.testing.assert_close(seen.sum(0), ((images - 0.5) / 0.25).sum(0))
    mean = ((images - 0.5) / 0.25).mean((0, 2, 3))[:, None, None]
    prediction = method.predict(images[:2])
    expected = ((images[:2] - 0.5) / 0.25 - mean).abs().mean(1)
    torch.testing.assert_close(prediction.amap, expected)
    torch.testing.assert_close(prediction.score, expected.amax((1, 2)))
    sizes = [step.size for step in method.module.pre_processor.transform.transforms if hasattr(step, "size")]
    assert sizes == [[32, 32]], "models read their input size from the resize"


@pytest.mark.usefixtures("fake")
def test_the_trainer_gets_our_length_and_the_models_wishes() -> None:
    method = make(max_epochs="3")
    method.fit(Stripes((32, 32), 10))
    trainer = Trainer.last
    asked = {"max_epochs": 3, "max_steps": -1, "gradient_clip_val": 0.1, "devices": 1, "accelerator": "cpu", "logger": False}
    assert {key: trainer.options[key] for key in asked} == asked
    assert trainer.batches == [4, 4, 2] * 3 and trainer.validated == 1
    assert not method.module.training


@pytest.mark.usefixtures("fake")
def test_random_weights_are_random_and_timm_is_itself_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    original = timm.create_model

    def spy(model_name: str, pretrained: bool = False, **others: Any) -> Any:
        asked.append(pretrained)
        return original(model_name, pretrained=False, **others)

    monkeypatch.setattr(timm, "create_model", spy)
    make()
    assert asked == [False] and timm.create_model is spy
    context = make_context(dtype=torch.float32)
    context.weights = WeightStore(download=True)
    from inpbench.methods.anomalib.method import AnomalibModel

    AnomalibModel(build(), context)
    assert asked == [False, True]


@pytest.mark.usefixtures("fake")
def test_a_model_without_a_map_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    method, train = make("anomalib.ganomaly", max_epochs="1"), Stripes((32, 32), 4)
    method.fit(train)
    prediction = method.predict(train.batch([0, 1]))
    method.predict(train.batch([0, 1]))
    assert prediction.amap.shape == (2, 1, 1) and torch.equal(prediction.amap[:, 0, 0], prediction.score)
    assert sum("returns no map" in record.message for record in caplog.records) == 1
    nothing = make("anomalib.Nothing", max_epochs="1")
    nothing.fit(train)
    with pytest.raises(UsageError, match="neither a map nor a score"):
        nothing.predict(train.batch([0]))


@pytest.mark.usefixtures("fake")
def test_files_that_do_not_come_are_two_lines() -> None:
    with pytest.raises(PrerequisiteError, match="ConnectionError: no route to host"):
        make("anomalib.Unreachable").fit(Stripes((32, 32), 4))
    with pytest.raises(UsageError, match="no model 'Padimm'"):
        make("anomalib.Padimm")


@pytest.mark.usefixtures("fake")
def test_a_state_that_does_not_fit_is_refused() -> None:
    method = make()
    with pytest.raises(WeightsError, match="missing: mean"):
        method.load_state({"other": torch.zeros(1)})
    with pytest.raises(WeightsError, match="size mismatch"):
        method.load_state({"mean": torch.zeros(5, 1, 1)})


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_the_adapter_keeps_the_contract(check: Callable[[testing.Bench], None]) -> None:
    bench = testing.Bench(METHODS.get("anomalib.padim"))
    bench.params = build(preset="smoke")
    check(bench)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("anomalib") is None, reason="anomalib is not installed (pip install '.[anomalib]')")
@pytest.mark.parametrize("name", ["padim", "stfpm"])
def test_the_real_anomalib(name: str, tmp_path: Path) -> None:
    sizes = [f"--set=anomalib.{name}.{key}=64" for key in ("input_size", "crop_size")]
    outcome = bench(
        "run", *TINY, "--methods", f"anomalib.{name}", "--preset", "smoke", *sizes, "--weights", "random", "--results", tmp_path
    )
    assert outcome.code == 0, outcome.err
