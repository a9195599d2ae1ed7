"""Golden cases of CRR's two stages, through the classes that `bench run` uses, in float64 on the CPU.

Tolerances: 1e-9 for models and losses, 1e-7 for maps after the float32 Gaussian kernel, 1e-15 for learning rates.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from golden import Case, formula, images
from golden_arrays import Comparison
from golden_dinomaly import ATTENTIONS, FedDropout, _formula_module, _groups, _register, training_options
from golden_models import MODEL, SMOOTHED, context, load_formula
from torch import Tensor

from inpbench.harness.scoring import Scoring, enlarge, image_scores, smooth_maps
from inpbench.methods.crr import CrrParams
from inpbench.methods.crr.masking import MaskedMlp
from inpbench.methods.crr.method import Crr
from inpbench.methods.crr.segmentation import SegmentationNetwork, disagreement, focal_loss, focal_terms
from inpbench.methods.crr.synthetic_images import SyntheticBatch, segmentation_target
from inpbench.methods.losses import hard_mining_count, hard_mining_threshold
from inpbench.methods.schedule import WarmCosine
from inpbench.methods.training import BatchOrder, Trainer

ROUNDING = 1e-14  # gradients below are rounding alone
# A bias before a BatchNorm has no gradient but rounding, which Adam enlarges to parts of its rate: two programs part by this.
AFTER_ADAM = 1e-8


def _seed(text: str) -> int:
    match = re.search(r"RandomState\((\d+)\)", text)
    assert match, text
    return int(match.group(1))


def _feed_mask(mask: MaskedMlp, state: np.random.RandomState) -> None:
    """The mask's uniform numbers from a stated stream, drawn anew at each forward."""
    mask.thaw()
    mask.uniform = lambda x: torch.from_numpy(state.random_sample(tuple(x.shape)))  # type: ignore[method-assign]


# --- models ---------------------------------------------------------------------------------------------------------


def check_bottleneck(case: Case) -> None:
    """crr_bmlp6*: the masked bottleneck alone; the mask is there in eval mode, too."""
    config, compare = case.config["config"], Comparison(case)
    shape = (config["B"], config["N"], config["dim"])
    x = torch.from_numpy(np.random.RandomState(config["seed"] + 1).standard_normal(shape))
    for name in ("train", "eval"):
        mask = _formula_module(MaskedMlp(config["dim"], config["drop"], config["lambda_mgd"]), config["seed"])
        _feed_mask(mask, np.random.RandomState(_seed(config["mask"])))
        mask.drop = FedDropout(config["drop"], np.random.RandomState(_seed(config["dropout"])))
        compare.check_if_present(name, mask.train(name == "train")(x), MODEL)
    compare.finish()


