"""Loading tensors strictly: a silent mismatch would be measured as a bad method.

The message names the first keys that are missing, unexpected or of another shape, and another width where that is the reason.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from inpbench.harness.errors import WeightsError

_SHOWN = 3  # keys of each kind that a message names


def _first(kind: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} {kind}: {', '.join(keys[:_SHOWN])}{more}"


def _width(state: Mapping[str, Tensor]) -> int | None:
    for key, value in state.items():
        if key.endswith("cls_token") and value.ndim == 3:
            return int(value.shape[-1])
    return None


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copy `state` into `module` (its dtype and device are kept); every key and shape must agree, and floats be floats.

    what: names the target in the message. Raises `WeightsError`; the module is unchanged then.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shaped = [
        f"{key} expected {tuple(value.shape)}, found {tuple(state[key].shape)}"
        for key, value in own.items()
        if key in state and value.shape != state[key].shape
    ]
    rounded = [  # copying whole numbers into weights works, and whatever stood behind the point is lost
        f"{key} expected {value.dtype}, found {state[key].dtype}"
        for key, value in own.items()
        if key in state and value.is_floating_point() and not state[key].is_floating_point()
    ]
    if missing or unexpected or shaped or rounded:
        kinds = {"missing": missing, "unexpected": unexpected, "mis-shaped": shaped, "of another type": rounded}
        reasons = "; ".join(filter(None, (_first(kind, keys) for kind, keys in kinds.items())))
        expected, found = _width(own), _width(state)
        hint = "Give the weights of the same architecture and parameters."
        if expected and found and expected != found:
            arch = {384: " (small)", 768: " (base)", 1024: " (large)"}
            hint = (
                f"The file is of an encoder of width {found}{arch.get(found, '')}, "
                f"this one has {expected}{arch.get(expected, '')}: choose the other --encoder."
            )
        raise WeightsError(f"The weights do not fit {what}: {reasons}.", hint)
    module.load_state_dict(state, strict=True)
