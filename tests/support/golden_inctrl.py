"""Golden cases of InCTRL: forward passes of one and of several queries, three training steps, the start, and its tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from golden import Case
from golden_arrays import close
from golden_clip import AFTER_STEPS, LEAST, ONCE, References, Strided, context, formula_state, images, registered
from methodkit import make_context
from torch import Tensor

from inpbench.methods.inctrl import InCtrlParams
from inpbench.methods.inctrl.method import InCtrl
from inpbench.methods.inctrl.model import (
    Encoded,
    InCtrlOutput,
    batch_residuals,
    focal_terms,
    inctrl_loss,
    repeated,
)
from inpbench.methods.inctrl.sampler import BalancedOrder


def method_of(case: Case, **changes: Any) -> InCtrl:
    """A method with the case's network, its formula weights loaded as an official checkpoint is."""
    with pytest.MonkeyPatch.context() as patch:
        model = registered(case.config["config"], patch)
        method = InCtrl(InCtrlParams(model=model, **changes), context("generalist"))
    method.load_official(formula_state(official(method), case.config["seed"]))
    return method


def official(method: InCtrl) -> dict[str, Tensor]:
    """The tensors of a method under the names of an official checkpoint, which has no logit_scale."""
    towers = {key: value for key, value in method.towers.model.state_dict().items() if key != "logit_scale"}
    return {**towers, **method.heads.state_dict()}


def _side(case: Case) -> int:
    side: int = case.config["config"]["vision_cfg"]["image_size"]
    return side


# --- forward passes -------------------------------------------------------------------------------------------------


def check_eval(case: Case) -> None:
    """inctrl_eval: every intermediate of the official batch; and each query on its own, which is what `predict` gives."""
    config, compare, side = case.config, Strided(case), _side(case)
    method = method_of(case, test_residuals="official")
    pictures, types = images(config["query_images"], side), config["types"]
    batch = len(types)
    tokens = method.towers.tokens(pictures, method.params.layers)
    for layer, block in zip(method.params.layers, tokens.blocks, strict=True):
        compare.check(f"tokens_block{layer + 1}", block)
    compare.check("final_tokens", tokens.last)
    queries = method.encode(pictures)
    compare.check("cls_embed_query", queries.pooled)
    if config["prompt_mode"] == "normal_list":
        prompts = repeated(method.encode(images(config["prompt_images"], side)), batch)
    else:
        assert config["prompt_mode"] == "per_query", config["prompt_mode"]
        prompts = method.encode(torch.cat([images(row, side) for row in config["per_query_prompts"]]))
    found, pooled = batch_residuals(queries, prompts, official=True)
    text = method.text_scores(queries.pooled, types)
    with torch.no_grad():
        output: InCtrlOutput = method.heads(queries.pooled, pooled, found.amap, text)
    compare.check("cls_adapted_query", output.adapted)
    compare.check("cls_adapted_prompt_mean", output.prompt)
    compare.check("image_residual", output.prompt - output.adapted)
    compare.check("residual_map_per_slot", found.slots)
    compare.check("patch_ref_map", found.amap)
    compare.check("text_score", text[:, None])
    compare.check("text_features_last", method.prototypes(types[-1]))
    compare.check("img_ref_score", output.image_score)
    compare.check("holistic_map", output.holistic)
    compare.check("hl_score", output.head_score)
    compare.check("fg_score", output.patch_score)
    compare.check("final_score", output.score)
    _check_alone(case, compare, method, pictures, prompts)
    if len(set(types)) == 1 and config["prompt_mode"] == "normal_list":
        method.enter(types[0], References(images(config["prompt_images"], side)))  # type: ignore[arg-type]
        compare.check("final_score", method.predict(pictures).score)
    compare.finish()


def _check_alone(case: Case, compare: Strided, method: InCtrl, pictures: Tensor, prompts: Encoded) -> None:
    """`final_and_imgref_b1`: what the default, one image at a time, gives for the same queries; alone, and for all at once."""
    batch, config = len(pictures), case.config
    per_image, pooled = batch_residuals(method.encode(pictures), prompts, official=False)
    rows = []
    for i, name in enumerate(config["types"]):
        if config["prompt_mode"] == "normal_list":
            mine = config["prompt_images"]
        else:
            mine = [row[i] for row in config["per_query_prompts"]]
        alone = InCtrl.__new__(InCtrl)  # the same tensors, the default of the parameter
        alone.__dict__.update(method.__dict__, params=InCtrlParams(model=method.params.model))
        alone.enter(name, References(images(mine, _side(case))))  # type: ignore[arg-type]
        with torch.no_grad():
            output, amap = alone.score(pictures[i : i + 1])
        rows.append([float(output.score), float(output.image_score)])
        close(f"map of query {i} in a batch", per_image.amap[i], amap[0], ONCE, LEAST)
    assert pooled.shape[0] == batch
    compare.check_if_present("final_and_imgref_b1", np.asarray(rows))
    if batch == 1:
        compare.check("final_score", np.asarray(rows)[:, 0])


