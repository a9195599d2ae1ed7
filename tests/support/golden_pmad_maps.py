"""Golden cases of PMAD's prototypes, flow, proposal and evaluation, and of its input images."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from golden import Case
from golden_pmad import FLOAT32, TRAINING, Comparison, formula, formula_state, pictures, rule, tokenizer_of, trunk_shape
from torch import Tensor, nn

from inpbench.methods.memory_bank import greedy_coreset, nearest, sparse_projection
from inpbench.methods.pmad.flow import ProtoFlow, position_code
from inpbench.methods.pmad.prototypes import choose, embedding, residuals


def flow_of(dim: int, condition: int, blocks: int, seed: int) -> ProtoFlow:
    """A flow with formula weights, float64."""
    flow = ProtoFlow(dim, condition, blocks).double()
    flow.load_state_dict(formula_state(flow, seed))
    return flow


def check_flow(case: Case) -> None:
    """Latent, determinant, likelihood, loss and gradients."""
    config, compare = case.config, Comparison(case)
    flow = flow_of(config["n_feat"], config["cond"], config["blocks"], config["weights_seed"])
    assert {key: list(value.shape) for key, value in flow.state_dict().items()} == config["keys"]
    x, condition = rule(config["x"]), rule(config["condition"])
    first, determinant = flow.module_list[0](x, condition)
    compare.check("block0", first)
    compare.check("block0_logdet", determinant)
    z, log_det = flow(x, condition)
    compare.check("z", z)
    compare.check("logdet", log_det)
    likelihood = flow.log_likelihood(x, condition)
    compare.check("logp", likelihood * flow.dim)
    loss = -nn.functional.logsigmoid(likelihood).mean()
    compare.check("loss", loss)
    loss.backward()
    tensors = dict(flow.named_parameters())
    assert set(config["grad_keys"]) == {key for key, value in tensors.items() if value.grad is not None}
    norms = torch.stack([tensors[key].grad.norm() for key in config["grad_keys"]])  # type: ignore[union-attr]
    compare.check("grad_norms", norms)
    compare.check("grad_norm_total", norms.square().sum().sqrt())
    for index, expected in enumerate(config.get("w_perm_det", [])):
        assert abs(float(torch.linalg.det(flow.module_list[index].w_perm)) - expected) < 1e-9  # type: ignore[arg-type]
    compare.finish()


def _feature_rule(text: str, count: int, offsets: list[int] | None = None) -> list[list[Tensor]]:
    """Feature maps of images 0.. by the rule of a case: two maps each, shifted where the label (`offsets`) is 1."""
    found = re.findall(r"(f\d)=RandomState\((\d+)\+i\)\.standard_normal\(\((\d+),(\d+),(\d+)\)\)", text)
    assert len(found) == 2, text
    shifts = re.findall(r"(f\d)\[:,(\d+):(\d+),(\d+):(\d+)\]\+=(\d+(?:\.\d+)?)", text)
    maps: list[list[Tensor]] = [[], []]
    for index in range(count):
        for position, (name, seed, *shape) in enumerate(found):
            value = np.random.RandomState(int(seed) + index).standard_normal(tuple(int(n) for n in shape))
            if offsets is not None and offsets[index] == 1:
                for other, *numbers, step in shifts:
                    if other == name:
                        top, bottom, left, right = (int(n) for n in numbers)
                        value[:, top:bottom, left:right] += float(step)
            maps[position].append(torch.from_numpy(value))
    return maps


def _given(text: str, pattern: str) -> int:
    match = re.search(pattern, text)
    assert match, (pattern, text)
    return int(match.group(1))


def feature_maps(text: str, count: int, labels: list[int] | None = None) -> Tensor:
    """Embedded features (n, C, h, w) of the images of a case."""
    return embedding([torch.stack(maps) for maps in _feature_rule(text, count, labels)])


def likelihood_of(config: dict[str, Any]) -> Tensor:
    """Log-likelihood maps (n, h, w) by the rule `features` of a case."""
    text, labels = config["features"], config["labels"]
    embedded = feature_maps(text, len(labels), labels)
    bank = rule(re.search(r"coreset=(RandomState\(\d+\)\.standard_normal\(\(\d+,\d+\)\))", text).group(1))  # type: ignore[union-attr]
    sizes = re.search(r"flow: (\d+) blocks \(n_feat (\d+), cond (\d+)\)", text)
    assert sizes
    blocks, dim, condition = (int(number) for number in sizes.groups())
    flow = flow_of(dim, condition, blocks, config.get("flow_seed", config["weights_seed"]))
    with torch.no_grad():
        return flow.maps(residuals(embedded, bank).maps)


@torch.no_grad()
def check_embedding(case: Case) -> None:
    """Pooling and concatenation, position code, EfficientNet with formula weights."""
    from inpbench.methods.pmad.extractor import EfficientNet

    config, compare = case.config, Comparison(case)
    maps = []
    for key in ("f1", "f2"):
        base = _given(config[key], r"RandomState\((\d+)\+i\)")
        shape = tuple(int(n) for n in re.findall(r"\(\((\d+),(\d+),(\d+)\)\)", config[key])[0])
        maps.append(
            torch.from_numpy(np.stack([np.random.RandomState(base + i).standard_normal(shape) for i in range(config["batch"])]))
        )
    compare.check("embedding", embedding(maps))
    compare.check("pos", position_code(*config["arrays"]["pos"]["shape"]))
    settings = config["efficientnet"]
    network = EfficientNet().double().eval()
    own = network.official_state()
    network.load_official({key: formula(key, value, settings["seed"]) for key, value in own.items()})
    image = np.random.RandomState(1000 + settings["img"]).standard_normal((1, 3, settings["H"], settings["H"]))
    found = network(torch.from_numpy(image))
    assert [value.shape[1] for value in found] == settings["channels"]
    compare.check("eff_f1", found[0])
    compare.check("eff_f2", found[1])
    compare.check("eff_embedding", embedding(found))
    compare.finish()


def check_prototypes(case: Case) -> None:
    """Projection, order of the k-center coreset, nearest prototype, residual."""
    config, compare = case.config, Comparison(case)
    vectors, queries, cpu = rule(config["X"]), rule(config["queries"]), torch.device("cpu")
    projection = None
    if "components" in compare:
        seed = _given(config["projection"], r"numpy\.random\.seed\((\d+)\)")
        projection = sparse_projection(vectors.shape[1], _given(config["projection"], r"n_components=(\d+)"), seed)
        compare.check("components", projection)
    rows = choose(vectors, config["N"], projection, cpu)
    compare.check("selected", rows, 0.0)
    compare.check_if_present("selected_raw", choose(vectors, config["N"], None, cpu), 0.0)
    compare.check("cover_radius", greedy_coreset(vectors if projection is None else vectors @ projection.T, config["N"]).radius)
    bank = vectors[rows]
    compare.check("nearest", nearest(queries, bank).rows[:, 0], 0.0)
    compare.check("residual", residuals(queries.T[None, :, :, None], bank).maps[0, :, :, 0].T)
    compare.finish()


def check_proposal(case: Case) -> None:
    """Likelihood maps, masks at the ratios, the gate, abnormality."""
    from inpbench.methods.pmad.oracle import called_abnormal, transductive
    from inpbench.methods.pmad.proposal import abnormality, count_of, hidden_patches, ranking

    config, compare = case.config, Comparison(case)
    likelihood = likelihood_of(config)
    compare.check("logp", likelihood)
    size = tuple(config["arrays"]["abnormality"]["shape"][1:])
    fitted = transductive(likelihood, torch.tensor(config["labels"]), size)
    abnormal = abnormality(likelihood, fitted.level, fitted.peak, size)
    compare.check("abnormality", abnormal)
    compare.check("img_scores", abnormal.amax(dim=(1, 2)))
    compare.check("img_labels", called_abnormal(likelihood, fitted, size).long(), 0.0)
    patches = next(info["shape"][1] for name, info in config["arrays"].items() if name.startswith("mask_"))
    ranked = ranking(likelihood, fitted.level, math.isqrt(patches))
    for ratio in config["ratios"]:
        count = count_of(ratio, ranked.shape[1])
        compare.check(f"mask_{count}", hidden_patches(ranked, count).long(), 0.0)
    compare.finish()


def check_evaluation(case: Case) -> None:
    """The official evaluation at all ratios: masks, maps, scores, AUROCs and the best of them."""
    from inpbench.methods.pmad.model import ReconstructionModel
    from inpbench.methods.pmad.oracle import RATIOS, Evaluation, called_abnormal
    from inpbench.methods.pmad.proposal import count_of
    from inpbench.methods.pmad.scoring import gaussian, token_errors

    config, compare = case.config, Comparison(case)
    shape = trunk_shape(config["config"])
    model = ReconstructionModel(shape, config["config"]["vocab_size"]).double().eval()
    model.load_official(formula_state(model, config["weights_seed"]))
    tokenizer = tokenizer_of(config["tokenizer_config"], config["tokenizer_seed"])
    count = len(config["labels"])
    base = _given(config["images"], r"image RandomState\((\d+)\+i\)")
    token_base = _given(config["images"], r"token image RandomState\((\d+)\+i\)")
    images = pictures([f"RandomState({base + i}).standard_normal((3,{shape.image},{shape.image}))" for i in range(count)])
    ids = tokenizer(
        pictures([f"RandomState({token_base + i}).random_sample((3,{shape.image},{shape.image}))" for i in range(count)])
    )
    labels = torch.tensor(config["labels"])
    masks = torch.zeros(count, shape.image, shape.image, dtype=torch.bool)
    place = re.search(r"rows (\d+)\.\.(\d+), cols (\d+)\.\.(\d+)", config["gt_mask"])
    assert place
    top, bottom, left, right = (int(n) for n in place.groups())
    masks[labels == 1, top : bottom + 1, left : right + 1] = True
    likelihood = likelihood_of(config)
    fed = re.search(r"RandomState\((\d+)\+(\d+)\*j\+n\)\.permutation\((\d+)\)", config["random"])
    assert fed
    start, step, patches = (int(n) for n in fed.groups())

    def draw(position: int, ratio_index: int, hidden: int) -> Tensor:
        before = sum(not flag for flag in abnormal[:position])  # the n-th image that is called normal
        mask = torch.zeros(patches, dtype=torch.bool)
        mask[np.random.RandomState(start + step * ratio_index + before).permutation(patches)[:hidden]] = True
        return mask

    def errors(positions: Any, hidden: Tensor) -> Tensor:
        rows = list(positions)
        return token_errors(model, images[rows], ids[rows], hidden)

    ratios = config["mask_ratios"]
    assert len(ratios) != len(RATIOS) or ratios == list(RATIOS)
    evaluation = Evaluation(likelihood, labels, masks, errors, shape.side, draw, ratios)
    abnormal = called_abnormal(likelihood, evaluation.fitted, evaluation.size).tolist()
    with torch.no_grad():
        found = [evaluation.at(index) for index in range(len(ratios))]
        compare.check("k", [count_of(ratio, patches) for ratio in ratios], 0.0)
        aucs = np.array([(one.image_auroc, one.pixel_auroc) for one in found])
        compare.check("aucs", aucs)
        image, pixel = evaluation.best(lambda done, total: None)
        compare.check("best", [aucs[image, 0], aucs[pixel, 1], ratios[image]])
        for name in list(case.arrays):
            match = re.fullmatch(r"(img_scores|map1|map2|masks|amap)_(\d+)", name)
            if match:
                one = found[int(match.group(2))]
                values = {
                    "img_scores": one.scores,
                    "map1": one.smooth,
                    "map2": gaussian(one.smooth),
                    "masks": one.hidden.long(),
                    "amap": one.enlarged,
                }
                compare.check(name, values[match.group(1)])
    compare.finish()


def check_protoflow_train(case: Case) -> None:
    """The flow's loop: loss and rate of each step, the tensors after the last."""
    from golden_models import context

    from inpbench.methods.pmad.flow_training import FlowSchedule
    from inpbench.methods.training import BatchOrder, Trainer

    config, compare = case.config, Comparison(case)
    size, batches, passes = config["batch_size"], config["batches"], config["sub_epochs"]
    embedded = feature_maps(config["features"], size * batches)
    condition = _given(config["features"], r"positional encoding dim (\d+)")
    banks = [rule(text) for text in re.findall(r"RandomState\(\d+\)\.standard_normal\(\(\d+,\d+\)\)", config["coresets"])]
    maps = torch.cat([residuals(one[None], banks[index % len(banks)]).maps for index, one in enumerate(embedded)])
    flow = flow_of(embedded.shape[1], condition, config["blocks"], config["weights_seed"])
    first = config["epoch"] * batches * passes
    schedule = FlowSchedule(lr=config["lr"], meta_epochs=config["meta_epochs"], per_epoch=batches * passes)
    trainer = Trainer(
        module=flow,
        optimiser=torch.optim.Adam([value for value in flow.parameters() if value.requires_grad], lr=config["lr"]),
        schedule=schedule,
        loss=lambda _indices, step: flow.loss(maps[step % batches * size : (step % batches + 1) * size]),
        order=BatchOrder(size * batches, size, 1),
        steps=first + batches * passes,
        clip_norm=float("inf"),
        ctx=context(),
    )
    results = [trainer.step(first + step) for step in range(batches * passes)]
    compare.check("loss", torch.stack([result.loss for result in results]), TRAINING)
    compare.check("lr", [result.rate for result in results], 1e-15)
    state = flow.state_dict()
    assert set(config["param_keys"]) == set(state)
    sums = torch.stack([torch.stack((state[key].sum(), state[key].norm())) for key in config["param_keys"]])
    compare.check("checksums", sums, TRAINING)
    compare.check("offset0", state["module_list.0.global_offset"], TRAINING)
    compare.finish()


