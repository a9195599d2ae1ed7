"""Golden cases of INP-Former's parts, through the classes that `bench run` uses, in float64 on the CPU.

Tolerances: 1e-9 for model quantities, 1e-8 for gradients and trained parameters, 1e-7 for maps after the float32 Gaussian kernel,
1e-12 for the optimiser, 1e-15 for learning rates (GOLDEN.md of the family).
"""

from __future__ import annotations

import re
from typing import Any

import golden
import numpy as np
import torch
from golden import Case
from golden_arrays import Comparison, close
from methodkit import make_context
from torch import Tensor, nn

from inpbench.harness.api import Context
from inpbench.harness.scoring import Scoring, enlarge, image_scores, smooth_maps
from inpbench.methods.encoder_table import get_encoder
from inpbench.methods.encoders import build_encoder
from inpbench.methods.inp_former import InpFormerParams
from inpbench.methods.inp_former.app_map import to_bytes
from inpbench.methods.inp_former.augment import variants
from inpbench.methods.inp_former.method import InpFormer
from inpbench.methods.inp_former.model import InpFormerNetwork
from inpbench.methods.losses import cosine_distance, mined_global_cosine, soft_mining_weight
from inpbench.methods.optim import StableAdamW
from inpbench.methods.schedule import WarmCosine
from inpbench.methods.training import BatchOrder, Trainer

MODEL, GRADIENT, SMOOTHED = 1e-9, 1e-8, 1e-7


def context() -> Context:
    """float64 on the CPU, random weights (replaced by the formula), nothing cached."""
    return make_context(engine="reference")


def load_formula(method: Any, seed: int) -> None:
    """Formula weights for every tensor, through the loader of official checkpoints."""
    own = method.official_state()
    method.load_official({key: golden.formula(key, tuple(value.shape), seed) for key, value in own.items()})


def formula_encoder(name: str, size: tuple[int, int], seed: int) -> Any:
    """An encoder with the formula weights of the full model's keys (`encoder.` + its own)."""
    encoder = build_encoder(name, context(), size)
    own = encoder.official_state()
    encoder.load_official(
        {get_encoder(name).prefix + key: golden.formula(f"encoder.{key}", tuple(value.shape), seed) for key, value in own.items()}
    )
    return encoder


def outputs_of(modules: nn.ModuleList) -> tuple[list[Tensor], list[Any]]:
    """A list that fills with the modules' outputs in the order of execution, and the hooks to remove."""
    found: list[Tensor] = []
    return found, [module.register_forward_hook(lambda _module, _inputs, output: found.append(output)) for module in modules]


# --- encoders and whole models --------------------------------------------------------------------------------------


def _first_image(config: dict[str, Any]) -> int:
    match = re.search(r"RandomState\(1000\+(\d+)\+i\)", config["image_rng"])
    assert match, config["image_rng"]
    return int(match.group(1))


def _case_images(config: dict[str, Any]) -> Tensor:
    batch, _, height, width = config["image"]
    return golden.images(_first_image(config), batch, height, width)


def _check_encoder(compare: Comparison, encoder: Any, images: Tensor, layers: list[int]) -> None:
    prefix, grid = encoder.prefix, encoder.grid(tuple(images.shape[-2:]))
    compare.check_if_present("pos_embed_interp", encoder.position(grid), MODEL)
    compare.check_if_present("tokens_in", encoder.tokens(images), MODEL)
    for index, tokens in zip(layers, encoder.layers(images, layers), strict=True):
        compare.check_if_present(f"enc_layer_{index}", tokens[:, prefix:], MODEL)
        compare.check_if_present(f"enc_prefix_{index}", tokens[:, :prefix], MODEL)


def check_encoder(case: Case) -> None:
    """enc_*: position embedding, tokens and layers of an encoder, rectangles included."""
    config, compare = case.config, Comparison(case)
    images = _case_images(config)
    encoder = formula_encoder(config["encoder"], tuple(images.shape[-2:]), config["formula_seed"])
    _check_encoder(compare, encoder, images, config["layers"])
    compare.finish()


def check_inp_model(case: Case) -> None:
    """inp_*: every intermediate, the maps and scores, one backward, three optimiser steps under each schedule."""
    config, compare = case.config, Comparison(case)
    images = _case_images(config)
    size = tuple(images.shape[-2:])
    params = InpFormerParams(
        encoder=config["encoder"],
        input_size=size,
        crop_size=size,
        inp_num=config["INP_num"],
        target_layers=tuple(config["target_layers"]),
        mining_power=float(config["soft_mining_y"]),
    )
    method = InpFormer(params, context())
    load_formula(method, config["formula_seed"])
    _check_encoder(compare, method.encoder, images, config["target_layers"])
    output = _check_forward(compare, method, images)
    _check_losses(compare, method, output)
    _check_maps(compare, method, images, size)
    if "grad_norm" in config:
        _check_gradients(compare, method, output)
    start = {key: value.clone() for key, value in method.state().items()}
    for name, expected in config.get("training", {}).items():
        method.load_state(start)
        _check_training(compare, method, images, name, expected)
    compare.finish()


