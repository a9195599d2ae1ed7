"""Golden cases of Dinomaly's parts, through the classes that `bench run` uses, in float64 on the CPU.

Tolerance 1e-9 throughout (deliberate errors of 2e-8 must show), but 1e-7 after the float32 Gaussian kernel and 1e-15 for learning
rates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import golden
import numpy as np
import torch
from golden import Case
from golden_arrays import Comparison
from golden_models import MODEL, SMOOTHED, context, formula_encoder, load_formula, outputs_of
from torch import Tensor, nn

from inpbench.harness.scoring import Scoring, enlarge, gaussian_kernel, image_scores, smooth_maps
from inpbench.methods.attention import SELF_ATTENTIONS
from inpbench.methods.blocks import Mlp, SelfAttentionBlock
from inpbench.methods.dinomaly import DinomalyParams
from inpbench.methods.dinomaly.method import Dinomaly
from inpbench.methods.losses import (
    cosine_distance,
    focal_weight,
    hard_mining_count,
    hard_mining_threshold,
    hard_mining_weight,
    hardest_weight,
    mined_global_cosine,
    regional_cosine,
    threshold_weight,
)
from inpbench.methods.optim import StableAdamW
from inpbench.methods.schedule import WarmCosine
from inpbench.methods.training import BatchOrder, Trainer

# The originals' class names.
ATTENTIONS = {"LinearAttention2": "linear", "LinearAttention": "explicit_linear", "Attention": "softmax"}


class FedDropout(nn.Module):
    """Dropout whose uniform numbers come from a stated stream: keep where u >= p."""

    def __init__(self, rate: float, state: np.random.RandomState) -> None:
        super().__init__()
        self.rate, self.state = rate, state

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.from_numpy(self.state.random_sample(tuple(x.shape)) >= self.rate)
        return x * keep / (1.0 - self.rate)


def _groups(value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(group) for group in value)


def _method(config: dict[str, Any], **changes: Any) -> Dinomaly:
    size = (config["size"], config["size"])
    groups = config.get("groups")
    params = DinomalyParams(
        encoder=config["encoder"],
        input_size=size,
        crop_size=size,
        target_layers=tuple(config["target_layers"]),
        encoder_groups=_groups(config.get("fuse_layer_encoder", groups)),
        decoder_groups=_groups(config.get("fuse_layer_decoder", groups)),
        attention=ATTENTIONS[config.get("decoder_attn", "LinearAttention2")],  # type: ignore[arg-type]
        remove_class_token=config.get("remove_class_token", False),
        **changes,
    )
    method = Dinomaly(params, context())
    load_formula(method, config["weight_seed"])
    return method


def _images(config: dict[str, Any], first: int = 0) -> Tensor:
    return golden.images(config["image_seed_base"] - 1000 + first, config["batch"], config["size"], config["size"])


# --- whole models ---------------------------------------------------------------------------------------------------


def check_forward(case: Case) -> None:
    """dinomaly_forward*: every intermediate in eval mode, maps, scores, the plain loss."""
    config, compare = case.config["config"], Comparison(case)
    method, images = _method(config), _images(config)
    compare.check_if_present("tokens", method.encoder.tokens(images), MODEL)  # type: ignore[operator]
    for match in compare.arrays_named(r"enc_block(\d+)"):
        compare.check(match.group(), method.encoder.layers(images, [int(match.group(1))])[0], MODEL)
    bottleneck, hooks = outputs_of(method.network.bottleneck)  # type: ignore[arg-type]
    decoded, more = outputs_of(method.network.decoder)  # type: ignore[arg-type]
    features = method.encode(images)
    output = method.decode(features)
    for hook in hooks + more:
        hook.remove()
    compare.check_if_present("bott_in", features.fused, MODEL)
    compare.check_if_present("bott_out", bottleneck[-1], MODEL)
    for match in compare.arrays_named(r"dec_block(\d+)"):
        compare.check(match.group(), decoded[int(match.group(1))], MODEL)
    for index, distance in enumerate(method.distances(output)):
        compare.check_if_present(f"en{index}", output.targets[index], MODEL)
        compare.check_if_present(f"de{index}", output.outputs[index], MODEL)
        compare.check_if_present(f"cosdist{index}", distance[:, 0], MODEL)
    compare.check_if_present("loss_global_cosine", mined_global_cosine(output.targets, output.outputs), MODEL)
    _check_maps(compare, method.predict(images).amap, config)
    compare.finish()


def _check_maps(compare: Comparison, amap: Tensor, config: dict[str, Any]) -> None:
    size, side = (config["size"], config["size"]), config["resize_mask"]
    scoring = Scoring(metric_size=(side, side))
    smoothed = smooth_maps(amap, size, scoring)
    compare.check_if_present("amap_full", enlarge(amap, size)[:, None], MODEL)
    compare.check_if_present("amap_resized", smooth_maps(amap, size, Scoring(metric_size=(side, side), kernel=1))[:, None], MODEL)
    compare.check_if_present("amap_final", smoothed[:, None], SMOOTHED)
    compare.check_if_present("gauss_kernel", gaussian_kernel(scoring)[None, None], SMOOTHED)
    compare.check_if_present("score_max", image_scores(smoothed, Scoring(top_ratio=0.0)), SMOOTHED)
    for match in compare.arrays_named(r"score_top([0-9.]+)"):
        compare.check(match.group(), image_scores(smoothed, Scoring(top_ratio=float(match.group(1)))), SMOOTHED)


def _ramp(text: str) -> tuple[float, int, float]:
    """(slope, steps, most) of a share that grows like `min(0.9*it/1000, 0.9)`."""
    ramp = re.match(r"min\(([0-9.]+) ?\* ?it ?/ ?(\d+), ?([0-9.]+)\)", text)
    assert ramp, text
    return float(ramp.group(1)), int(ramp.group(2)), float(ramp.group(3))


def training_options(config: dict[str, Any]) -> dict[str, Any]:
    """The mined loss and the optimiser of a case as parameters; what the method has fixed must be as it has it."""
    optimiser = config["optimizer"]
    assert optimiser["name"] == "StableAdamW" and optimiser["amsgrad"] is True
    assert optimiser.get("betas", [0.9, 0.999]) == [0.9, 0.999] and optimiser.get("clip_threshold", 1.0) == 1.0
    slope, steps, most = _ramp(config["p"])
    assert slope == most, "the ramp ends at its height"
    return {
        "mining_factor": config["factor"],
        "mining_share": most,
        "mining_ramp": steps,
        "eps": optimiser["eps"],
        "weight_decay": optimiser["weight_decay"],
    }


def check_training(case: Case) -> None:
    """dinomaly_train*: steps of the training loop, each on its own images; dropout fed where the case says so."""
    config, compare = case.config["config"], Comparison(case)
    method = _method(config, dropout=config["dropout_p"], **training_options(config))
    if config["dropout_feed"]:
        seed = re.search(r"RandomState\((\d+)\)", config["dropout_feed"])
        assert seed
        method.network.bottleneck[0].drop = FedDropout(config["dropout_p"], np.random.RandomState(int(seed.group(1))))  # type: ignore
    plan, first = config["schedule"], config["it_of_first_step"]
    features = [method.encode(_images(config, step * config["batch"])) for step in range(config["steps"])]
    outputs: list[Any] = []

    def loss(_indices: list[int], step: int) -> Tensor:
        outputs.append(method.decode(features[step]))
        value = method.loss(outputs[-1], first + step)
        gradients.update(_register(method.network))
        return value

    gradients: dict[str, list[Tensor]] = {}
    trainer = Trainer(
        module=method.network,
        optimiser=method.optimiser(),
        schedule=WarmCosine(base=plan["base"], final=plan["final"], total=plan["total"], warmup=plan["warmup"]),
        loss=loss,
        order=BatchOrder(1, 1, 1),
        steps=config["steps"],
        clip_norm=config["grad_clip"],
        ctx=method.ctx,
    )
    method.network.train()
    _run(compare, method, trainer, outputs, gradients)
    method.network.eval()
    amap = method.predict(_images(config)[:2]).amap
    compare.check_if_present("amap_after", enlarge(amap, (config["size"], config["size"]))[:, None], MODEL)
    compare.finish()


def _register(network: nn.Module) -> dict[str, list[Tensor]]:
    """Lists that receive each parameter's gradient before clipping, in this backward."""
    found: dict[str, list[Tensor]] = {}
    for key, parameter in network.named_parameters():
        found[key] = []
        handle = parameter.register_hook(lambda gradient, into=found[key]: into.append(gradient.clone()))
        found[key].append(handle)  # type: ignore[arg-type]
    return found


