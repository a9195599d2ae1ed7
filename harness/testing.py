"""The conformance kit: named checks that every method passes, ours and third parties'.

    for check in checks("my_method"):
        check()                       # raises AssertionError with the reason

Methods are built with their cheapest preset (`smoke`, else the defaults), the built-in encoder where they take one, and a few
images of stripes held in memory, in multi_class or the first setting they have; a method that is told the category enters one. One
trained method serves all checks that only look at it. `bench doctor NAME` and pytest run the same checks, seconds each on one core.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from inpbench.harness import params as parameters
from inpbench.harness.api import Alone, Context, MethodInfo, Ranks, WeightSpec
from inpbench.harness.registry import METHODS, resolve
from inpbench.harness.settings import SETTINGS, Setting
from inpbench.harness.stripes import Stripes

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4  # relative, float32: batch of 1 against batch of 4
SPREAD_TOLERANCE = 1e-3  # relative, float32: one process against two, which add in another order (ours: 1e-7)


class NoWeights:
    """Weights of a conformance run: built-in ones only; pretrained files are neither needed nor looked for."""

    def state(self, spec: WeightSpec) -> dict[str, Tensor] | None:
        """None: random weights, which is enough to check a contract (and nothing else)."""
        return None


@dataclass
class MemorySnapshots:
    """Snapshots held in memory, through torch's own serialisation, so that what is saved can be loaded safely."""

    content: bytes | None = None
    always: bool = False
    saved: int = 0
    stop_after: int | None = None  # raise `Stopped` after so many saves: a killed process

    def due(self) -> bool:
        """Whether to save at every opportunity."""
        return self.always

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a copy."""
        import io

        import torch

        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.content = buffer.getvalue()
        self.saved += 1
        if self.stop_after is not None and self.saved >= self.stop_after:
            raise StoppedError

    def load(self) -> dict[str, Any] | None:
        """The last copy."""
        import io

        import torch

        if self.content is None:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(self.content), weights_only=True)
        return state


class StoppedError(Exception):
    """Stands for kill -9 in a check."""


def _shots(setting: Setting) -> int:
    return setting.shots[0] if setting.shots else 0


class Bench:
    """Builds a method the way the runner does, small and in memory."""

    _learned: ClassVar[dict[Bench, Any]] = {}

    def __init__(self, info: MethodInfo) -> None:
        encoder = {"encoder": "builtin"} if "encoder" in parameters.field_types(info.params) else {}
        self.info = info
        usable = [name for name in SETTINGS if name in info.settings]
        self.setting = SETTINGS["multi_class" if "multi_class" in usable or not usable else usable[0]]
        self.params = parameters.build(info.name, info.params, info.presets.get("smoke", {}), encoder)

    def make(
        self, *, seed: int = 1, snapshots: MemorySnapshots | None = None, setting: Setting | None = None, ranks: Ranks | None = None
    ) -> Any:
        """A fresh, untrained method."""
        import torch

        from inpbench.harness.runner import seed_everything

        setting = setting or self.setting
        seed_everything(seed)
        context = Context(
            device=torch.device("cpu"),
            dtype=torch.float32,
            seed=seed,
            setting=setting.name,
            weights=NoWeights(),
            snapshots=snapshots or MemorySnapshots(),
            progress=lambda done, total, text="", **numbers: None,
            shots=_shots(setting),
            ranks=ranks or Alone(),
        )
        return resolve(self.info.target)(self.params, context)

    def train_set(self, setting: Setting | None = None) -> Stripes:
        """Twenty images: more than one batch of the presets' sizes, with a remainder; four anomalous ones in generalist.

        In few_shot k images of each category.
        """
        import torch

        setting = setting or self.setting
        count = 2 * _shots(setting) if setting.shots and not setting.anomalies else 20
        return Stripes(self.params.preprocess.crop, count, torch.float32, anomalies=setting.anomalies)

    def references(self, category: str, setting: Setting | None = None) -> Stripes | None:
        """Normal images of one category, as the setting allows."""
        import torch

        setting = setting or self.setting
        if setting.source and not setting.shots:
            return None
        first, count = Stripes.categories.index(category), _shots(setting) or 5
        numbers = range(first, first + 2 * count, 2)
        return Stripes(self.params.preprocess.crop, count, torch.float32, numbers=numbers)

    def fitted(self, *, setting: Setting | None = None, **options: Any) -> Any:
        """A method after `fit` (where it learns), told the first category where it wants to know it."""
        setting = setting or self.setting
        method = self.make(setting=setting, **options)
        if setting.name not in self.info.untrained:
            method.fit(self.train_set(setting))
        if self.info.told_category:
            method.enter(Stripes.categories[0], self.references(Stripes.categories[0], setting))
        return method

    def learned(self, setting: Setting | None = None) -> Any:
        """What `fitted` gives, one for all checks that leave it as it was. One bench at a time keeps one: methods are large."""
        if setting not in (None, self.setting):
            return self.fitted(setting=setting)
        if self not in Bench._learned:
            Bench._learned.clear()
            Bench._learned[self] = self.fitted()
        return Bench._learned[self]

    def images(self, count: int = 4) -> Tensor:
        """Test images (count, 3, H, W), every second with a spot."""
        import torch

        stripes = Stripes(self.params.preprocess.crop, 100, torch.float32)
        return torch.stack([stripes.image(50 + i, spot=i % 2 == 1) for i in range(count)])


def check_info(bench: Bench) -> None:
    """The info is complete: frozen JSON-able params, known settings, a `paper` preset, presets that build."""
    info = bench.info
    assert dataclasses.is_dataclass(info.params), "params is not a dataclass"
    assert info.params.__dataclass_params__.frozen, "params is not frozen"  # type: ignore[attr-defined]
    json.dumps(parameters.plain(info.params()))
    unknown = (info.settings | info.untrained) - set(SETTINGS)
    assert not unknown, f"unknown settings: {sorted(unknown)}"
    assert info.settings, "it supports no setting"
    assert info.untrained <= info.settings, f"untrained in settings that it has not: {sorted(info.untrained - info.settings)}"
    prompted = [name for name in info.settings if SETTINGS[name].anomalies]
    assert info.told_category or not prompted, f"{prompted} shows normal images through `enter`: told_category must be True"
    assert info.presets.get("paper") == {}, "the preset `paper` must be the defaults: {}"
    for name, preset in info.presets.items():
        assert hasattr(parameters.build(info.name, info.params, preset), "preprocess"), f"preset {name}: params have no preprocess"


def check_shapes(bench: Bench) -> None:
    """The map is (B, h, w) and score (B,) or None, finite, without gradient."""
    import torch

    prediction = bench.learned().predict(bench.images(3))
    shape = tuple(prediction.amap.shape)
    assert len(shape) == 3 and shape[0] == 3, f"amap has shape {shape}, expected (3, h, w)"
    assert torch.isfinite(prediction.amap).all(), "amap has NaN or infinite values"
    assert not prediction.amap.requires_grad, "amap carries a gradient"
    if prediction.score is not None:
        assert prediction.score.shape == (3,), f"score has shape {tuple(prediction.score.shape)}, expected (3,)"


def check_batch_invariance(bench: Bench) -> None:
    """One image gives the same map alone and in a batch, in any order."""
    import torch

    method, images = bench.learned(), bench.images(4)
    together = method.predict(images).amap
    alone = torch.cat([method.predict(image[None]).amap for image in images])
    reverse = method.predict(images.flip(0)).amap.flip(0)
    scale = together.abs().max().clamp_min(1e-12)
    for name, other in (("alone", alone), ("in reverse order", reverse)):
        worst = ((together - other).abs().max() / scale).item()
        assert worst <= TOLERANCE, f"maps differ by {worst:.2e} (relative) when predicted {name}"


def check_seed(bench: Bench) -> None:
    """The same seed gives the same bits."""
    import torch

    first, second = (method.predict(bench.images()).amap for method in (bench.learned(), bench.fitted()))
    assert torch.equal(first, second), f"two runs of one seed differ by {(first - second).abs().max():.2e}"


def check_state(bench: Bench) -> None:
    """state() -> load_state() into a fresh method gives the same maps, bit for bit."""
    import torch

    method = bench.learned()
    # Random weights in the place of a file are a function of the seed, and no part of the state.
    drawn = any(spec.source == "file" for spec in bench.info.weights(bench.params))
    copy = bench.make(seed=1 if drawn else 9)
    copy.load_state({key: value.clone() for key, value in method.state().items()})
    if bench.info.told_category:
        copy.enter(Stripes.categories[0], None)  # what it was shown is a part of its state
    first, second = method.predict(bench.images()).amap, copy.predict(bench.images()).amap
    assert torch.equal(first, second), "maps differ after a state round trip"


def check_resume(bench: Bench) -> None:
    """A fit stopped at its first snapshot and taken up again gives the same maps, bit for bit."""
    import torch

    whole = bench.learned()
    snapshots = MemorySnapshots(always=True, stop_after=1)
    with contextlib.suppress(StoppedError):
        bench.fitted(snapshots=snapshots)
    if snapshots.saved == 0:
        return  # a method that takes no snapshots starts anew, which is the same thing
    snapshots.stop_after = None
    again = bench.fitted(snapshots=snapshots)
    assert torch.equal(whole.predict(bench.images()).amap, again.predict(bench.images()).amap), "a resumed fit gives other maps"


def check_purity(bench: Bench) -> None:
    """predict() changes neither its input nor the method."""
    import torch

    method, images = bench.learned(), bench.images()
    before = images.clone()
    first = method.predict(images).amap.clone()
    assert torch.equal(images, before), "predict() changed its input"
    assert torch.equal(first, method.predict(images).amap), "a second predict() gives other maps"


def check_category(bench: Bench) -> None:
    """`enter` and `told_category` go together; categories do not mix, and what was seen of one is kept."""
    import torch

    target = resolve(bench.info.target)
    assert hasattr(target, "enter") == bench.info.told_category, "`enter` and MethodInfo.told_category do not agree"
    if not bench.info.told_category:
        return
    method, (one, other), images = bench.fitted(), Stripes.categories, bench.images()
    first = method.predict(images).amap.clone()
    method.enter(other, bench.references(other))
    method.predict(images)
    method.enter(one, None)
    again = method.predict(images).amap
    assert torch.equal(first, again), f"maps of '{one}' differ after '{other}' was entered and left"


def check_settings(bench: Bench) -> None:
    """Every declared setting runs, and every other one is refused with a reason."""
    import torch

    from inpbench.harness.plan import unsupported

    for setting in SETTINGS.values():
        if setting.name not in bench.info.settings:
            assert unsupported(bench.info, setting), f"{setting.name} is not declared, and not refused"
            continue
        prediction = bench.learned(setting).predict(bench.images(2))
        assert torch.isfinite(prediction.amap).all(), f"{setting.name}: amap has NaN or infinite values"


def check_parallel(bench: Bench) -> None:
    """A method that is called parallel learns the same in each of two processes, what it learns in one, and parts the work."""
    import torch

    if not bench.info.parallel:
        return
    from inpbench.harness.ranks_in_turn import OutOfStepError, in_turn

    learners = [SETTINGS[name] for name in SETTINGS if name in bench.info.settings - bench.info.untrained]
    assert learners, "it is called parallel, and learns from no image in any setting"
    setting = bench.setting if bench.setting in learners else learners[0]
    try:
        (first, calls), (second, _) = in_turn(lambda ranks: (bench.fitted(setting=setting, ranks=ranks), ranks.calls))
    except OutOfStepError as error:
        raise AssertionError(f"fit() of two processes is out of step: {error}") from error
    assert calls, "it is called parallel, and fit() never calls ctx.ranks: every process would do all of the work"
    one, other = first.state(), second.state()
    both = one.keys() & other.keys()
    apart = (one.keys() ^ other.keys()) | {key for key in both if not torch.equal(one[key], other[key])}
    assert not apart, f"two processes end with different {min(apart)}"
    alone, found = bench.learned(setting).predict(bench.images()).amap, first.predict(bench.images()).amap
    worst = ((alone - found).abs().max() / alone.abs().max().clamp_min(1e-12)).item()
    assert worst <= SPREAD_TOLERANCE, f"maps of two processes differ by {worst:.2e} (relative) from those of one"


def check_trace(bench: Bench) -> None:
    """Training and predicting leave torch as it was: gradients, default dtype and device, precision, determinism, threads."""
    before = _torch_state()
    method = bench.fitted()
    assert _torch_state() == before, f"fit() leaves a trace: {_differences(before, _torch_state())}"
    method.predict(bench.images(2))
    assert _torch_state() == before, f"predict() leaves a trace: {_differences(before, _torch_state())}"


def _torch_state() -> dict[str, Any]:
    """What a method could leave changed for the next one."""
    import torch

    return {
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.enabled),
        "threads": torch.get_num_threads(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled(),
    }


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name])


def check_selection(bench: Bench) -> None:
    """`params.selection` is `last` or `oracle`; the defaults look at no test label, and an oracle has `consult`."""
    for name, preset in bench.info.presets.items():
        params = parameters.build(bench.info.name, bench.info.params, preset)
        selection = getattr(params, "selection", "last")
        assert selection in ("last", "oracle"), f"preset {name}: selection is {selection!r}, expected last or oracle"
        assert selection == "last" or hasattr(resolve(bench.info.target), "consult"), f"preset {name}: an oracle without `consult`"
        assert selection == "last" or name != "paper", "the defaults are tuned on test labels"


CHECKS: tuple[Callable[[Bench], None], ...] = (
    check_info,
    check_trace,  # before the other checks leave the trace themselves
    check_shapes,
    check_batch_invariance,
    check_seed,
    check_state,
    check_resume,
    check_purity,
    check_category,
    check_settings,
    check_selection,
    check_parallel,
)


@dataclass(frozen=True)
class Check:
    """One check bound to one method; call it. `name` reads like `batch_invariance`."""

    method: str
    name: str
    run: Callable[[], None]
    doc: str

    def __call__(self) -> None:
        """Run the check; raises AssertionError with the reason."""
        self.run()


def checks(name: str) -> list[Check]:
    """All checks of a registered method."""
    bench = Bench(METHODS.get(name))
    return [
        Check(name, check.__name__.removeprefix("check_"), lambda check=check: check(bench), (check.__doc__ or "").strip())  # type: ignore[misc]
        for check in CHECKS
    ]