def _check_forward(compare: Comparison, method: InpFormer, images: Tensor) -> Any:
    features = method.encode(images)
    compare.check_if_present("fused", features.fused, MODEL)
    bottleneck, hooks = outputs_of(method.network.bottleneck)
    decoded, more = outputs_of(method.network.decoder)
    output: Any = method.decode(features)
    for hook in hooks + more:
        hook.remove()
    compare.check_if_present("bottleneck_out", bottleneck[-1], MODEL)
    for match in compare.arrays_named(r"dec_block_(\d+)"):
        compare.check(match.group(), decoded[int(match.group(1))], MODEL)
    compare.check_if_present("agg_prototype", output.prototypes, MODEL)
    compare.check_if_present("distance", output.distance, MODEL)
    compare.check_if_present("cluster_index", output.assignment, 0.0)
    for index, (target, decoder) in enumerate(zip(output.targets, output.outputs, strict=True)):
        compare.check_if_present(f"en_{index}", target, MODEL)
        compare.check_if_present(f"de_{index}", decoder, MODEL)
    assert list(output.targets[0].shape) == compare.case.config["en_shape"]
    return output


def _check_losses(compare: Comparison, method: InpFormer, output: Any) -> None:
    config = compare.case.config
    for index, distance in enumerate(method.distances(output)):
        compare.check_if_present(f"point_dist_{index}", distance, MODEL)
        weight = soft_mining_weight(distance.detach(), method.params.mining_power)
        compare.check_if_present(f"factor_{index}", weight, MODEL)
        close(f"mean_point_dist_{index}", distance.mean(), config[f"mean_point_dist_{index}"], MODEL)
    with torch.no_grad():
        close("g_loss", output.coherence, config["g_loss"], MODEL)
        close("loss_soft_mining", mined_global_cosine(output.targets, output.outputs), config["loss_soft_mining"], MODEL)


def _check_maps(compare: Comparison, method: InpFormer, images: Tensor, size: tuple[int, int]) -> None:
    config = compare.case.config
    output = method.decode(method.encode(images))
    amap = method.predict(images).amap
    unsmoothed, at_crop = Scoring(kernel=1), Scoring(metric_size=size)
    smoothed = smooth_maps(amap, size)
    compare.check_if_present("amap_group0", enlarge(method.distances(output)[0][:, 0], size)[:, None], MODEL)
    compare.check_if_present("amap_crop", enlarge(amap, size)[:, None], MODEL)
    compare.check_if_present("amap_256", smooth_maps(amap, size, unsmoothed)[:, None], MODEL)
    compare.check_if_present("amap_256_gauss", smoothed[:, None], SMOOTHED)
    compare.check_if_present("amap_256_gauss_border", smoothed[:, None, :2], SMOOTHED)
    zero_shot = method.zero_shot_map(images)
    zero_smoothed, app = smooth_maps(zero_shot, size), smooth_maps(zero_shot, size, at_crop)
    compare.check_if_present("zs_map_crop", enlarge(zero_shot, size)[:, None], MODEL)
    compare.check_if_present("zs_map_256_gauss", zero_smoothed[:, None], SMOOTHED)
    compare.check_if_present("app_map_crop_gauss", app[:, None], SMOOTHED)
    compare.check_if_present("app_map_uint8", to_bytes(app)[:, None], 0.0)
    assert int(smoothed[0].numel() * Scoring().top_ratio) == config["score_top1pct_count"]
    for prefix, maps in (("", smoothed), ("zs_", zero_smoothed)):
        close(f"{prefix}score_max", image_scores(maps, Scoring(top_ratio=0.0)), config[f"{prefix}score_max"], SMOOTHED)
        close(f"{prefix}score_top1pct", image_scores(maps), config[f"{prefix}score_top1pct"], SMOOTHED)