def _run(compare: Comparison, method: Dinomaly, trainer: Trainer, outputs: list[Any], gradients: dict[str, Any]) -> None:
    config = compare.case.config["config"]
    order, steps = config["trainable_param_order"], range(config["steps"])
    parameters = dict(method.network.named_parameters())
    assert set(order) == set(parameters)
    rows: dict[str, list[Any]] = {
        name: [] for name in ("loss", "lr", "grad_total_norm", "thresh", "k", "param_grad_norm", "param_sum", "param_sumsq")
    }
    for step in steps:
        result = trainer.step(step)
        share = method.mining_share(config["it_of_first_step"] + step)
        distances = [distance.detach() for distance in method.distances(outputs[step])]
        before_clipping = {}
        for key, (handle, gradient) in gradients.items():
            handle.remove()
            before_clipping[key] = gradient
        for name, value in (
            ("loss", result.loss),
            ("lr", torch.tensor(result.rate, dtype=torch.float64)),
            ("grad_total_norm", result.norm),
            ("thresh", torch.stack([hard_mining_threshold(distance, share) for distance in distances])),
            ("k", torch.tensor([hard_mining_count(distance.numel(), share) for distance in distances])),
            ("param_grad_norm", torch.stack([before_clipping[key].norm() for key in order])),
            ("param_sum", torch.stack([parameters[key].detach().sum() for key in order])),
            ("param_sumsq", torch.stack([(parameters[key].detach() ** 2).sum() for key in order])),
        ):
            rows[name].append(value)
        for index, output in enumerate(outputs[step].outputs):
            compare.check_if_present(f"step{step}_de{index}", output, MODEL)
        for match in compare.arrays_named(rf"step{step}_grad/(.+?)(?<!__stat)"):
            # The json says "before clipping", but the arrays were clipped in place before they were written; their stats were not.
            key = match.group(1)
            compare.check(match.group(), parameters[key].grad, MODEL, stat_of=before_clipping[key])
        for match in compare.arrays_named(rf"step{step}_w/(.+?)(?<!__stat)"):
            compare.check(match.group(), parameters[match.group(1)], MODEL)
    for name, values in rows.items():
        compare.check_if_present(name, torch.stack(values), 1e-15 if name == "lr" else 0.0 if name == "k" else MODEL)


