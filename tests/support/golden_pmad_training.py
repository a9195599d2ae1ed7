"""Golden cases of PMAD's training: masks bit for bit, schedules, steps of the official loop."""

from __future__ import annotations

import re

import numpy as np
import scipy.ndimage
import torch
from golden import Case
from golden_pmad import FLOAT32, TRAINING, Comparison, feed_drop_path, formula_state, pictures, rule, tokenizer_of, trunk_shape
from torch import Tensor

from inpbench.methods.pmad.mask_draws import Draws, Weights, blocks, single_patches
from inpbench.methods.pmad.masks import (
    MVTEC_RATIOS,
    MaskPlan,
    draw_mask,
    foreground_patches,
    frequency_weights,
    loss_weights,
)
from inpbench.methods.pmad.proposal import count_of
from inpbench.methods.schedule import WarmCosine

SIDE, PATCH, CAP = 14, 16, 58
CATEGORIES = sorted(MVTEC_RATIOS)  # the originals' class numbers


def _picture(text: str) -> Tensor:
    match = re.search(r"gaussian_filter\((RandomState.*\)), sigma=\(([\d.,]+)\)\)", text)
    if match is None:
        return rule(text)
    sigma = tuple(float(number) for number in match.group(2).split(","))
    return torch.from_numpy(scipy.ndimage.gaussian_filter(rule(match.group(1)).numpy(), sigma=sigma))


def _foreground(text: str) -> Tensor:
    match = re.search(r"\((\d+),(\d+),(\d+)\) float64, 1 where \(\(row-(\d+)\)/(\d+)\)\^2\+\(\(col-(\d+)\)/(\d+)\)\^2<=1", text)
    assert match, text
    _, height, width, row, tall, column, wide = (int(number) for number in match.groups())
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    return ((((rows - row) / tall) ** 2 + ((columns - column) / wide) ** 2) <= 1).double()[None]


def _errors(text: str) -> Tensor:
    match = re.search(r"RandomState\((\d+)\)\.random_sample\((\d+)\)\*(\d+)(?: with entries ([\d,]+) set to 0)?", text)
    assert match, text
    values = np.random.RandomState(int(match.group(1))).random_sample(int(match.group(2))) * float(match.group(3))
    values[[int(number) for number in (match.group(4) or "").split(",") if number]] = 0.0
    return torch.from_numpy(values)


def check_train_masks(case: Case) -> None:
    """Every generator and the wrapper, bit for bit under the stated seeds."""
    config, compare = case.config, Comparison(case)
    image, foreground = _picture(config["image"]), foreground_patches(_foreground(config["foreground"]), PATCH)
    frequency = frequency_weights(image, PATCH)
    compare.check("freq_patch", frequency)
    counts = [count_of(MVTEC_RATIOS[name], SIDE**2) for name in CATEGORIES]
    pairs = list(zip(config["seeds"], config["targets"], strict=True))
    for name in list(case.arrays):
        match = re.fullmatch(r"(block|random)_(all|fg)_(uniform|freq|weights)", name)
        if not match:
            continue
        generator, place, kind = match.groups()
        pool = foreground if place == "fg" else None
        found, sums = [], []
        for seed, target in pairs:
            draws, errors = Draws(seed), _errors(config["sampling_weights"])
            weights = {"uniform": None, "freq": Weights(frequency.clone(), False), "weights": Weights(errors, True)}[kind]
            if generator == "block":
                found.append(blocks(draws, SIDE, counts[target], CAP, pool, weights))
            else:
                found.append(single_patches(draws, SIDE**2, counts[target], pool, weights))
            sums.append(errors.sum())
        compare.check(name, torch.stack(found).long(), 0.0)
        if f"{name}_wsum_after" in compare:
            compare.check(f"{name}_wsum_after", torch.stack(sums))
    if "random_default" in compare:
        asked = re.search(r"num_masking_patches=(\d+)", config["arrays"]["random_default"]["what"])
        assert asked
        rows = [single_patches(Draws(seed), SIDE**2, int(asked.group(1))) for seed, _ in pairs]
        compare.check("random_default", torch.stack(rows).long(), 0.0)
    _check_wrapper(compare, image, foreground, counts)
    compare.finish()


def _check_wrapper(compare: Comparison, image: Tensor, foreground: Tensor, counts: list[int]) -> None:
    config, plan = compare.case.config, MaskPlan(SIDE, PATCH, CAP)
    targets = config["targets"]
    for name, dynamic in (("combo_nw", False), ("combo_w", True)):
        masks, weights = [], []
        for seed in range(config["arrays"][name]["shape"][0]):
            errors = _errors(config["sampling_weights"])
            count = counts[targets[seed % len(targets)]]
            masks.append(draw_mask(Draws(seed), plan, count, image, foreground, errors if dynamic else None))
            weights.append(loss_weights(errors, masks[-1]))
        compare.check(name, torch.stack(masks).long(), 0.0)
        if dynamic:
            compare.check("combo_w_counts", torch.stack([mask.sum() for mask in masks]), 0.0)
            compare.check("combo_w_weights", torch.cat(weights), FLOAT32)