def _check_gradients(compare: Comparison, method: InpFormer, output: Any) -> None:
    config = compare.case.config
    parameters = dict(method.network.named_parameters())
    loss = method.loss(output, 0)
    close("loss_total", loss, config["loss_total"], MODEL)
    method.network.zero_grad()
    loss.backward()
    assert set(config["grad_norm"]) == set(parameters), "every trainable tensor, and no other, has a gradient"
    scale = max(config["grad_norm"].values())
    for key, expected in config["grad_norm"].items():
        found = float(parameters[key].grad.norm())  # type: ignore[union-attr]
        # A gradient that is zero but for rounding (a key's bias under a softmax) is judged on the scale of the others.
        assert abs(found - expected) <= GRADIENT * max(expected, 1e-7 * scale), f"gradient of {key}: {found}, expected {expected}"
    assert not [key for key, value in method.encoder.named_parameters() if value.grad is not None]
    norm = nn.utils.clip_grad_norm_(method.network.parameters(), method.params.clip_norm)
    close("grad_total_norm", norm, config["grad_total_norm_before_clip"], GRADIENT)
    for match in compare.arrays_named(r"grad_clipped/(.+)"):
        compare.check(match.group(), parameters[match.group(1)].grad.reshape(-1), GRADIENT)  # type: ignore[union-attr]


def _check_training(compare: Comparison, method: InpFormer, images: Tensor, name: str, expected: dict[str, Any]) -> None:
    match = re.fullmatch(r"sched_total(\d+)_warm(\d+)", name)
    assert match, name
    params = method.params
    schedule = WarmCosine(base=params.lr, final=params.final_lr, total=int(match.group(1)), warmup=int(match.group(2)))
    features = method.encode(images)
    trainer = Trainer(
        module=method.network,
        optimiser=method.optimiser(),
        schedule=schedule,
        loss=lambda _indices, step: method.loss(method.decode(features), step),
        order=BatchOrder(len(images), len(images), 1),
        steps=len(expected["lr"]),
        clip_norm=params.clip_norm,
        ctx=method.ctx,
    )
    for step, (rate, loss, norm) in enumerate(zip(expected["lr"], expected["loss"], expected["total_norm"], strict=True)):
        result = trainer.step(step)
        close(f"{name} lr {step}", result.rate, rate, 1e-15)
        close(f"{name} loss {step}", result.loss, loss, GRADIENT)
        close(f"{name} norm {step}", result.norm, norm, GRADIENT)
    close(f"{name} lr_next", schedule(trainer.steps), expected["lr_next"], 1e-15)
    with torch.no_grad():
        output: Any = method.decode(features)
        close(f"{name} loss_after", method.loss(output, 0), expected["loss_after"], GRADIENT)
        close(f"{name} g_loss_after", output.coherence, expected["g_loss_after"], GRADIENT)
    parameters = dict(method.network.named_parameters())
    for found in compare.arrays_named(rf"param_after\d+/{name}/(.+)"):
        compare.check(found.group(), parameters[found.group(1)].reshape(-1), GRADIENT)


# --- parts ----------------------------------------------------------------------------------------------------------


def check_soft_mining(case: Case) -> None:
    """soft_mining_*: the loss alone, gradients with the hook and without."""
    config, compare = case.config, Comparison(case)
    state = np.random.RandomState(config["seed"])
    batch, channels, height, width = config["shape"]
    targets, outputs = [], []
    for _ in range(2):
        target = state.standard_normal((batch, channels, height, width))
        spread = state.uniform(0, 2, (batch, 1, height, width))
        outputs.append(torch.from_numpy(target + spread * state.standard_normal((batch, channels, height, width))).requires_grad_())
        targets.append(torch.from_numpy(target))
    plain = mined_global_cosine(targets, outputs)
    without = torch.autograd.grad(plain, outputs)
    mined = mined_global_cosine(targets, outputs, lambda distance: soft_mining_weight(distance, config["y"]))
    close("loss", mined, config["loss"], MODEL)
    mined.backward()
    for index, (target, output) in enumerate(zip(targets, outputs, strict=True)):
        distance = cosine_distance(target, output.detach())
        compare.check(f"point_dist_{index}", distance, MODEL)
        compare.check(f"factor_{index}", soft_mining_weight(distance, config["y"]), MODEL)
        compare.check(f"grad_de_{index}", output.grad, GRADIENT)
        compare.check(f"grad_nohook_de_{index}", without[index], GRADIENT)
    compare.finish()


def check_stable_adamw(case: Case) -> None:
    """stable_adamw_*: ten steps with given gradients, several settings, two tensors in one group."""
    config, compare = case.config, Comparison(case)
    scales = re.search(r"S=\[([^\]]*)\]", config["recipe"])
    assert scales
    factors = [float(value) for value in scales.group(1).split(",")]
    for index, settings in enumerate(config["settings"]):
        state = np.random.RandomState(config["seed"])
        slopes, goals, tensors = [], [], []
        for shape in ((5,), (3, 4)):
            slopes.append(torch.from_numpy(state.uniform(0.5, 2, shape)))
            goals.append(torch.from_numpy(state.standard_normal(shape)))
            tensors.append(torch.from_numpy(state.standard_normal(shape)).requires_grad_())
        optimiser = StableAdamW(tensors, **{**settings, "betas": tuple(settings["betas"])})
        history: list[list[Tensor]] = [[], []]
        divisors = []
        for factor in factors[: config["steps"]]:
            for slope, goal, tensor in zip(slopes, goals, tensors, strict=True):
                tensor.grad = factor * slope * (tensor.detach() - goal)
            optimiser.step()
            divisors.append(torch.stack(optimiser.divisors))
            for past, tensor in zip(history, tensors, strict=True):
                past.append(tensor.detach().clone())
        compare.check(f"w1_{index}", torch.stack(history[0]), 1e-12)
        compare.check(f"w2_{index}", torch.stack(history[1]), 1e-12)
        compare.check(f"lr_scale_{index}", torch.stack(divisors), 1e-12)
    compare.finish()