# --- parts ----------------------------------------------------------------------------------------------------------


def check_position(case: Case) -> None:
    """dinov*_posembed: the interpolated position embedding on several grids."""
    config, compare = case.config["config"], Comparison(case)
    for side in config["sizes"]:
        size = (side, side) if isinstance(side, int) else tuple(side)
        encoder = formula_encoder(config["encoder"], size, config["weight_seed"])
        compare.check(f"pos_{size[0]}x{size[1]}", encoder.position(encoder.grid(size)), MODEL)
    compare.finish()


def _formula_module(module: nn.Module, seed: int, dtype: torch.dtype = torch.float64) -> Any:
    """A stand-alone module with formula weights under its own keys."""
    module = module.to(dtype)
    module.load_state_dict({key: golden.formula(key, tuple(value.shape), seed) for key, value in module.state_dict().items()})
    return module


def _scaled_normal(recipe: str, shape: Sequence[int]) -> tuple[float, np.ndarray]:
    match = re.match(r"(?:([0-9.e+-]+)\*)?RandomState\((\d+)\)", recipe)
    assert match, recipe
    return float(match.group(1) or 1.0), np.random.RandomState(int(match.group(2))).standard_normal(tuple(shape))


def check_linear_attention(case: Case) -> None:
    """linear_attention*: both forms alone, their gradients, the eps of the denominator, and the NaN of float32."""
    config, compare = case.config["config"], Comparison(case)
    dim, heads, seed = config["dim"], config["heads"], config["weight_seed"]
    shape = (config["B"], config["N"], dim)
    factor, normal = _scaled_normal(config["x"], shape)
    weight_factor, weight_normal = _scaled_normal(config["w"], shape)
    weight = torch.from_numpy(weight_factor * weight_normal)
    for prefix, kind in (("la2", "linear"), ("la1", "explicit_linear")):
        attention = _formula_module(SELF_ATTENTIONS[kind](dim, heads), seed)
        x = torch.from_numpy(factor * normal).requires_grad_()
        output, auxiliary = attention.attend(x)
        (output * weight).sum().backward()
        compare.check_if_present(f"{prefix}_out", output, MODEL)
        compare.check_if_present(f"{prefix}_aux", auxiliary, MODEL)
        compare.check_if_present(f"{prefix}_gx", x.grad, MODEL)
        compare.check_if_present(f"{prefix}_gqkv", attention.qkv.weight.grad, MODEL)
        compare.check_if_present(f"{prefix}_gproj", attention.proj.weight.grad, MODEL)
    x = torch.from_numpy(factor * normal)
    eps = re.search(r"eps=([0-9.e-]+)", config["eps_variant"])
    assert eps
    with_eps = _formula_module(SELF_ATTENTIONS["linear"](dim, heads, float(eps.group(1))), seed)
    compare.check_if_present("la2_eps_out", with_eps(x), MODEL)
    compare.check_if_present("denominator", with_eps.denominator(x), MODEL)
    if "f32_scaled_x200_nan_count" in compare:
        output = _formula_module(SELF_ATTENTIONS["linear"](dim, heads), seed, torch.float32)((x * 200).float())
        counts = [int(output.isnan().sum()), int(output.isinf().sum()), output.numel()]
        compare.check("f32_scaled_x200_nan_count", counts, 0.0)
    compare.finish()