def check_schedule(case: Case) -> None:
    """The learning rates of both stages."""
    from inpbench.methods.pmad import INFO
    from inpbench.methods.pmad.flow_training import FlowSchedule

    config, compare = case.config, Comparison(case)
    args = config["args"]
    steps = args["niter"]
    warm = args["warmup_epochs"] * steps
    if args["warmup_steps"] > 0 and args["warmup_epochs"] > 0:
        warm = args["warmup_steps"]
    schedule = WarmCosine(base=args["base"], final=args["final"], total=args["epochs"] * steps, warmup=warm)
    compare.check("at", case.arrays["at"], 0.0)
    compare.check("value", [schedule(int(step)) for step in case.arrays["at"]], 1e-15)
    compare.check("length", [schedule.total], 0.0)
    compare.check("sum", np.sum([schedule(step) for step in range(schedule.total)]))
    if "protoflow_lr" in compare:
        params = INFO.params()
        asked = re.search(r"total batches per meta epoch ?= ?(\d+)", config["arrays"]["protoflow_lr"]["what"])
        assert asked
        table = case.arrays["protoflow_lr"]
        epochs = int(table[:, 0].max()) + 1
        flow = FlowSchedule(lr=config.get("lr", params.flow_lr), meta_epochs=epochs, per_epoch=int(asked.group(1)))
        found = [[epoch, batch, flow(int(epoch * flow.per_epoch + batch))] for epoch, batch, _ in table]
        compare.check("protoflow_lr", np.array(found), 1e-15)
    compare.finish()


def check_train_steps(case: Case) -> None:
    """Steps of the official loop: losses, norms, rates, optimiser groups, tensors and running errors afterwards."""
    from golden_models import context

    from inpbench.methods.pmad.model import ReconstructionModel
    from inpbench.methods.pmad.recon_training import ReconstructionTraining, parameter_groups
    from inpbench.methods.training import BatchOrder, Trainer

    config, compare = case.config, Comparison(case)
    shape = trunk_shape(config["config"])
    model = ReconstructionModel(shape, config["config"]["vocab_size"]).double()
    model.load_official(formula_state(model, config["weights_seed"]))
    tokenizer = tokenizer_of(config["tokenizer_config"], config["tokenizer_seed"])
    patches, steps, side = shape.side**2, config["steps"], shape.image
    described = re.search(
        r"image RandomState\((\d+)\+i\)\.standard_normal, token image RandomState\((\d+)\+i\)\.random_sample, "
        r"mask RandomState\((\d+)\+(\d+)\*i\)\.permutation\((\d+)\)\[:(\d+)\+(\d+)\*i\]",
        config["data"],
    )
    assert described, config["data"]
    image_base, token_base, mask_base, mask_step, count, first, growth = (int(n) for n in described.groups())
    assert count == patches
    images = pictures([f"RandomState({image_base + i}).standard_normal((3,{side},{side}))" for i in range(steps)])
    ids = tokenizer(pictures([f"RandomState({token_base + i}).random_sample((3,{side},{side}))" for i in range(steps)]))
    masks = torch.zeros(steps, patches, dtype=torch.bool)
    for i in range(steps):
        masks[i, np.random.RandomState(mask_base + mask_step * i).permutation(patches)[: first + growth * i]] = True
    compare.check("ids0", ids[:1], 0.0)

    epoch, per_epoch = config["epoch"], config.get("niter", steps)
    dynamic_from = 100
    training = ReconstructionTraining(model, MaskPlan(shape.side, shape.patch, CAP), [CAP], 0, dynamic_from).double()
    if config["w0"]:
        text = re.search(r"RandomState\((\d+)\)\.random_sample\((\d+)\)\*(\d+); initial counts (\d+)", config["w0"])
        assert text
        training.errors[0] = torch.from_numpy(
            np.random.RandomState(int(text.group(1))).random_sample(int(text.group(2))) * float(text.group(3))
        )
        training.counts[0] = float(text.group(4))
    groups = parameter_groups(model, config["weight_decay"])
    names = {id(value): key for key, value in model.named_parameters()}
    assert [[names[id(value)] for value in group["params"]] for group in groups] == config["group_names"]  # type: ignore[attr-defined]
    for group, expected in zip(groups, config["groups"], strict=True):
        assert group["weight_decay"] == expected["weight_decay"] and len(group["params"]) == expected["n"]  # type: ignore[arg-type]
    total, warm = config["epochs"] * per_epoch, config["warmup_epochs"] * per_epoch
    betas, eps = tuple(config.get("opt_betas") or (0.9, 0.999)), config.get("opt_eps", 1e-8)
    start = epoch * per_epoch
    trainer = Trainer(
        module=training,
        optimiser=torch.optim.AdamW(groups, lr=config["lr"], betas=betas, eps=eps),
        schedule=WarmCosine(base=config["lr"], final=config["min_lr"], total=total, warmup=warm),
        loss=lambda _indices, step: training.loss(
            images[step - start, None], ids[step - start, None], masks[step - start, None], [0], epoch
        ),
        order=BatchOrder(steps, 1, 1),
        steps=total,
        clip_norm=config["clip_grad"] or float("inf"),
        ctx=context(),
    )
    training.train()
    if "drop_path_rule" in config:
        feed_drop_path(model, config["drop_path_rule"])
    rows = []
    for step in range(start, start + steps):
        result = trainer.step(step)
        rows.append([float(result.loss), float(result.norm), result.rate])
    compare.check("steps", np.array(rows), TRAINING)
    state = model.state_dict()
    assert set(config["param_keys"]) == {key for key in state if not key.endswith("relative_position_index")}
    sums = torch.stack([torch.stack((state[key].sum(), state[key].norm())) for key in config["param_keys"]])
    compare.check("checksums", sums, TRAINING)
    compare.check("lm_head_bias", state["lm_head.bias"], TRAINING)
    compare.check("mask_token", state["mask_token"], TRAINING)
    compare.check("sampling_weights", training.errors[0], TRAINING)
    compare.check("sampling_counts", training.counts[0], 0.0)
    compare.finish()
