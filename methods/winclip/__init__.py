"""WinCLIP (CVPR 2023): a window of the image against words for "normal" and "damaged", and against windows of normal images.

Importing this folder imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from inpbench.harness.api import MethodInfo, Preprocess
from inpbench.methods.clip_params import ClipParams, clip_preprocess, clip_weights


@dataclass(frozen=True, kw_only=True)
class WinClipParams(ClipParams):
    """Defaults: the paper's maps as anomalib 2.7.0 makes them. Nothing is trained in any variant."""

    NAME: ClassVar[str] = "winclip"

    # anomalib: the paper's maps. mala_lab: the image scores behind the WinCLIP rows of InCTRL's tables; no zero-shot map.
    variant: Literal["anomalib", "mala_lab"] = "anomalib"  # the paper's maps, or the image scores in InCTRL's tables

    @property
    def preprocess(self) -> Preprocess:
        """Squashed to the network's square; mala_lab resizes before it converts to RGB."""
        return clip_preprocess(self.architecture, squash=True, own_mode=self.variant == "mala_lab")


INFO = MethodInfo(
    name="winclip",
    version=1,
    title="WinCLIP: window embeddings of CLIP against words and against normal images, without training",
    target="inpbench.methods.winclip.method:WinClip",
    params=WinClipParams,
    settings=frozenset({"zero_shot", "few_shot"}),
    presets={"paper": {}, "fast": {}, "demo": {"model": "tiny"}, "smoke": {"model": "tiny"}},
    weights=clip_weights,
    paper="Jeong et al., WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation, CVPR 2023",
    told_category=True,
    untrained=frozenset({"zero_shot", "few_shot"}),
)