def check_block(case: Case) -> None:
    """bmlp_block*: the noisy bottleneck and the decoder block alone."""
    config, compare = case.config["config"], Comparison(case)
    dim, heads, seed = config["dim"], config["heads"], config["seed"]
    shape = (config["B"], config["N"], dim)
    x = torch.from_numpy(np.random.RandomState(seed + 1).standard_normal(shape))
    mlp = _formula_module(Mlp(dim, config["drop"]), seed)
    compare.check_if_present("bmlp_eval", mlp.eval()(x), MODEL)
    feed = re.search(r"RandomState\((\d+)\)", config["dropout_feed"])
    assert feed
    mlp.drop = FedDropout(config["drop"], np.random.RandomState(int(feed.group(1))))
    compare.check_if_present("bmlp_drop", mlp.train()(x), MODEL)
    for name, kind, factor in (("la2", "linear", 1.0), ("la1", "explicit_linear", 1.0), ("softmax", "softmax", 1.0)):
        block = _formula_module(SelfAttentionBlock(dim, SELF_ATTENTIONS[kind](dim, heads)), seed)
        compare.check_if_present(f"block_{name}", block(factor * x), MODEL)
        compare.check_if_present(f"block_{name}_small", block(1e-4 * x), MODEL)
    compare.finish()