def check_transforms(case: Case) -> None:
    """The input images: both tokenizers' and the backbone's, and the mask, from one uint8 picture (float32 in the original)."""
    from PIL import Image

    from inpbench.harness.api import Preprocess
    from inpbench.harness.images import crop_box, image_at_crop, resized_size
    from inpbench.methods.pmad.dvae import map_pixels
    from inpbench.methods.pmad.params import PmadParams

    config, compare = case.config, Comparison(case)
    picture = Image.fromarray(rule(config["image"]).numpy().astype(np.uint8)).convert("RGB")
    preprocess = PmadParams().preprocess
    unit = torch.from_numpy(image_at_crop(picture, preprocess)).float() / 255
    mean, std = torch.tensor(preprocess.mean)[:, None, None], torch.tensor(preprocess.std)[:, None, None]
    compare.check("image", (unit - mean) / std, FLOAT32)
    compare.check("token_vit_tokenizer", unit, FLOAT32)
    side = config["arrays"]["token_dall-e"]["shape"][-1]
    small = Preprocess(resize=(side, side), crop=(side, side), shorter_side=True, interpolation="lanczos")
    compare.check("token_dall-e", map_pixels(torch.from_numpy(image_at_crop(picture, small)).float() / 255), FLOAT32)
    shown = re.search(r"RandomState\((\d+)\)\.random_sample\(\((\d+),(\d+)\)\)>([\d.]+)", config["mask"])
    assert shown
    seed, height, width = (int(n) for n in shown.groups()[:3])
    grey = ((np.random.RandomState(seed).random_sample((height, width)) > float(shown.group(4))) * 255).astype(np.uint8)
    resized = resized_size((height, width), preprocess)
    nearest_mask = np.asarray(Image.fromarray(grey).resize((resized[1], resized[0]), Image.Resampling.NEAREST))
    top, bottom, left, right = crop_box(resized, preprocess.crop)
    compare.check("mask", nearest_mask[None, top:bottom, left:right].astype(np.float32) / 255, FLOAT32)
    compare.finish()
