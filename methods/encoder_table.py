"""The frozen encoders by name: architecture, weight file, target layers. Importing this file imports no torch.

Name grammar: <family>_vit_<arch>_<patch>. The families and their files are those of the INP-Former and Dinomaly repositories.
`position_float32`: DINOv2 resizes its position embedding in float32 whatever the model's dtype (it changes a number in float64).
Known deviation kept from the originals: MoCo v3 trained its ViT-S with 12 heads, the originals load it with 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from inpbench.harness.api import Size, WeightSpec
from inpbench.harness.errors import UsageError, did_you_mean

# arch: (width D, blocks, heads, target layers)
_ARCHITECTURES: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "small": (384, 12, 6, tuple(range(2, 10))),
    "base": (768, 12, 12, tuple(range(2, 10))),
    "large": (1024, 24, 16, tuple(range(4, 20, 2))),
}
_META = "https://dl.fbaipublicfiles.com"


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """What the bench knows about one encoder without building it."""

    name: str
    kind: Literal["vit", "beit", "builtin"]
    dim: int  # D
    depth: int  # transformer blocks
    heads: int
    patch: int  # pixels
    native: int  # side of the square image the position embedding was trained for, pixels
    target_layers: tuple[int, ...]  # block indices whose outputs are used, 0-based
    weights: WeightSpec
    registers: int = 0
    layer_scale: bool = False
    mask_token: bool = False  # present in the official file, unused
    position_float32: bool = False
    prefix: str = ""  # of the encoder's keys inside the official file
    dropped: tuple[str, ...] = ()  # beginnings of official keys that are no part of the encoder

    def grid(self, size: Size) -> Size:
        """(h, w) of the token grid; sides that are no multiple of the patch, or that do not work, raise `UsageError`."""
        height, width = size
        if height < self.patch or width < self.patch or height % self.patch or width % self.patch:
            raise UsageError(
                f"Encoder {self.name} needs sides that are multiples of its patch {self.patch}, found {height}x{width}.",
                f"Type for example: --set METHOD.crop_size={self.nearest(height)}x{self.nearest(width)}",
            )
        if self.kind == "beit" and size != (self.native, self.native):
            raise UsageError(
                f"Encoder {self.name} works at {self.native}x{self.native} only (fixed positions), found {height}x{width}.",
                f"Type: --set METHOD.crop_size={self.native} --set METHOD.input_size=256",
            )
        return height // self.patch, width // self.patch

    def nearest(self, side: int) -> int:
        """The multiple of the patch that is closest to `side`, at least one patch."""
        return max(1, round(side / self.patch)) * self.patch


def _vit(name: str, file: str, url: str, timm: str, native: int = 224, **changes: object) -> EncoderEntry:
    arch, patch = name.split("_")[-2:]
    dim, depth, heads, layers = _ARCHITECTURES[arch]
    fields: dict[str, object] = {
        "kind": "vit",
        "dropped": ("head.",),
        "weights": WeightSpec(name=name, file=file, url=url, timm=timm),
        **changes,
    }
    return EncoderEntry(
        name=name,
        dim=dim,
        depth=depth,
        heads=heads,
        patch=int(patch),
        native=native,
        target_layers=layers,
        **fields,  # type: ignore[arg-type]
    )


def _dinov2(arch: str, registers: int) -> EncoderEntry:
    model = f"dinov2_vit{arch[0]}14"
    file = f"{model}_reg4_pretrain.pth" if registers else f"{model}_pretrain.pth"
    return _vit(
        f"dinov2{'reg' if registers else ''}_vit_{arch}_14",
        file,
        f"{_META}/dinov2/{model}/{file}",
        f"vit_{arch}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m",
        518,
        registers=registers,
        layer_scale=True,
        mask_token=True,
        position_float32=True,
        dropped=(),
    )


def _dino(arch: str, patch: int) -> EncoderEntry:
    folder = f"dino_{'deitsmall' if arch == 'small' else 'vitbase'}{patch}_pretrain"
    return _vit(
        f"dino_vit_{arch}_{patch}", f"{folder}.pth", f"{_META}/dino/{folder}/{folder}.pth", f"vit_{arch}_patch{patch}_224.dino"
    )


def _moco(arch: str) -> EncoderEntry:
    folder = f"vit-{arch[0]}-300ep"
    return _vit(
        f"moco_vit_{arch}_16",
        f"{folder}.pth.tar",
        f"{_META}/moco-v3/{folder}/{folder}.pth.tar",
        "",
        prefix="module.base_encoder.",
    )


def _mae(arch: str) -> EncoderEntry:
    file = f"mae_pretrain_vit_{arch}.pth"
    return _vit(
        f"mae_vit_{arch}_16",
        file,
        f"{_META}/mae/pretrain/{file}",
        f"vit_{arch}_patch16_224.mae",
        dropped=("head.", "mask_token", "decoder_"),
    )


def _ibot(arch: str) -> EncoderEntry:
    # The three published files have the same name; the folder tells them apart.
    return _vit(
        f"ibot_vit_{arch}_16",
        f"vit{arch[0]}_16_rand_mask/checkpoint_teacher.pth",
        "",
        "",
        dropped=("head.", "masked_embed", "mask_token"),
    )


def _deit(arch: str, tag: str) -> EncoderEntry:
    file = f"deit_{arch}_patch16_224-{tag}.pth"
    return _vit(f"deit_vit_{arch}_16", file, f"{_META}/deit/{file}", f"deit_{arch}_patch16_224.fb_in1k")


def _beit(name: str, file: str, release: str, timm: str) -> EncoderEntry:
    return _vit(
        name,
        file,
        f"https://github.com/addf400/files/releases/download/{release}/{file}",
        timm,
        kind="beit",
        dropped=("head.", "fc_norm.", "norm.", "mask_token"),
    )


_BUILTIN = EncoderEntry(
    name="builtin",
    kind="builtin",
    dim=96,
    depth=12,
    heads=12,
    patch=14,
    native=392,
    target_layers=tuple(range(2, 10)),
    weights=WeightSpec(name="builtin", file="", source="builtin", version=1),
)

ENCODERS: dict[str, EncoderEntry] = {
    entry.name: entry
    for entry in (
        *(_dinov2(arch, 4) for arch in ("small", "base", "large")),
        *(_dinov2(arch, 0) for arch in ("small", "base")),
        *(_dino(arch, patch) for arch in ("small", "base") for patch in (8, 16)),
        _vit("digpt_vit_base_16", "D-iGPT_B_PT_1K.pth", "", "", dropped=("head.", "mask_token", "decoder")),
        *(_moco(arch) for arch in ("small", "base")),
        *(_mae(arch) for arch in ("base", "large")),
        *(_ibot(arch) for arch in ("small", "base", "large")),
        _deit("small", "cd65a155"),
        _deit("base", "b5f2ef4d"),
        _beit("beitv2_vit_base_16", "beitv2_base_patch16_224_pt1k_ft21k.pth", "BEiT-v2", "beitv2_base_patch16_224.in1k_ft_in22k"),
        _beit("beit_vit_base_16", "beit_base_patch16_224_pt22k_ft22k.pth", "v1.0", "beit_base_patch16_224.in22k_ft_in22k"),
        _BUILTIN,
    )
}


def get_encoder(name: str) -> EncoderEntry:
    """The entry of this name; unknown names raise `UsageError` with the closest known ones."""
    if name not in ENCODERS:
        raise UsageError(
            f"Unknown encoder '{name}'. {did_you_mean(name, ENCODERS)}", "Type for example: --encoder dinov2reg_vit_base_14"
        )
    return ENCODERS[name]


class ConvNet(NamedTuple):
    """A convolutional encoder, of PatchCore alone: `layers` are its stages, 1 to 4, of stride 4 to 32."""

    weights: WeightSpec
    layers: tuple[int, ...]  # those that are used


def _torchvision(name: str, file: str) -> ConvNet:
    return ConvNet(WeightSpec(name=name, file=file, timm=f"{name}.tv_in1k"), (2, 3))


# The files are torchvision's (ImageNet-1k, the first recipe); timm's hub has the same tensors.
CONVNETS: Mapping[str, ConvNet] = {
    "wide_resnet50_2": _torchvision("wide_resnet50_2", "wide_resnet50_2-95faca4d.pth"),
    "resnet18": _torchvision("resnet18", "resnet18-f37072fd.pth"),
}