def check_hard_mining(case: Case) -> None:
    """hm_loss*: the mined loss at several iterations: value, threshold, count, gradient after the hook."""
    config, compare = case.config["config"], Comparison(case)
    shape = (config["B"], config["C"], config["H"], config["W"])
    recipe = re.fullmatch(r"en \+ ([0-9.]+)\*.* u = linspace\(([0-9.]+),([0-9.]+),H\*W\).*", config["de"])
    assert recipe, config["de"]
    strength, low, high = (float(number) for number in recipe.groups())
    spread = np.linspace(low, high, config["H"] * config["W"]).reshape(config["H"], config["W"])
    targets, outputs = [], []
    for group in range(config["groups"]):
        target = np.random.RandomState(config["eseed"] + 2 * group).standard_normal(shape)
        noise = np.random.RandomState(config["eseed"] + 2 * group + 1).standard_normal(shape)
        targets.append(torch.from_numpy(target))
        outputs.append(torch.from_numpy(target + strength * noise * spread).requires_grad_())
    distances = [cosine_distance(a, b.detach()) for a, b in zip(targets, outputs, strict=True)]
    plain = torch.autograd.grad(mined_global_cosine(targets, outputs), outputs)
    for group, distance in enumerate(distances):
        compare.check_if_present(f"cosdist{group}", distance[:, 0], MODEL)
        compare.check_if_present(f"nohook_grad_de{group}", plain[group], MODEL)
    slope, steps, most = _ramp(config["p"])
    rows: dict[str, list[Any]] = {"loss": [], "thresh": [], "k": [], "n_scaled": []}
    for iteration in config["its"]:
        share = min(slope * iteration / steps, most)
        fresh = [output.detach().clone().requires_grad_() for output in outputs]
        hooked = [output * 1.0 for output in fresh]  # the hook belongs on a tensor of the graph
        loss = mined_global_cosine(targets, hooked, lambda d, p=share: hard_mining_weight(d, p, config["factor"]))  # type: ignore[misc]
        loss.backward()
        rows["loss"].append(float(loss.detach()))
        rows["thresh"].append([float(hard_mining_threshold(distance, share)) for distance in distances])
        rows["k"].append([hard_mining_count(distance.numel(), share) for distance in distances])
        rows["n_scaled"].append([int((hard_mining_weight(distance, share, 0.5) != 1).sum()) for distance in distances])
        for group, output in enumerate(fresh):
            compare.check_if_present(f"it{iteration}_grad_de{group}", output.grad, MODEL)
    for name, values in rows.items():
        compare.check_if_present(name, values, 0.0 if name in ("k", "n_scaled") else MODEL)
    compare.finish()


def _other_loss(name: str, value: float) -> Any:
    """A loss of the originals' repository by its name, as (targets, outputs) -> scalar; `value` is its share or alpha."""
    focal, mined = partial(focal_weight, share=value), partial(hard_mining_weight, share=value, factor=0.1)
    known: dict[str, Any] = {
        "global_cosine": mined_global_cosine,
        "global_cosine_hm_alpha": partial(mined_global_cosine, weight=partial(threshold_weight, alpha=value), over_groups="sum"),
        "global_cosine_hm_percent_p": partial(mined_global_cosine, weight=mined),
        "global_cosine_focal_p": partial(mined_global_cosine, weight=focal, over_groups="sum"),
        "region_cosine": partial(regional_cosine, over_groups="sum"),
        "regional_cosine_hm_percent_p": partial(regional_cosine, weight=mined),
        "regional_cosine_hm_p": partial(
            regional_cosine, weight=partial(hardest_weight, share=value), over_groups="sum", in_value=True
        ),
        "regional_cosine_focal_p": partial(regional_cosine, weight=focal, over_groups="sum", in_value=True),
    }
    return known[name]


