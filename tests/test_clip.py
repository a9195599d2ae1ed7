"""The shared CLIP pieces: towers against open_clip's own forward, windows against one at a time, prompts, kept references."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from methodkit import make_context
from torch import Tensor

from inpbench.harness.errors import UsageError, WeightsError
from inpbench.harness.weights import WeightStore
from inpbench.methods import clip
from inpbench.methods.clip import ClipTowers, KeptReferences, build_towers, nearest_distance, tokenize
from inpbench.methods.clip_params import ARCHITECTURES, ClipParams, clip_weight_spec, clip_weights
from inpbench.methods.clip_prompts import ANOMALIB, MALA_LAB, ensemble, inctrl_prompts, object_name

PARAMS = ClipParams(model="tiny")


@pytest.fixture(scope="module")
def towers() -> ClipTowers:
    torch.manual_seed(1)
    return build_towers(PARAMS, make_context())


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# --- images ---------------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_open_clip(towers: ClipTowers, pictures: Tensor) -> None:
    seen: dict[int, Tensor] = {}
    blocks = towers.model.visual.transformer.resblocks
    hooks = [blocks[i].register_forward_hook(lambda _m, _i, out, at=i: seen.__setitem__(at, out)) for i in (6, 11)]
    with torch.no_grad():
        pooled = towers.model.encode_image(pictures)
        found = towers.tokens(pictures, (6,))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.blocks[0], seen[6], rtol=0, atol=1e-13)
    torch.testing.assert_close(found.last, seen[11], rtol=0, atol=1e-13)
    assert found.last.shape == (2, 1 + 36, 32)


def test_windows_are_sequences_of_their_own(towers: ClipTowers, pictures: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from inpbench.methods import clip

    index = torch.tensor([[1, 2, 7, 8], [15, 16, 21, 22], [29, 30, 35, 36]])
    with torch.no_grad():
        embedded = towers.embed(pictures)
        found = towers.windows(embedded, index)
        for image in range(2):
            for number, places in enumerate(index):
                tokens = torch.cat((embedded[image, :1], embedded[image, places]))[None]
                *_, last = towers.blocks(tokens)
                torch.testing.assert_close(found[image, number], towers.project(last[:, 0])[0], rtol=0, atol=1e-13)
        monkeypatch.setattr(clip, "SEQUENCES", 2)
        torch.testing.assert_close(towers.windows(embedded, index), found, rtol=0, atol=1e-13)
    assert found.std(dim=1).max() > 1e-3, "attention runs across windows"


def test_nearest_distance_against_all_pairs() -> None:
    unit = [torch.nn.functional.normalize(torch.randn(n, 5, dtype=torch.float64), dim=-1) for n in (4, 7)]
    slow = torch.tensor([[0.5 * (1 - float(q @ r)) for r in unit[1]] for q in unit[0]], dtype=torch.float64).amin(dim=1)
    torch.testing.assert_close(nearest_distance(*unit), slow, rtol=0, atol=1e-15)
    assert nearest_distance(unit[0].float(), unit[0].float()).min() >= 0.0  # rounding may not make it negative


# --- text -----------------------------------------------------------------------------------------------------------


def test_text_is_that_of_open_clip_whatever_the_length(towers: ClipTowers) -> None:
    prompts = ["a photo of the damaged metal nut.", "a cropped photo of a candle without flaw for visual inspection."]
    with torch.no_grad():
        expected = towers.model.encode_text(tokenize(prompts, 77))
        short = towers.text(prompts)
        towers.whole_context = True
        whole = towers.text(prompts)
        towers.whole_context = False
    torch.testing.assert_close(short, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-13)


def test_prototypes_by_hand(towers: ClipTowers) -> None:
    prompts = inctrl_prompts("candle")
    with torch.no_grad():
        unit, raw = towers.prototypes(prompts), towers.prototypes(prompts, "raw")
        rows = towers.text(prompts.anomalous)
    mean = sum(row / row.norm() for row in rows) / len(rows)  # type: ignore[operator]
    torch.testing.assert_close(unit[1], mean / mean.norm(), rtol=0, atol=1e-13)
    torch.testing.assert_close(raw[1], rows.mean(0), rtol=0, atol=1e-13)


def test_the_ensembles() -> None:
    assert [len(part) for part in ensemble("nut", MALA_LAB)] == [154, 88]
    assert [len(part) for part in ensemble("nut", ANOMALIB)] == [147, 84]
    assert set(ANOMALIB) < set(MALA_LAB) and len(set(ANOMALIB)) == 20
    assert inctrl_prompts("bird").anomalous == ("a photo without bird for anomaly detection.",)
    assert object_name("mvtec_ad/metal_nut") == "metal nut"


def test_the_tokenizer_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    clip._tokenizer.cache_clear()
    assert tokenize(["a photo of the candle."], 77)[0, :8].tolist() == [49406, 320, 1125, 539, 518, 12674, 269, 49407]


# --- weights --------------------------------------------------------------------------------------------------------


def test_the_two_methods_ask_for_two_files() -> None:
    from inpbench.methods.inctrl import INFO as INCTRL
    from inpbench.methods.winclip import INFO as WINCLIP

    files = [info.weights(info.params())[0].file for info in (WINCLIP, INCTRL)]
    assert files == ["vit_b_16_plus_240-laion400m_e31-8fb26589.pt", "vit_b_16_plus_240-laion400m_e32-699c4b84.pt"]
    assert clip_weights(ClipParams(pretrained="laion400m_e32"))[0].url.endswith(files[1])


def test_published_files_load(towers: ClipTowers, tmp_path: Path, pictures: Tensor) -> None:
    """As saved by open_clip, inside its training checkpoint, and from a data-parallel training."""
    state = {key: value.float() for key, value in towers.model.state_dict().items()}
    spec = clip_weight_spec("tiny", "laion400m_e31")
    wrapped = {"module." + key: value for key, value in state.items()}
    for content in (state, {"state_dict": wrapped, "epoch": 31}):
        torch.save(content, tmp_path / spec.file)
        context = make_context()
        context.weights = WeightStore(str(tmp_path))
        loaded = build_towers(PARAMS, context)
        torch.testing.assert_close(loaded.tokens(pictures).pooled, towers.tokens(pictures).pooled, rtol=0, atol=1e-5)


def test_a_missing_file_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INPBENCH_WEIGHTS", raising=False)
    context = make_context()
    context.weights = WeightStore(str(tmp_path))
    with pytest.raises(WeightsError, match=r"vit_b_16_plus_240-laion400m_e31-8fb26589\.pt") as caught:
        context.weights.state(clip_weight_spec("ViT-B-16-plus-240", "laion400m_e31"))
    assert "--weights random" in caught.value.hint and "--encoder" not in caught.value.hint


def test_another_network_does_not_fit(towers: ClipTowers) -> None:
    state = dict(towers.model.state_dict())
    state["visual.proj"] = torch.zeros(16, 32)
    with pytest.raises(WeightsError, match=r"CLIP tiny: 1 mis-shaped: visual.proj expected \(32, 32\), found \(16, 32\)"):
        towers.load_official(state)


def test_keys_of_official_checkpoints() -> None:
    """The real network has exactly the keys and shapes of InCTRL's checkpoints, and logit_scale."""
    from inpbench.methods.inctrl.model import InCtrlHeads

    expected = json.loads((Path(__file__).parent / "data" / "inctrl_state_keys.json").read_text())
    with torch.device("meta"):
        real = ClipTowers(ARCHITECTURES["ViT-B-16-plus-240"])
        heads = InCtrlHeads(225, 640)
    found = {key: list(value.shape) for part in (real.model, heads) for key, value in part.state_dict().items()}
    assert found.pop("logit_scale") == []
    assert found == expected


# --- kept references ------------------------------------------------------------------------------------------------


class Two:
    def __len__(self) -> int:
        return 2

    def batch(self, indices: Any) -> Tensor:
        return torch.ones(len(indices), 3, 4, 4)


def test_references_are_kept_by_category() -> None:
    kept, blank = KeptReferences("winclip"), torch.empty(0, 3, 4, 4)
    assert len(kept.enter("nut", None, blank, needed=False)) == 0
    with pytest.raises(UsageError, match="needs normal images of nut, and was given none; it kept those of: none"):
        kept.enter("nut", None, blank, needed=True)
    assert len(kept.enter("set/nut", Two(), blank, needed=True)) == 2  # type: ignore[arg-type]
    again = KeptReferences("winclip")
    assert again.split({**kept.state(), "other": blank}) == {"other": blank}
    assert torch.equal(again.enter("set/nut", None, blank, needed=True), torch.ones(2, 3, 4, 4))
    with pytest.raises(WeightsError, match="references/x: expected images"):
        again.split({"references/x": torch.zeros(3)})