def check_warm_cosine(case: Case) -> None:
    """warm_cosine*: learning rates by step."""
    for spec in case.config["cases"]:
        schedule = WarmCosine(
            base=spec["base"], final=spec["final"], total=spec["total"], warmup=spec["warmup"], start=spec.get("start", 0.0)
        )
        for step, rate in spec["lr_at"].items():
            assert abs(schedule(int(step)) - rate) <= 1e-15, (spec["total"], spec["warmup"], step)


def check_augmentation(case: Case) -> None:
    """fewshot_aug_*: the 22 variants in float32, and the shuffles that follow a seed."""
    config, compare = case.config, Comparison(case)
    image = np.random.RandomState(config["seed"]).standard_normal(config["shape"]).astype(np.float32)
    found = variants(torch.from_numpy(image))
    expected = case.arrays["aug"]
    compare.check("aug", found, 1e-4 / float(np.abs(expected).max()))  # 1e-4 absolute, float32 (GOLDEN.md)
    pixels = found[0].numel()
    for index, (mean, total) in enumerate(zip(config["mean_abs"], config["sums"], strict=True)):
        assert abs(float(found[index].abs().double().mean()) - mean) <= 1e-4, index
        assert abs(float(found[index].double().sum()) - total) <= 1e-4 * pixels, index
    for seed, orders in config["torch.manual_seed(s) then randperm(22) three times"].items():
        generator = torch.Generator().manual_seed(int(seed))
        for order in orders:
            assert torch.randperm(len(found), generator=generator).tolist() == order
    compare.finish()


# --- initialisation -------------------------------------------------------------------------------------------------


def _draw_encoder(patch: int, dim: int, depth: int, native: int, registers: int | None) -> None:
    """Consume torch's generator as the construction of an official ViT does; registers None: DINO v1, else DINOv2."""
    nn.Conv2d(3, dim, patch, patch)
    linears = [
        nn.Linear(wide_in * dim, wide_out * dim) for _ in range(depth) for wide_in, wide_out in ((1, 3), (1, 1), (1, 4), (4, 1))
    ]
    nn.init.trunc_normal_(torch.zeros(1, 1 + (native // patch) ** 2, dim), std=0.02)
    if registers is None:
        nn.init.trunc_normal_(torch.zeros(1, 1, dim), std=0.02)
    else:
        nn.init.normal_(torch.zeros(1, 1, dim), std=1e-6)
        if registers:
            nn.init.normal_(torch.zeros(1, registers, dim), std=1e-6)
    for linear in linears:
        nn.init.trunc_normal_(linear.weight, std=0.02)


def check_initialisation(case: Case) -> None:
    """init_*: the trainable tensors after the original's order of random draws (float32).

    The original builds and discards a DINO v1 ViT, then builds its encoder: their draws are repeated here, the network is ours.
    """
    config, compare = case.config, Comparison(case)
    entry = get_encoder(config["encoder"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        _draw_encoder(entry.patch, entry.dim, entry.depth, 224, None)
        _draw_encoder(entry.patch, entry.dim, entry.depth, entry.native, entry.registers if entry.layer_scale else None)
        params = InpFormerParams(encoder=entry.name, inp_num=config["INP_num"])
        network = InpFormerNetwork(entry.dim, entry.heads, params.inp_num, params.decoder_depth, params.decoder_groups)
        close("next_rand", torch.rand(3), config["next_rand"], 1e-6)
    tensors = dict(network.named_parameters())
    assert sum(value.numel() for value in tensors.values()) == config["n_trainable"]
    assert set(config["stats"]) == set(tensors)
    for key, (mean, deviation, low, high) in config["stats"].items():
        value = tensors[key].detach().double()
        found = [float(value.mean()), float(value.std()), float(value.min()), float(value.max())]
        for one, other in zip(found, (mean, deviation, low, high), strict=True):
            assert abs(one - other) <= 1e-5, (key, found)
    for match in compare.arrays_named(r".+"):
        compare.check(match.group(), tensors[match.group()].reshape(-1), 1e-6)
    compare.finish()
