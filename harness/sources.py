"""What a cell was trained on, where that is not simply the data set it is tested on; plain data, no tensors.

zero_shot: the multi_class model of a source data set. generalist: a model of all its labelled images. super_multi_class: one model
of several data sets. The identity's `source` names every set with its manifest, in the order of training; it says nothing about the
method, so that methods stay comparable. It is null in these settings where a method learns from no image at all.
`training_id` is the hash of everything that makes a trained model what it is: cells with the same one share one model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inpbench.harness.params import plain
from inpbench.harness.records import identity_id
from inpbench.harness.settings import SETTINGS, Setting, get_setting

if TYPE_CHECKING:
    from inpbench.harness.manifest import Manifest

NOT_STATED = "not stated"  # the source of a checkpoint about which the user said nothing
_LEARNED_FROM = ("v", "method", "method_version", "params", "input", "weights", "engine", "limit", "seed", "shots", "checkpoint")
_SET = ("dataset", "dataset_version", "dataset_params", "manifest", "categories")


def source_of(setting: Setting, manifests: Sequence[Manifest]) -> dict[str, Any]:
    """The identity's `source`: the data sets of a model that several cells share, in the order of training."""
    trained_as = get_setting("multi_class") if setting.source and not setting.anomalies else setting
    return {
        "dataset": "+".join(manifest.info.name for manifest in manifests),
        "setting": trained_as.name,
        "setting_version": trained_as.version,
        "sets": [
            {
                "dataset": manifest.info.name,
                "dataset_version": manifest.info.version,
                "dataset_params": plain(manifest.params),
                "manifest": manifest.identity,
                "categories": list(manifest.categories),
            }
            for manifest in manifests
        ],
    }


def stated_source(name: str | None) -> dict[str, Any]:
    """The `source` of a checkpoint: what its user says of it, or that nothing was said."""
    return {"dataset": name or NOT_STATED, "setting": None, "setting_version": None, "sets": []}


def is_shared(identity: Mapping[str, Any]) -> bool:
    """Whether the cell's model belongs to a training that other cells share."""
    return bool((identity["source"] or {}).get("sets"))


def training_id(identity: Mapping[str, Any]) -> str:
    """64 hexadecimal digits for the training behind a cell: equal for a zero_shot cell and its source's multi_class cell."""
    source = identity["source"]
    if source is None:
        trained_as: dict[str, Any] = {key: identity[key] for key in ("setting", "setting_version")} | {
            "sets": [{k: identity[k] for k in _SET}]
        }
    else:
        trained_as = {key: source.get(key) for key in ("setting", "setting_version", "sets")}
    return identity_id({key: identity[key] for key in _LEARNED_FROM} | trained_as)


def learned_nothing(identity: Mapping[str, Any]) -> bool:
    """Whether the setting trains on a source and this method did without: it learns from no image."""
    setting = SETTINGS.get(identity["setting"])
    return identity["source"] is None and setting is not None and (setting.source or setting.several_datasets)


def trained_on(identity: Mapping[str, Any]) -> str:
    """The data set behind a record's model, `a+b` of several, `nothing`, or that nothing is said of a checkpoint's."""
    if learned_nothing(identity):
        return "nothing"
    if identity["source"] is None and identity["checkpoint"] is not None:
        return NOT_STATED
    return str((identity["source"] or identity)["dataset"])


def in_words(identity: Mapping[str, Any]) -> str:
    """`from real_iad`, `of mvtec_ad+visa`, or an empty text: what a table's title or a plan adds to the setting."""
    source = identity["source"]
    if source is None:
        return ""
    return f"{'of' if identity['setting'] == 'super_multi_class' else 'from'} {source['dataset']}"


def manifest_in_words(manifest: str) -> str:
    """`content 0123456789ab`, or `manifest ...` where it is of names (and, in earlier records, sizes) alone."""
    kind, _, digest = manifest.rpartition(":")
    return f"{'content' if kind == 'content' else 'manifest'} {digest[:12]}"


def caption_of(source: Mapping[str, Any]) -> list[str]:
    """One line for each data set that was trained on."""
    if not source.get("sets"):
        whose = " (a checkpoint: as its user says)" if "sets" in source else ""
        return [f"Trained on: {source.get('dataset', NOT_STATED)}{whose}"]
    return [
        f"Trained on: {item['dataset']} v{item['dataset_version']}, {len(item['categories'])} categories, "
        + "".join(f"{key}={value}, " for key, value in sorted(item["dataset_params"].items()))
        + manifest_in_words(item["manifest"])
        for item in source["sets"]
    ]