# --- the training ---------------------------------------------------------------------------------------------------


def check_training(case: Case) -> None:
    """inctrl_train: the production loss in the production loop, on the case's own batches."""
    config, compare, side = case.config, Strided(case), _side(case)
    optimiser = config["optimizer"]
    assert optimiser["name"] == "AdamW" and optimiser["betas"] == [0.9, 0.999] and optimiser["eps"] == 1e-8
    method = method_of(case, lr=optimiser["lr"], weight_decay=optimiser["weight_decay"])
    labels, types, plan = torch.tensor(config["labels"]), config["types"], config["steps"]
    order = BalancedOrder([0], [1], 2, len(plan), 1, 0)
    outputs: list[InCtrlOutput] = []

    def loss(_indices: list[int], step: int) -> Tensor:
        queries = method.encode(images(plan[step]["q"], side))
        prompts = method.encode(torch.cat([images(row, side) for row in plan[step]["p"]]))
        output = method.compare(queries, prompts, types)
        if step == 0:
            found, _ = batch_residuals(queries, prompts, official=True)
            for name, value in (
                ("patch_ref_map", found.amap),
                ("residual_map_per_slot", found.slots),
                ("image_residual", output.prompt - output.adapted),
                ("text_score", method.text_scores(queries.pooled, types)[:, None]),
                ("fg_score", output.patch_score),
                ("hl_score", output.head_score),
            ):
                compare.check(f"step0.{name}", value)
        outputs.append(output)
        return inctrl_loss(output, labels, method.params.gamma)

    trainer = method.trainer(loss, order, len(plan))
    method.heads.train()
    parameters = dict(method.heads.named_parameters())
    assert set(parameters) == set(config["trainable_tensors"])
    losses, norms = [], []
    for step in range(len(plan)):
        losses.append(trainer.step(step).loss)
        gradients = [parameters[key].grad for key in config["trainable_tensors"]]
        norms.append([-1.0 if gradient is None else float(gradient.norm()) for gradient in gradients])
        if step == 0:
            for key, gradient in zip(config["trainable_tensors"], gradients, strict=True):
                if gradient is not None:
                    compare.check(f"grad0.{key}", gradient, AFTER_STEPS)
    method.heads.eval()
    _check_run(compare, outputs, losses, norms, labels)
    for key, value in method.heads.state_dict().items():
        compare.check(f"after.{key}", value, AFTER_STEPS)
    method.enter(types[0], References(images([row[0] for row in plan[0]["p"]], side)))  # type: ignore[arg-type]
    with torch.no_grad():
        output, _ = method.score(images(plan[0]["q"][:1], side))
    compare.check("eval_after", torch.cat((output.score, output.image_score)), AFTER_STEPS)
    compare.finish()


def _check_run(compare: Strided, outputs: list[InCtrlOutput], losses: list[Tensor], norms: list[Any], labels: Tensor) -> None:
    parts = [[focal_terms(x, labels, 2.0).mean().detach() for x in (out.score, out.image_score)] for out in outputs]
    compare.check("loss", torch.stack(losses), AFTER_STEPS)
    compare.check("loss_parts", torch.tensor(parts, dtype=torch.float64), AFTER_STEPS)
    compare.check("final_score", torch.stack([out.score.detach() for out in outputs]), AFTER_STEPS)
    compare.check("img_ref_score", torch.stack([out.image_score.detach() for out in outputs]), AFTER_STEPS)
    compare.check("grad_norm", np.asarray(norms), AFTER_STEPS)


# --- the start ------------------------------------------------------------------------------------------------------


def check_start(case: Case) -> None:
    """init: bit-equal float32 start values of a seed, and the state of torch's generator behind them."""
    fork = torch.random.fork_rng
    for entry in case.config["cases"]:
        drawn: list[Tensor] = []

        @contextlib.contextmanager
        def peeking(into: list[Tensor] = drawn, **_: Any) -> Iterator[None]:
            with fork(devices=[]):
                yield
                into.append(torch.rand(3))  # of the generator as the construction left it

        with pytest.MonkeyPatch.context() as patch:
            model = registered({"vision_cfg": entry["vision_cfg"], "text_cfg": entry["text_cfg"]}, patch)
            patch.setattr(torch.random, "fork_rng", peeking)
            method = InCtrl(InCtrlParams(model=model), make_context(seed=entry["seed"], dtype=torch.float32))
        state = official(method)
        assert drawn[0].double().tolist() == entry["values"]["next_rand"]
        for key, expected in entry["values"].items():
            if key == "next_rand":
                continue
            values = state[key].double().flatten().numpy()
            assert len(values) == expected["n"], key
            assert values[: len(expected["first"])].tolist() == expected["first"], key
            for name, found in (("sum", values.sum()), ("abs_sum", np.abs(values).sum())):  # added up in another order
                assert abs(found - expected[name]) <= 1e-9 * expected["abs_sum"], key
