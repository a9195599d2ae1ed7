"""Golden cases of PMAD through the classes that `bench run` uses, in float64 on the CPU.

Everything is read from the case's json: shapes, switches, seeds, rules. Arrays of stride s are the flattened tensor taken [::s].
Tolerances (specs, section 16): 1e-9 relative to 1 + |x|, 1e-7 for training, 1e-6 for what the original computes in float32,
integers exactly.
"""

from __future__ import annotations

import re
from typing import Any

import golden
import numpy as np
import torch
from golden import Case
from golden_arrays import array
from torch import Tensor, nn

from inpbench.methods.pmad.transformer import DropPath, TrunkShape

MODEL, TRAINING, FLOAT32 = 1e-9, 1e-7, 1e-6
_TABLES = ("relative_position_bias_table", "cls_token", "mask_token", "pos_embed")


def formula(key: str, value: Tensor, seed: int) -> Tensor:
    """The formula weight of one tensor of the original's state_dict (specs, section 15)."""
    last = key.rsplit(".", 1)[-1]
    z = golden.normal(key, tuple(value.shape), seed)
    if not value.is_floating_point():
        return value
    if last in ("gamma_1", "gamma_2"):
        return torch.from_numpy(0.5 + 0.1 * z)
    if last in _TABLES:
        return torch.from_numpy(0.3 * z)
    if last == "b":
        return torch.from_numpy(0.02 * z)
    if key.endswith("quantize.embedding.weight"):
        return torch.from_numpy(z / np.linalg.norm(z, axis=1, keepdims=True))
    if key.endswith("quantize.embedding.embed_avg"):
        return formula(key.removesuffix("embed_avg") + "weight", value, seed)
    if last == "cluster_size":
        return torch.zeros_like(value)
    if last == "initted":
        return torch.ones_like(value)
    if last == "global_scale":
        return torch.from_numpy(2.0 * np.log(np.exp(5.0) - 1.0) + 0.5 * z)
    if last == "global_offset":
        return torch.from_numpy(0.1 * z)
    if last in ("w_perm", "w_perm_inv"):
        q, r = np.linalg.qr(golden.normal(key.removesuffix("_inv") if last == "w_perm_inv" else key, tuple(value.shape), seed))
        rotation = torch.from_numpy(q * np.sign(np.diag(r)))
        return rotation.T.contiguous() if last == "w_perm_inv" else rotation
    return golden.formula(key, tuple(value.shape), seed)


def formula_state(module: nn.Module, seed: int, prefix: str = "") -> dict[str, Tensor]:
    """Formula weights for every tensor of a module; prefix: of the original's keys."""
    return {key: formula(prefix + key, value, seed) for key, value in module.state_dict().items()}


