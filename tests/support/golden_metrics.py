"""Golden cases of scoring and metrics, checked through the production classes (tolerances: GOLDEN.md beside the cases)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from golden import Case
from torch import Tensor

from inpbench.harness.metrics import METRICS, Variant
from inpbench.harness.metrics.category import CategoryMetrics
from inpbench.harness.scoring import Scoring, enlarge, gaussian_kernel, ground_truth, image_scores, smooth_maps

SMOOTHED = 1e-7  # the Gaussian is a float32 kernel
EXACT = 1e-9  # float64 quantities
STRIPS = 1e-5  # metrics on strips depend on the binning of ties at the edges


def sliced(full: np.ndarray, text: str) -> np.ndarray:
    """What `slice` of a case's array says was saved: "full", "[:, ::8]" or "flat[::k][:48]"."""
    if text == "full":
        return full
    if text.startswith("flat"):
        full, text = full.reshape(-1), text[len("flat") :]
    for part in re.findall(r"\[([^\]]*)\]", text):
        index = tuple(
            slice(*(int(bound) if bound.strip() else None for bound in axis.split(":"))) if ":" in axis else int(axis)
            for axis in part.split(",")
        )
        full = full[index]
    return full


def close(found: Any, expected: Any, tolerance: float, what: str) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=tolerance, atol=tolerance, err_msg=what)


def cosine_map(encoder: list[Tensor], decoder: list[Tensor], crop: tuple[int, int]) -> Tensor:
    """(B, H, W): 1 - cos of each group enlarged to the crop size, averaged."""
    maps = [enlarge(1 - F.cosine_similarity(en, de, dim=1, eps=1e-8), crop) for en, de in zip(encoder, decoder, strict=True)]
    return torch.stack(maps).mean(0)


def evaluate(maps: Tensor, scores: Tensor, masks: Tensor, labels: Any, variant: Variant) -> list[float]:
    """The seven metrics of one category in the order of METRICS, in uneven batches."""
    metrics = CategoryMetrics(variant)
    for part in torch.arange(len(maps)).split(4):
        metrics.update(maps[part], scores[part], masks[part], [int(labels[i]) for i in part])
    values = metrics.compute()
    assert not values.undefined, values.undefined
    return [values.values[name] for name in METRICS]  # type: ignore[misc]


def check_anomaly_map(case: Case) -> None:
    """anomaly_map_*: features by the recipe in the case, map, Gaussian and scores."""
    batch, channels, side, _ = case.config["shape"]
    state = np.random.RandomState(case.config["seed"])
    encoder = [state.standard_normal((batch, channels, side, side)) for _ in range(2)]
    decoder = []
    for group in encoder:
        size = state.uniform(0, 1.5, (batch, 1, side, side))
        decoder.append(group + size * state.standard_normal((batch, channels, side, side)))
    crop = (case.config["out"], case.config["out"])
    amap = cosine_map([torch.from_numpy(x) for x in encoder], [torch.from_numpy(x) for x in decoder], crop)
    smoothed = smooth_maps(amap, crop)
    found = {"kernel5x5": gaussian_kernel()[None, None], "amap": amap[:, None], "gauss256": smoothed[:, None]}
    for name, about in case.config["arrays"].items():
        full = found[name].double().numpy().reshape(about["full_shape"])
        close(sliced(full, about["slice"]), case.arrays[name], EXACT if name == "amap" else SMOOTHED, f"{case.name} {name}")
    close(image_scores(smoothed), case.config["score_top1pct"], SMOOTHED, f"{case.name} score_top1pct")
    close(image_scores(smoothed, Scoring(top_ratio=0)), case.config["score_max"], SMOOTHED, f"{case.name} score_max")


def check_ader_eval(case: Case) -> None:
    """ader_eval_*: the `paper` variant on stored maps; the exact P-AUROC and P-AP for comparison."""
    shape = tuple(case.config["shape"])
    bits = np.unpackbits(case.arrays["masks_bits"])[: int(np.prod(shape))].astype(bool).reshape(shape)
    maps, scores = torch.from_numpy(case.arrays["maps"]), torch.from_numpy(case.arrays["scores"])
    order = ["I-AUROC", "I-AP", "I-F1_max", "P-AUROC", "P-AP", "P-F1_max", "AUPRO"]
    paper = evaluate(maps, scores, torch.from_numpy(bits), case.arrays["labels"], "paper")
    for name, found in zip(order, paper, strict=True):
        close(found, case.config["result"][name], STRIPS if name in ("P-AUROC", "P-AP", "AUPRO") else 1e-6, f"{case.name} {name}")
    exact = dict(zip(METRICS, evaluate(maps, scores, torch.from_numpy(bits), case.arrays["labels"], "exact"), strict=True))
    for name, expected in case.config.get("exact_for_comparison", {}).items():
        close(exact[name], expected, EXACT, f"{case.name} exact {name}")


