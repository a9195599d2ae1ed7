"""Golden cases of WinCLIP: both variants, through the class that `bench run` uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden import Case
from golden_clip import References, Strided, context, formula_state, images, registered
from torch import Tensor

from inpbench.methods.clip import text_score
from inpbench.methods.winclip import WinClipParams
from inpbench.methods.winclip.method import WinClip
from inpbench.methods.winclip.windows import SCALES, harmonic_map, window_index


def _method(case: Case, variant: Any, references: list[int], patch: pytest.MonkeyPatch) -> WinClip:
    config = case.config
    model = registered(config["config"], patch)
    setting = "few_shot" if references else "zero_shot"
    method = WinClip(WinClipParams(model=model, variant=variant), context(setting))
    towers = method.towers
    towers.load_official(formula_state(towers.model.state_dict(), config["seed"]))
    given = References(images(references, config["config"]["vision_cfg"]["image_size"])) if references else None
    method.enter(config["class_name" if variant == "anomalib" else "obj_type"], given)  # type: ignore[arg-type]
    return method


def _queries(case: Case, indices: list[int]) -> Tensor:
    return images(indices, case.config["config"]["vision_cfg"]["image_size"])


def check_anomalib(case: Case) -> None:
    """winclip_anomalib: every intermediate; `asis_*` is what the wheel's wrong attention axis gives and must not be reproduced."""
    config, compare = case.config, Strided(case)
    with pytest.MonkeyPatch.context() as patch:
        method = _method(case, "anomalib", config["reference_images"], patch)
    queries = _queries(case, config["query_images"])
    features, text = method.features(queries), method.prototypes(config["class_name"])
    compare.check("image_embed", features.pooled)
    compare.check("patch_embed", features.patches)
    compare.check("text_embed", text)
    compare.check("zero_shot_image_score", text_score(features.pooled, text, method.scale))
    for scale, windows in zip(SCALES, features.windows, strict=True):
        compare.check(f"window_embed_{scale}x{scale}", windows)
        scores = text_score(windows, text, method.scale)
        compare.check(f"zs_window_score_{scale}x{scale}", scores)
        compare.check(f"zs_map_{scale}x{scale}", harmonic_map(scores, method.side, scale))
        assert windows[0].std(dim=0).max() > 1e-3, "all windows of an image are the same"
    compare.check("zero_shot_map", method.zero_shot_map(features, text))
    if config["reference_images"]:
        gallery = method.gallery(_queries(case, config["reference_images"]))
        found = method.association(features, gallery)
        compare.check("few_shot_map", found.amap)
        compare.check("assoc_patch", found.patches)
    prediction = method.predict(queries)
    compare.check("pred_score", prediction.score)
    compare.check("anomaly_map", prediction.amap)
    asis = [name for name in case.arrays if name.startswith("asis_")]
    if "asis_openclip330_window_embed_2x2_first" in asis:
        broken = torch.from_numpy(case.arrays["asis_openclip330_window_embed_2x2_first"])
        assert (features.windows[0][:, 0] - broken).abs().max() > 1e-3, "the wrong attention axis is reproduced"
    compare.finish(*asis)


def check_mala_lab(case: Case) -> None:
    """winclip_malalab: tables of windows, embeddings, distances, maps and scores of one query."""
    config, compare = case.config, Strided(case)
    with pytest.MonkeyPatch.context() as patch:
        method = _method(case, "mala_lab", config["reference_images"], patch)
    query = _queries(case, [config["query_image"]])
    features, text = method.features(query), method.prototypes(config["obj_type"])
    for scale, windows in zip(SCALES, features.windows, strict=True):
        compare.check(f"mask_{scale}x{scale}", window_index(method.side, scale).T)
        compare.check(f"window_embed_{scale}x{scale}", windows[0])
    compare.check("patch_tokens", features.patches[0])
    compare.check("image_embed", features.pooled)
    compare.check("text_features", text)
    zero = text_score(features.pooled, text, method.scale)[0]
    compare.check("zero_shot_score", zero)
    prediction = method.predict(query)
    assert prediction.score is not None
    if config["reference_images"]:
        found = method.association(features, method.gallery(_queries(case, config["reference_images"])))
        for scale, scores, amap in zip(SCALES, found.windows, found.maps, strict=True):
            compare.check(f"assoc_{scale}x{scale}", scores[0])
            compare.check(f"map_{scale}x{scale}", amap[0])
        compare.check("assoc_patch", found.patches[0])
        compare.check("map_patch", found.patches[0].reshape(method.side, method.side))
        compare.check("anomaly_map", prediction.amap[0])
        # The repository casts its map to float32 before the maximum.
        compare.check("visual_score", prediction.amap[0].float().max(), 1e-6)
        compare.check("few_shot_score", prediction.score[0], 1e-7)
    else:
        torch.testing.assert_close(prediction.score[0], zero, rtol=0, atol=0)
        assert (prediction.amap == zero).all()
    compare.finish()