class Comparison:
    """Compares full tensors with the stored parts of a case and remembers which were compared."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._seen: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.case.arrays

    def expected(self, name: str) -> np.ndarray:
        """The stored array, which counts as compared from now on."""
        self._seen.add(name)
        return self.case.arrays[name]

    def check(self, name: str, found: Any, tolerance: float = MODEL) -> None:
        """Compare the array `name` with the same part of `found`; 0 as tolerance: exactly."""
        info, expected, full = self.case.config["arrays"][name], self.expected(name), array(found)
        assert list(full.shape) == list(info["shape"]), f"{name}: shape {full.shape}, expected {info['shape']}"
        part = full.reshape(-1)[:: info["stride"]].astype(np.float64)
        wanted = expected.reshape(-1).astype(np.float64)
        assert part.shape == wanted.shape, f"{name}: {part.shape} numbers, expected {wanted.shape}"
        worst = (np.abs(part - wanted) / (1.0 + np.abs(wanted))).max(initial=0.0)
        assert worst <= tolerance, f"{name}: off by {worst:.3e}, allowed {tolerance:g}"

    def check_if_present(self, name: str, found: Any, tolerance: float = MODEL) -> None:
        """`check` where the case has the array."""
        if name in self:
            self.check(name, found, tolerance)

    def finish(self) -> None:
        """Fail if an array of the case was never compared."""
        left = set(self.case.arrays) - self._seen
        assert not left, f"{self.case.name}: never compared: {sorted(left)}"


def rule(text: str) -> Tensor:
    """The array that a rule like `RandomState(5000).standard_normal((50,12))` describes, float64."""
    match = re.search(r"RandomState\((\d+)\)\.(standard_normal|random_sample|randint)\(((?:[^()]|\([^()]*\))*)\)", text)
    assert match, text
    seed, kind, inside = int(match.group(1)), match.group(2), match.group(3)
    state = np.random.RandomState(seed)
    if kind == "randint":
        low, high, *sizes = (int(number) for number in re.findall(r"\d+", inside))
        return torch.from_numpy(state.randint(low, high, tuple(sizes)))
    shape = tuple(int(number) for number in re.findall(r"\d+", inside))
    return torch.from_numpy(getattr(state, kind)(shape))


def pictures(rules: list[str]) -> Tensor:
    """The images that a list of rules describes, (B, 3, H, W) float64."""
    return torch.stack([rule(text) for text in rules])


def trunk_shape(config: dict[str, Any], **changes: Any) -> TrunkShape:
    """The architecture in the words of a case; a switch that the project does not know fails."""
    names = {
        "img_size": "image",
        "patch_size": "patch",
        "in_chans": "channels",
        "embed_dim": "dim",
        "depth": "depth",
        "num_heads": "heads",
        "mlp_ratio": "mlp_ratio",
        "qkv_bias": "qkv_bias",
        "use_abs_pos_emb": "absolute",
        "use_shared_rel_pos_bias": "shared_bias",
        "use_rel_pos_bias": "block_bias",
        "init_values": "layer_scale",
        "drop_path_rate": "drop_path",
    }
    idle = {"vocab_size", "drop_rate", "attn_drop_rate", "n_code", "code_dim", "dec_depth", "dec_out"}
    unknown = set(config) - set(names) - idle
    assert not unknown, f"unknown switches {sorted(unknown)}"
    assert not config.get("drop_rate") and not config.get("attn_drop_rate"), "PMAD has no dropout"
    return TrunkShape(**{names[key]: value for key, value in config.items() if key in names}, **changes)


def feed_drop_path(model: nn.Module, text: str) -> None:
    """Uniform numbers of the drop-path rule instead of torch's, one row for each call that draws, in order of the calls."""
    match = re.search(r"RandomState\((\d+)\)\.random_sample\(\((\d+),(\d+)\)\)", text)
    assert match, text
    seed, rows, batch = (int(number) for number in match.groups())
    uniform = iter(torch.from_numpy(np.random.RandomState(seed).random_sample((rows, batch))))
    for module in model.modules():
        if isinstance(module, DropPath):
            module.uniform = lambda x: next(uniform).to(x)


def per_image(text: str) -> tuple[int, int]:
    """(base, step) of the seeds that a rule gives image b: `RandomState(2000+b)`, `RandomState(9000+10*i)`."""
    match = re.search(r"RandomState\((\d+)\+(?:(\d+)\*)?[a-z]\)", text)
    assert match, text
    return int(match.group(1)), int(match.group(2) or 1)


# --- networks -------------------------------------------------------------------------------------------------------


def check_recon(case: Case) -> None:
    """The reconstruction model: tokens, logits, loss, gradients, in eval mode or with fed drop path."""
    from inpbench.methods.pmad.model import ReconstructionModel

    config, compare = case.config, Comparison(case)
    shape, vocabulary = trunk_shape(config["config"]), config["config"]["vocab_size"]
    model = ReconstructionModel(shape, vocabulary).double()
    model.load_official(formula_state(model, config["weights_seed"]))
    images = pictures(config["images"])
    assert len(images) == config["batch"]
    patches = shape.side**2
    mask, labels = torch.zeros(len(images), patches, dtype=torch.bool), torch.zeros(len(images), patches, dtype=torch.int64)
    mask_base, mask_step = per_image(config["mask_rule"])
    label_base, label_step = per_image(config["labels_rule"])
    for row, count in enumerate(config["counts"]):
        mask[row, np.random.RandomState(mask_base + mask_step * row).permutation(patches)[:count]] = True
        labels[row] = torch.from_numpy(np.random.RandomState(label_base + label_step * row).randint(0, vocabulary, patches))
    compare.check("mask", mask.long(), 0.0)
    model.train(config["mode"] != "eval")
    if "drop_path_rule" in config:
        feed_drop_path(model, config["drop_path_rule"])
    tokens: list[Tensor] = []
    hook = model.norm.register_forward_hook(lambda _module, _inputs, output: tokens.append(output.detach()))
    logits = model(images, mask)
    hook.remove()
    with torch.no_grad():
        compare.check_if_present("patch_embed", model.patch_embed(images))
        compare.check_if_present("features", tokens[0])
        compare.check_if_present("logits_all", model.lm_head(tokens[0][:, 1:]))
        if "rel_pos_bias" in compare:
            assert model.rel_pos_bias is not None
            compare.check("rel_pos_bias", model.rel_pos_bias())
    losses = nn.functional.cross_entropy(logits, labels[mask], reduction="none")
    compare.check("logits", logits)
    compare.check("ce", losses)
    compare.check("loss", losses.mean())
    if "grad_keys" in config:
        losses.mean().backward()
        _check_gradients(compare, model, config["grad_keys"])
    compare.finish()