def check_eval_metrics(case: Case) -> None:
    """eval_metrics*: Dinomaly's evaluation from features to the seven metrics, and the effect of the mask rules."""
    config, arrays = case.config["config"], case.arrays
    side = config["S"]
    crop, small = (side, side), (config["resize_mask"], config["resize_mask"])
    groups = sorted(int(name[2:]) for name in arrays if re.fullmatch(r"en\d+", name))
    amap = cosine_map(*([torch.from_numpy(arrays[f"{kind}{i}"]).double() for i in groups] for kind in ("en", "de")), crop)
    mask = torch.from_numpy(arrays["gt_u8"]).double() / 255

    def run(scoring: Scoring) -> list[float]:
        maps = smooth_maps(amap, crop, scoring)
        return evaluate(maps, image_scores(maps, scoring), ground_truth(mask, scoring), arrays["labels"], "dinomaly")

    ratio = config["max_ratio"]
    official = Scoring(metric_size=small, mask_rule="gt0", top_ratio=ratio)
    maps = smooth_maps(amap, crop, official)
    flat = maps.numpy().reshape(-1)
    stride = int(re.search(r"flat \[::(\d+)\]", case.config["arrays"]["maps"]["what"]).group(1))  # type: ignore[union-attr]
    close(flat[::stride], arrays["maps"], SMOOTHED, f"{case.name} maps")
    stat = [flat.sum(), np.abs(flat).sum(), (flat**2).sum(), flat.min(), flat.max()]
    close(stat, arrays["maps__stat"], SMOOTHED, f"{case.name} maps__stat")
    close(image_scores(maps, official), arrays["scores"], SMOOTHED, f"{case.name} scores")
    assert np.array_equal(ground_truth(mask, official).numpy(), arrays["gt_resized_gt0"])
    # The case's third row binarises after the bilinear resize alone: CRR's rule on a mask that is not yet binary.
    bilinear = F.interpolate(mask[:, None], size=small, mode="bilinear", align_corners=False)[:, 0] >= 0.5
    assert np.array_equal(bilinear.numpy(), arrays["gt_resized_ge05_bilinear"])
    close(run(official), arrays[f"metrics_ratio{ratio}"], EXACT, f"{case.name} metrics_ratio{ratio}")
    close(run(Scoring(metric_size=small, mask_rule="gt0", top_ratio=0)), arrays["metrics_ratio0"], EXACT, f"{case.name} ratio 0")
    whole = Scoring(metric_size=crop, mask_rule="gt0", top_ratio=ratio)
    close(run(whole), arrays["metrics_noresize"], EXACT, f"{case.name} metrics_noresize")
    rules = [ground_truth(mask, official), ground_truth(mask, Scoring(metric_size=small, mask_rule="gt05")), bilinear]
    for row, masks in enumerate(rules):
        found = evaluate(maps, image_scores(maps, official), masks, arrays["labels"], "dinomaly")[3:]
        close(found, arrays["binarisation_effect"][row], EXACT, f"{case.name} binarisation_effect row {row}")


class _Stored(torch.nn.Module):
    """Logits that a case holds, instead of a network's."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.stored = logits

    def forward(self, _: Tensor) -> Tensor:
        return self.stored


def check_crr_evaluation(case: Case) -> None:
    """crr_eval*: the three evaluations of CRR's scripts from features and logits, with exact metrics and with its own."""
    from golden_models import context

    from inpbench.methods.crr import CrrParams
    from inpbench.methods.crr.method import Crr
    from inpbench.methods.noisy_network import NoisyOutput

    config, arrays = case.config["config"], case.arrays
    crop, small = (config["S"], config["S"]), (config["resize_mask"], config["resize_mask"])
    scoring = Scoring(metric_size=small, mask_rule="crr")
    groups = sorted(int(name[2:]) for name in arrays if re.fullmatch(r"en\d+", name))
    encoder, decoder = (tuple(torch.from_numpy(arrays[f"{kind}{i}"]).double() for i in groups) for kind in ("en", "de"))
    masks = ground_truth(torch.from_numpy(arrays["gt_u8"]).double() / 255, scoring)

    def fused(**options: Any) -> Tensor:
        params = CrrParams(encoder="builtin", segmentation_width=1, map_size=small, **options)
        method = Crr(params, context())
        method.segmentation = _Stored(torch.from_numpy(arrays["logits"]).double())  # type: ignore[assignment]
        output = NoisyOutput(encoder, decoder)
        return method.fuse(method.cosine_map(output), method.segmentation_map(output))[:, 0]

    rows = {
        "stage1": cosine_map(list(encoder), list(decoder), crop),
        "stage2_sum": fused(fusion="sum"),
        "test_alpha": fused(fusion="weighted", cosine_weight=config["alpha"]),
    }
    variants: dict[str, tuple[Variant, float]] = {"sklearn": ("dinomaly", EXACT), "adeval": ("crr", STRIPS)}
    for name in arrays:
        row, _, kind = name.rpartition("_")
        if kind in variants:
            variant, tolerance = variants[kind]
            maps = smooth_maps(rows[row], crop, scoring)
            found = evaluate(maps, image_scores(maps, scoring), masks, arrays["labels"], variant)
            close(found[:-1], arrays[name][:-1], tolerance, f"{case.name} {name}")
            # On 200 thresholds a pixel that lies on one of them is decided by its last digit.
            close(found[-1], arrays[name][-1], max(tolerance, 2e-4), f"{case.name} {name} AUPRO")
        else:
            assert name in {"gt_u8", "labels", "logits"} or name[:2] in ("en", "de"), f"{case.name}: {name} is not compared"