def check_other_losses(case: Case) -> None:
    """other_losses*: the other cosine losses of the repository, values and gradients."""
    config, compare = case.config["config"], Comparison(case)
    shape = (config["B"], config["C"], config["H"], config["W"])
    noise, groups = re.match(r"en \+ ([0-9.]+)\*", config["de"]), re.match(r"(\d+) groups", config["en"])
    assert noise and groups
    count = 2 * int(groups.group(1))
    normals = [torch.from_numpy(np.random.RandomState(config["eseed"] + i).standard_normal(shape)) for i in range(count)]
    targets = normals[0::2]
    for match in compare.arrays_named(r"((?:[a-z]+_)*?[a-z]+?)(-?[0-9.]+)?_loss"):
        loss = _other_loss(match.group(1), float(match.group(2) or 0.0))
        fresh = [(a + float(noise.group(1)) * e).requires_grad_() for a, e in zip(targets, normals[1::2], strict=True)]
        value = loss(targets, [output * 1.0 for output in fresh])  # the hook belongs on a tensor of the graph
        value.backward()
        name = match.group().removesuffix("_loss")
        compare.check(f"{name}_loss", value, MODEL)
        for group, output in enumerate(fresh):
            compare.check_if_present(f"{name}_g{group}", output.grad, MODEL)
    compare.finish()


def check_optimiser(case: Case) -> None:
    """stable_adamw*: the optimiser alone, several tensors, its moments at the end."""
    config, compare = case.config["config"], Comparison(case)
    seed, shapes = config["seed"], config["shapes"]
    tensors = [
        torch.from_numpy(np.random.RandomState(seed + j).standard_normal(tuple(shape))).requires_grad_()
        for j, shape in enumerate(shapes)
    ]
    options = {key: config[key] for key in ("eps", "weight_decay", "amsgrad", "clip_threshold")}
    optimiser = StableAdamW(tensors, lr=0.0, betas=tuple(config["betas"]), **options)
    for step, (rate, scales) in enumerate(zip(config["lrs"], config["gscale"], strict=True)):
        optimiser.param_groups[0]["lr"] = rate
        for j, (tensor, scale) in enumerate(zip(tensors, scales, strict=True)):
            normal = np.random.RandomState(seed + 100 * (step + 1) + j).standard_normal(tuple(tensor.shape))
            tensor.grad = torch.from_numpy(scale * normal)
        optimiser.step()
        for j, tensor in enumerate(tensors):
            compare.check_if_present(f"t{step}_p{j}", tensor, 1e-12)
    for match in compare.arrays_named(r"(exp_avg|exp_avg_sq|max_exp_avg_sq)(\d+)"):
        compare.check(match.group(), optimiser.state[tensors[int(match.group(2))]][match.group(1)], 1e-12)
    compare.finish()


def check_schedule(case: Case) -> None:
    """warmcosine*: the learning rate of each iteration."""
    config, compare = case.config["config"], Comparison(case)
    for total, warmup, base, final, start in config["specs"]:
        schedule = WarmCosine(base=base, final=final, total=total, warmup=warmup, start=start)
        rates = [schedule(step) for step in range(total + 5)]
        tag = f"{total}_{warmup}_{base}_{final}_{start}"
        stride = re.match(r"every (\d+)-th", case.config["arrays"][f"lr_{tag}"]["what"])
        assert stride
        for name, found in (
            ("lr", rates[:: int(stride.group(1))]),
            ("head", rates[:3]),
            ("around_warm", rates[max(0, warmup - 2) : warmup + 3]),
            ("tail", rates[-8:]),
        ):  # of the highest rate, also where the schedule ends at 0
            compare.check(f"{name}_{tag}", found, 1e-15 * max(rates) / (max(found, default=0.0) or 1.0))
    compare.finish()
