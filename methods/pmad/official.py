"""The authors' files: a training checkpoint of the reconstruction model, and ProtoFlow's with its feature extractor.

    checkpoint-<epoch>.pth       model (optimizer, epoch, scaler, args)
    weights_<categories>.pt      encoder_state_dict, decoder_state_dict
No file holds the frozen tokenizer (it is looked for like any other weights) or prototypes: those are made of normal images.
Known deviation: the originals test with a flow of 8 blocks and load 4 into it where the file has 4, so that half of the flow is
random; here the flow has the blocks of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from inpbench.harness.errors import UsageError, WeightsError
from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.pmad.flow import ProtoFlow
from inpbench.methods.pmad.kmeans_tokenizer import KmeansTokenizer
from inpbench.methods.pmad.model import ReconstructionModel

if TYPE_CHECKING:
    from inpbench.methods.pmad.method import Pmad

EXTRACTOR, FLOW = "encoder_state_dict", "decoder_state_dict"
FOLDER = "Give a folder that holds one checkpoint-*.pth and ProtoFlow's weights_*.pt: --checkpoint FOLDER"


class Parts(NamedTuple):
    """The tensors of both files, told apart by the beginning of their names."""

    extractor: dict[str, Tensor]
    flow: dict[str, Tensor]
    model: dict[str, Tensor]


def parts_of(state: Mapping[str, Tensor]) -> Parts:
    """The tensors of both files, as the bench reads them, by their owner and under its own names."""
    found = Parts({}, {}, {})
    for key, value in state.items():
        owner, _, name = key.partition(".")
        if owner in (EXTRACTOR, FLOW):
            (found.extractor if owner == EXTRACTOR else found.flow)[name] = value
        else:
            found.model[key] = value
    return found


def load(method: Pmad, state: Mapping[str, Tensor]) -> None:
    """Load what the method's scoring uses; strict, raises `WeightsError` naming what is missing or differs."""
    if isinstance(method.tokenizer, KmeansTokenizer):
        raise WeightsError(
            "The authors' reconstruction models name tokens of VQ-KD or DALL-E, not fitted ones (k-means).",
            "Type: --set pmad.tokenizer=vqkd",
        )
    parts = parts_of(state)
    if any(key.startswith("quantize.") for key in parts.model):
        raise WeightsError(
            "The checkpoint holds a tokenizer, too.", "Leave the two files alone in the folder; type: --weights FILE"
        )
    if not parts.extractor:
        raise WeightsError(f"The checkpoint has no ProtoFlow: no {EXTRACTOR}.* and {FLOW}.*.", FOLDER)
    if method.model is not None and not parts.model:
        raise WeightsError(
            "The checkpoint is ProtoFlow's, without a reconstruction model.", f"{FOLDER}, or type: --set pmad.scoring=flow"
        )
    if method.flow is not None:
        _check_blocks(method.flow, parts.flow)
    if method.model is not None:
        _check_shape(method.model, parts.model)
    method.extractor.load_own(parts.extractor)
    if method.flow is not None:
        load_strictly(method.flow, parts.flow, "PMAD's flow")
    if method.model is not None:
        method.model.load_official(parts.model)


def _check_blocks(flow: ProtoFlow, state: Mapping[str, Tensor]) -> None:
    found = len({key.split(".")[1] for key in state if key.startswith("module_list.")})
    if found and found != len(flow.module_list):
        raise WeightsError(
            f"The flow of the checkpoint has {found} blocks, this one {len(flow.module_list)}.",
            f"Type: --set pmad.flow_blocks={found}",
        )


def _check_shape(model: ReconstructionModel, state: Mapping[str, Tensor]) -> None:
    """Another architecture is told by its parameters: the names of missing tensors would not say what to type."""
    table, token = state.get("rel_pos_bias.relative_position_bias_table"), state.get("cls_token")
    if table is None or token is None or table.ndim != 2:
        return
    found = (token.shape[-1], len({key.split(".")[1] for key in state if key.startswith("blocks.")}), table.shape[1])
    own = (model.shape.dim, model.shape.depth, model.shape.heads)
    if found != own:
        words = ["width {}, depth {}, {} heads".format(*shape) for shape in (found, own)]
        raise WeightsError(
            f"The reconstruction model of the checkpoint has {words[0]}, this one {words[1]}.",
            "Type: --set pmad.dim={} --set pmad.depth={} --set pmad.heads={}".format(*found),
        )


def files(method: Pmad) -> dict[str, dict[str, dict[str, Tensor]]]:
    """What `load` reads, as files of the authors' names and layout. Raises `UsageError` for a model that they cannot hold."""
    if isinstance(method.tokenizer, KmeansTokenizer) or method.flow is None:
        what = "learns no tensor" if method.flow is None else "has fitted tokens (k-means), which the authors' files do not hold"
        raise UsageError(f"This pmad (scoring={method.params.scoring}) {what}.", "Type: --format safetensors")
    found: dict[str, dict[str, dict[str, Tensor]]] = {
        "weights_multi_class.pt": {EXTRACTOR: method.extractor.official_state(), FLOW: dict(method.flow.state_dict())}
    }
    if method.model is not None:
        found[f"checkpoint-{method.params.epochs - 1}.pth"] = {"model": dict(method.model.state_dict())}
    return found


def state_of(method: Pmad) -> dict[str, Tensor]:
    """The tensors of all files under the names that the bench reads them by."""
    state: dict[str, Tensor] = {}
    for parts in files(method).values():
        for owner, tensors in parts.items():
            state |= tensors if owner == "model" else {f"{owner}.{key}": value for key, value in tensors.items()}
    return state