def _pair(index: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clean image, image with an anomaly (3, S, S) and mask (S, S) of the formula that the cases state."""
    clean = np.random.RandomState(1000 + index).standard_normal((3, size, size))
    top, bottom = size // 4 + 3 * (index % 4), (3 * size) // 4 - 2 * (index % 3)
    left, right = (3 * size) // 8, (7 * size) // 8 - 3 * (index % 2)
    changed, mask = clean.copy(), np.zeros((size, size))
    changed[:, top:bottom, left:right] = np.random.RandomState(2000 + index).standard_normal((3, bottom - top, right - left))
    mask[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3] = 0.45
    mask[top:bottom, left:right] = 1.0
    return clean, changed, mask


def _pairs(config: dict[str, Any], step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and changed images (B, 3, S, S) and masks (B, S, S) of a step."""
    first = re.search(r"i = (\d+)\+t\*B", config.get("image_index", "i = 0+t*B"))
    assert first, config["image_index"]
    start = int(first.group(1)) + step * config["batch"]
    parts = [_pair(start + i, config["size"]) for i in range(config["batch"])]
    return tuple(torch.from_numpy(np.stack([part[j] for part in parts])) for j in range(3))  # type: ignore[return-value]


def _method(config: dict[str, Any], **changes: Any) -> Crr:
    size = (config["size"], config["size"])
    options: dict[str, Any] = {key: tuple(config[key]) for key in ("target_layers",) if key in config}
    for side in ("encoder", "decoder"):
        if groups := config.get(f"fuse_layer_{side}", config.get("groups")):
            options[f"{side}_groups"] = _groups(groups)
    if "decoder_attn" in config:
        options["attention"] = ATTENTIONS[config["decoder_attn"]]
    params = CrrParams(
        encoder=config.get("encoder", "dinov2reg_vit_small_14"),
        input_size=size,
        crop_size=size,
        mask_share=config["lambda_mgd"],
        **options,
        **changes,
    )
    return Crr(params, context())


def check_stage_one(case: Case) -> None:
    """crr_stage1*: steps of the training loop on clean and changed images, masks and dropout fed."""
    config, compare = case.config["config"], Comparison(case)
    method = _method(
        config,
        dropout=config["dropout_p"],
        fusion="cosine",
        **training_options(config),
    )
    load_formula(method, config["weight_seed"])
    mask = method.mask
    _feed_mask(mask, np.random.RandomState(_seed(config["mask_feed"])))
    if config["dropout_feed"]:
        mask.drop = FedDropout(config["dropout_p"], np.random.RandomState(_seed(config["dropout_feed"])))
    plan, first = config["schedule"], config["it_of_first_step"]
    seen: list[dict[str, Any]] = []
    gradients: dict[str, Any] = {}
    decode = method.decode

    def loss(_indices: list[int], step: int) -> Tensor:
        clean, changed, _ = _pairs(config, step)
        features, other = method.encode(clean), method.encode(changed)
        outputs: list[Any] = []
        method.decode = lambda features: (outputs.append(decode(features)), outputs[-1])[1]  # type: ignore[method-assign]
        normal, repair = method.repair_losses(features, other, first + step)
        seen.append({"outputs": outputs, "changed": other, "normal": normal.detach(), "repair": repair.detach()})
        gradients.update(_register(method.network))
        return normal + repair

    trainer = Trainer(
        module=method.network,
        optimiser=method.optimiser(),
        schedule=WarmCosine(base=plan["base"], final=plan["final"], total=plan["total"], warmup=plan["warmup"]),
        loss=loss,
        order=BatchOrder(1, 1, 1),
        steps=1,
        clip_norm=config["grad_clip"],
        ctx=method.ctx,
    )
    method.network.train()
    _run_stage_one(compare, method, trainer, seen, gradients)
    compare.finish()


def _run_stage_one(
    compare: Comparison, method: Crr, trainer: Trainer, seen: list[dict[str, Any]], gradients: dict[str, Any]
) -> None:
    config = compare.case.config["config"]
    order, steps = config["trainable_param_order"], len(compare.case.arrays["loss"])
    parameters = dict(method.network.named_parameters())
    assert set(order) == set(parameters)
    rows: dict[str, list[Any]] = {}
    for step in range(steps):
        result = trainer.step(step)
        share = method.mining_share(config["it_of_first_step"] + step)
        clean, repaired = seen[step]["outputs"]
        targets = clean.targets
        distances = [d.detach() for out in (clean, repaired) for d in method.distances(clean._replace(outputs=out.outputs))]
        before = {key: gradient for key, (handle, gradient) in gradients.items() if handle.remove() is None}
        for name, value in (
            ("loss", result.loss),
            ("loss_normal", seen[step]["normal"]),
            ("loss_anormal", seen[step]["repair"]),
            ("lr", torch.tensor(result.rate, dtype=torch.float64)),
            ("grad_total_norm", result.norm),
            ("thresh", torch.stack([hard_mining_threshold(distance, share) for distance in distances])),
            ("k", torch.tensor([hard_mining_count(distance.numel(), share) for distance in distances])),
            ("param_grad_norm", torch.stack([before[key].norm() for key in order])),
            ("param_sum", torch.stack([parameters[key].detach().sum() for key in order])),
            ("param_sumsq", torch.stack([(parameters[key].detach() ** 2).sum() for key in order])),
        ):
            rows.setdefault(name, []).append(value)
        for index, target in enumerate(targets):
            compare.check_if_present(f"step{step}_en{index}", target, MODEL)
            compare.check_if_present(f"step{step}_de{index}", clean.outputs[index], MODEL)
            compare.check_if_present(f"step{step}_de_aug{index}", repaired.outputs[index], MODEL)
        compare.check_if_present(f"step{step}_output", disagreement(targets, clean.outputs), MODEL)
        compare.check_if_present(f"step{step}_output_aug", disagreement(repaired.targets, repaired.outputs), MODEL)
        for match in compare.arrays_named(rf"step{step}_grad/(.+?)(?<!__stat)"):
            _check_gradient(compare, match, parameters, before)
        for match in compare.arrays_named(rf"step{step}_w/(.+?)(?<!__stat)"):
            _check_part(compare, match.group(), parameters[match.group(1)])
    for name, values in rows.items():
        compare.check_if_present(name, torch.stack(values), 1e-15 if name == "lr" else 0.0 if name == "k" else MODEL)


def _check_gradient(compare: Comparison, match: re.Match[str], parameters: dict[str, Any], before: dict[str, Any]) -> None:
    """As in Dinomaly's cases: the array was clipped in place before it was written, its stat was not."""
    key = match.group(1)
    compare.check(match.group(), parameters[key].grad, MODEL, stat_of=before[key])


def _check_part(compare: Comparison, name: str, value: Tensor, tolerance: float = MODEL) -> None:
    """Compare an array whose sub-sampling the json may not state: a stride that fits is found then."""
    stored, flat = compare.case.arrays[name], value.detach().reshape(-1)
    if "flat" in compare.case.config["arrays"][name]["what"]:
        compare.check(name, value, tolerance)
        return
    if stored.size != flat.numel():
        strides = [s for s in range(1, flat.numel() + 1) if -(-flat.numel() // s) == stored.size]
        fits = [s for s in strides if np.allclose(flat[::s].numpy(), stored, rtol=0, atol=1e-6)]
        assert fits, f"{name}: no stride of {flat.numel()} values gives {stored.size} that are near"
        flat = flat[:: fits[0]]
    compare.check(name, flat.reshape(stored.shape), tolerance)


def check_stage_two(case: Case) -> None:
    """crr_stage2*: Adam steps of the segmentation network behind the frozen stage I, then every fusion of the test."""
    config, compare = case.config["config"], Comparison(case)
    side, logits_side = config["resize_mask"], config["output_size"]
    method = _method(
        config,
        segmentation_width=config["base_width"],
        segmentation_size=(logits_side, logits_side),
        map_size=(side, side),
        segmentation_lr=float(re.search(r"lr ([0-9.e-]+)", config["optimizer"]).group(1)),  # type: ignore[union-attr]
    )
    state = {
        key: formula(key, tuple(value.shape), config["weight_seed" if name == "model.pth" else "seg_weight_seed"])
        if value.is_floating_point()
        else value
        for name, file in method.official_files().items()
        for key, value in file.items()
    }
    method.load_official(state)
    _feed_mask(method.mask, np.random.RandomState(_seed(config["mask_feed"])))
    assert method.segmentation is not None
    network = method.segmentation
    optimiser = method.segmentation_optimiser()
    parameters = dict(network.named_parameters())
    order = config.get("param_order", list(parameters))
    rows: dict[str, list[Any]] = {"loss": [], "param_grad_norm": [], "param_sum": [], "param_sumsq": []}
    network.train()
    seen: dict[str, Tensor] = {}
    looked = method.disagreement, method.logits
    method.disagreement = lambda images: seen.setdefault("output", looked[0](images))  # type: ignore[method-assign]
    method.logits = lambda output: seen.setdefault("logit", looked[1](output))  # type: ignore[method-assign]
    for step in range(len(case.arrays["loss"])):
        seen.clear()
        _, changed, masks = _pairs(config, step)
        loss = method.segmentation_loss(SyntheticBatch(changed, masks))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        target = segmentation_target(masks, (logits_side, logits_side)).double()
        compare.check_if_present(f"step{step}_output", seen["output"], MODEL)
        compare.check_if_present(f"step{step}_logit", seen["logit"], MODEL)
        compare.check_if_present(f"step{step}_mask", target[:, None], 0.0)
        compare.check_if_present(f"step{step}_mask_sum", target.sum((1, 2)), 0.0)
        for match in compare.arrays_named(rf"step{step}_grad/(.+?)(?<!__stat)"):
            _check_segmentation_gradient(compare, match.group(), parameters[match.group(1)].grad)
        rows["loss"].append(loss.detach())
        rows["param_grad_norm"].append(torch.stack([parameters[key].grad.norm() for key in order]))
        optimiser.step()
        rows["param_sum"].append(torch.stack([parameters[key].detach().sum() for key in order]))
        rows["param_sumsq"].append(torch.stack([(parameters[key].detach() ** 2).sum() for key in order]))
    method.disagreement, method.logits = looked  # type: ignore[method-assign]
    for name, values in rows.items():
        compare.check_if_present(name, torch.stack(values), MODEL)
    buffers = network.state_dict()
    for match in compare.arrays_named(r"(?:final_w|bn)/(.+?)(?<!__stat)"):
        _check_part(compare, match.group(), buffers[match.group(1)], AFTER_ADAM)
    _check_test(compare, method)
    compare.finish()


def _check_segmentation_gradient(compare: Comparison, name: str, gradient: Tensor | None) -> None:
    """A bias before a BatchNorm has no gradient but rounding, which no two programs share."""
    assert gradient is not None
    if np.abs(compare.case.arrays[name]).max() < ROUNDING:
        assert gradient.abs().max() < ROUNDING, name
        compare.skip(name, f"{name}__stat")
    else:
        compare.check(name, gradient, MODEL)


def _check_test(compare: Comparison, method: Crr) -> None:
    """The maps and scores of the test images, by every fusion, through the bench's scoring."""
    config = compare.case.config["config"]
    size, side = (config["size"], config["size"]), config["resize_mask"]
    scoring = Scoring(metric_size=(side, side))
    first = int(re.search(r"RandomState\((\d+)\+i\)", config["test_images"]).group(1)) - 1000  # type: ignore[union-attr]
    batch = images(first, config["batch"], *size)
    with torch.no_grad():
        output = method.decode(method.encode(batch))
        cosine, probability = method.cosine_map(output), method.segmentation_map(output)
        compare.check_if_present("test_logit", method.logits(disagreement(output.targets, output.outputs)), MODEL)
    compare.check_if_present("test_cos_map", cosine, MODEL)
    compare.check_if_present("test_seg_map", probability, MODEL)

    def scored(**changes: Any) -> tuple[Tensor, Tensor]:
        method.params = CrrParams(**{**vars(method.params), **changes})
        smoothed = smooth_maps(method.fuse(cosine, probability)[:, 0], size, scoring)
        return smoothed[:, None], image_scores(smoothed, scoring)

    chosen: list[tuple[str, dict[str, Any]]] = [(name, {"fusion": name}) for name in ("sum", "max", "min")]
    chosen += [(f"alpha{alpha}", {"fusion": "weighted", "cosine_weight": alpha}) for alpha in config["alphas"]]
    for name, changes in chosen:
        smoothed, score = scored(**changes)
        compare.check_if_present(f"test_map_{name}", smoothed, SMOOTHED)
        compare.check_if_present(f"test_score_{name}", score, SMOOTHED)
    with torch.no_grad():
        distance = torch.stack([enlarge(d[:, 0], size) for d in method.distances(output)]).mean(0)
    smoothed = smooth_maps(distance, size, scoring)
    compare.check_if_present("stage1_eval_map", smoothed[:, None], SMOOTHED)
    compare.check_if_present("stage1_eval_score", image_scores(smoothed, scoring), SMOOTHED)


def check_segmentation(case: Case) -> None:
    """crr_segnet*: the segmentation network alone, its focal loss and Adam steps, its statistics."""
    config, compare = case.config["config"], Comparison(case)
    side, count = config["output_size"], config["B"]
    network = SegmentationNetwork(config["in_channels"], config["base_width"], (side, side)).double()
    own = network.state_dict()
    assert {key: list(value.shape) for key, value in own.items()} == config["state_dict"]
    seed = config["weight_seed"]
    network.load_state_dict({k: formula(k, tuple(v.shape), seed) if v.is_floating_point() else v for k, v in own.items()})
    state = np.random.RandomState(_seed(config["x"]))
    factor = float(re.search(r"\*([0-9.]+)$", config["x"]).group(1))  # type: ignore[union-attr]
    x = torch.from_numpy(state.standard_normal((count, config["in_channels"], config["s"], config["s"])) * factor)
    share = float(re.search(r"< ([0-9.]+)", config["target"]).group(1))  # type: ignore[union-attr]
    target = torch.from_numpy(np.random.RandomState(_seed(config["target"])).random_sample((count, 1, side, side)) < share)
    rate = float(re.search(r"lr ([0-9.e-]+)", config["optimizer"]).group(1))  # type: ignore[union-attr]
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    parameters = dict(network.named_parameters())
    rows: dict[str, list[Any]] = {"loss": [], "param_grad_norm": [], "param_sumsq": []}
    network.train()
    for step in range(len(case.arrays["loss"])):
        logits = network(x)
        compare.check_if_present(f"logit{step}", logits, MODEL)
        loss = focal_loss(logits.softmax(dim=1), target[:, 0])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        rows["loss"].append(loss.detach())
        rows["param_grad_norm"].append(torch.stack([parameters[key].grad.norm() for key in config["param_order"]]))
        optimiser.step()
        rows["param_sumsq"].append(torch.stack([(parameters[key].detach() ** 2).sum() for key in config["param_order"]]))
    for name, values in rows.items():
        compare.check_if_present(name, torch.stack(values), MODEL)
    for match in compare.arrays_named(r"bn/(.+)"):
        compare.check(match.group(), network.state_dict()[match.group(1)], AFTER_ADAM)
    compare.check_if_present("eval_logit", network.eval()(x), AFTER_ADAM)
    compare.finish()


def _focal_shape(case: Case) -> tuple[int, int, int]:
    """(B, K, H): stated, or found: the mean's gradient is the sum's over the pixels, and one shape gives the case's loss."""
    config, arrays = case.config["config"], case.arrays
    if {"B", "K", "H"} <= set(config):
        return config["B"], config["K"], config["H"]
    place = int(np.abs(arrays["default_grad"]).argmax())
    pixels = round(float(arrays["sum_grad"].reshape(-1)[place] / arrays["default_grad"].reshape(-1)[place]))
    for side in range(1, math.isqrt(pixels) + 1):
        count, rest = divmod(pixels, side * side)
        for classes in range(2, 9):
            if not rest and abs(_focal(config, (count, classes, side))[1]().item() - arrays["default_loss"]) < MODEL:
                return count, classes, side
    raise AssertionError(f"{case.name}: no shape of {pixels} pixels gives the loss")


def _focal(config: dict[str, Any], shape: tuple[int, int, int], **options: Any) -> tuple[Tensor, Any]:
    """The logits, and the loss of them when it is called."""
    count, classes, side = shape
    factor = float(re.search(r"\*([0-9.]+)$", config["logits"]).group(1))  # type: ignore[union-attr]
    normal = np.random.RandomState(config["seed"]).standard_normal((count, classes, side, side))
    logits = torch.from_numpy(normal * factor).requires_grad_()
    target = torch.from_numpy(np.random.RandomState(config["seed"] + 1).randint(0, classes, (count, 1, side, side)))[:, 0]
    function = focal_terms if options.pop("terms", False) else focal_loss
    return logits, lambda: function(logits.softmax(dim=1), target, **options)


def check_focal(case: Case) -> None:
    """crr_focal*: the loss with other gammas, class weights, no smoothing, and pixel by pixel."""
    config, compare = case.config["config"], Comparison(case)
    shape = _focal_shape(case)
    for match in compare.arrays_named(r"(.+)_loss"):
        name, options = match.group(1), {}
        if found := re.fullmatch(r"gamma([0-9.]+)", name):
            options = {"gamma": float(found.group(1))}
        elif found := re.fullmatch(r"alpha([0-9.]+)", name):
            alpha = float(found.group(1))
            options = {"alpha": [alpha] + [1.0 - alpha] * (shape[1] - 1)}
        else:
            options = {"default": {}, "nosmooth": {"smooth": 0.0}, "sum": {"terms": True}}[name]  # type: ignore[assignment]
        logits, compute = _focal(config, shape, **options)  # type: ignore[arg-type]
        loss = compute()
        loss.sum().backward()
        assert logits.grad is not None
        for kind, value in (("loss", loss), ("grad", logits.grad)):
            stored = case.arrays[f"{name}_{kind}"]
            compare.check(f"{name}_{kind}", value.reshape(-1)[: stored.size].reshape(stored.shape), MODEL)
    compare.finish()