def _check_gradients(compare: Comparison, model: nn.Module, keys: list[str]) -> None:
    tensors = dict(model.named_parameters())
    assert set(keys) == {key for key, value in tensors.items() if value.grad is not None}
    norms = torch.stack([tensors[key].grad.norm() for key in keys])  # type: ignore[union-attr]
    compare.check("grad_norms", norms)
    compare.check("grad_norm_total", norms.square().sum().sqrt())
    for name, key in (
        ("grad_mask_token", "mask_token"),
        ("grad_cls_token", "cls_token"),
        ("grad_pos_embed", "pos_embed"),
        ("grad_rel_table", "rel_pos_bias.relative_position_bias_table"),
    ):
        if name in compare:
            compare.check(name, tensors[key].grad)


def tokenizer_of(config: dict[str, Any], seed: int) -> Any:
    """The VQ-KD tokenizer of a case with formula weights, float64."""
    from inpbench.methods.pmad.vq_tokenizer import VqTokenizer

    shape = trunk_shape(config, absolute=True, shared_bias=False, layer_scale=None)
    tokenizer = VqTokenizer(shape, config["n_code"], config["code_dim"], config["dec_depth"], config["dec_out"]).double().eval()
    tokenizer.load_official(formula_state(tokenizer, seed))
    return tokenizer


@torch.no_grad()
def check_vit_tokenizer(case: Case) -> None:
    """VQ-KD: features, distances, ids, decoder, usage of the code book."""
    config, compare = case.config, Comparison(case)
    tokenizer = tokenizer_of(config["config"], config["weights_seed"])
    images = pictures(config["images"])
    tokenizer.count_usage = True
    ids = tokenizer(images)
    compare.check("encoder", tokenizer.encoder(images * 255.0 / 127.5 - 1.0))
    codes = tokenizer.codes(images)
    compare.check("to_quant", codes)
    compare.check("dist", tokenizer.quantize.distances(nn.functional.normalize(codes, dim=-1)))
    again, grid, commitment = tokenizer.quantise(codes)
    assert torch.equal(ids, again)
    compare.check("ids", ids, 0.0)
    compare.check("zq", grid)
    compare.check("commit_loss", commitment)
    compare.check("decoded", tokenizer.decode(grid))
    compare.check("cluster_size", tokenizer.quantize.cluster_size)
    compare.finish()


@torch.no_grad()
def check_dvae(case: Case) -> None:
    """The dVAE: pixels, logits, ids, decoder."""
    from inpbench.methods.pmad.dvae import DvaeDecoder, DvaeEncoder, map_pixels

    config, compare = case.config, Comparison(case)
    sizes, seed = config["config"], config["weights_seed"]
    encoder = DvaeEncoder(sizes["n_hid"], sizes["n_blk_per_group"], sizes["vocab_size"]).double()
    decoder = DvaeDecoder(sizes["n_hid"], sizes["n_blk_per_group"], sizes["vocab_size"], sizes["n_init"]).double()
    for module, keys in ((encoder, config["encoder_keys"]), (decoder, config["decoder_keys"])):
        assert {key: list(value.shape) for key, value in module.state_dict().items()} == keys
        module.load_official(formula_state(module, seed))
    images = pictures(config["images"])
    compare.check("x", map_pixels(images))
    logits = encoder.logits(map_pixels(images))
    ids = encoder(images)
    compare.check("logits", logits)
    compare.check("ids", ids, 0.0)
    one_hot = nn.functional.one_hot(ids, sizes["vocab_size"]).to(logits).transpose(1, 2).reshape(logits.shape)
    compare.check_if_present("decoded", decoder(one_hot))
    compare.finish()
