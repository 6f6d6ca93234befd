"""ToMe, EViT and STA: plans, blocks and whole transformers."""

from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

import tokenprune
from tests.default_vision_policies import block_tokens
from tokenprune.ops import bipartite_match, sizes_by_source, sum_by_source
from tokenprune.policies import STA, EViT, ToMe
from tokenprune.stages.hook import Hook

from .common import floats, same
from .video_pruning import EXACT, parameters


def close(actual, expected):
    np.testing.assert_allclose(actual.numpy(), expected, **EXACT)


def averaged(x, sizes, order, source):
    """Size-weighted means and sizes of the tokens that stay, places of all others joined to them."""
    k = order.shape[1]
    total = sum_by_source(sizes[..., None], source, k)
    return sum_by_source(x, source, k, sizes) / total, total[..., 0]


def check_plan(order, source, z, step, prefix):
    """Which stay, in which order, and which joins which; places are 2 i of A and 2 i + 1 of B."""
    kept = [torch.from_numpy(z[f"{step}{name}_idx"]).long() for name in ("unm", "src", "dst")]
    unmerged, merged, joined = 2 * kept[0], 2 * kept[1], 2 * kept[2] + 1
    odd = torch.arange(1, source.shape[1], 2).expand(len(order), -1)
    front = torch.arange(prefix).expand(len(order), -1)
    expected = torch.cat([front, unmerged[:, (prefix + 1) // 2 :], odd[:, prefix // 2 :]], 1)
    same(order, expected)
    same(order.gather(1, source.gather(1, merged)), joined)


def check_match(z):
    p, x, metric = parameters(z), floats(z["x"]), floats(z["metric"])
    prefix = p["class_token"] + p["distill_token"]
    sizes, carried = torch.ones(x.shape[:2]), torch.arange(x.shape[1]).expand(x.shape[:2])
    for step, r in (("", p["r"]), ("step2_", p["step2_r"])):
        (left,) = ToMe(r=r).counts(1, x.shape[1] - prefix)
        reduction = ToMe(r=r).reduce(block_tokens(x, prefix=prefix, keys=metric, sizes=sizes), left)
        order, source = reduction.order, reduction.source
        check_plan(order, source, z, step, prefix)
        if not step:
            ones = torch.ones_like(sizes)
            close(averaged(x, ones, order, source)[0], z["x_mean"])
        x, sizes = averaged(x, sizes, order, source)
        close(x, z[f"{step}x" if step else "x_wavg"])
        same(sizes, z[f"{step}size"][..., 0])
        carried, metric = source.gather(1, carried), x[..., : metric.shape[2]]
        same(torch.nn.functional.one_hot(carried).mT, z[f"{step}source_map"])
        if not step:
            # as released: with a distillation token rows are looked up where they would stand without one
            looked_up = (order % 2).sort(stable=True).indices.argsort(1).gather(1, source)
            unmerged = x.gather(1, looked_up[..., None].expand(-1, -1, x.shape[2]))
            close(unmerged, z["x_unmerged"])


def check_kth(z):
    """All sources merge; what stands behind the last destination is dropped there."""
    stride = parameters(z)["k"]
    k = z["x"].shape[1] // stride
    n = k * stride
    x, metric = floats(z["x"])[:, :n], floats(z["metric"])[:, :n]
    order, source = bipartite_match(metric, n - k, stride=stride)
    same(order, np.broadcast_to(np.arange(stride - 1, n, stride), order.shape))
    others = (torch.arange(n) % stride != stride - 1).nonzero()[:, 0]
    same(source[:, others], z["dst_idx"])
    close(averaged(x, torch.ones(x.shape[:2]), order, source)[0], z["x_wavg"])
    same(sizes_by_source(source, k), z["size"][..., 0])
    again = ToMe(r=n, stride=stride).reduce(block_tokens(x, keys=metric), k)
    assert torch.equal(again.source, source)


def check_schedules(z):
    for i, (depth, r) in enumerate(parameters(z)["cases"]):
        pair = isinstance(r, list) and len(r) == 2 and isinstance(r[1], float)
        same(torch.tensor(ToMe(r=tuple(r) if pair else r).schedule(depth)), z[f"sched_{i}"])


def check_sta(z):
    p, x = parameters(z), floats(z["x"])
    first = 8 * (p["N"] if p["T"] == 8 else p["N"] // 2 + p["r"] if p["T"] == 4 else (p["N"] + 6 * p["r"]) // 4)
    policy, grid = STA(r=p["r"]), (8, first // 8, 1)
    counts = policy.counts(p["depth"], first, grid)
    before = counts[p["block_index"] - 1] if p["block_index"] else first
    assert (before, counts[p["block_index"]]) == (x.shape[1], z["kept"].shape[1])
    fields = {"grid": grid, "total": first, "block": p["block_index"], "depth": p["depth"]}
    tokens = block_tokens(x, keys=floats(z["metric"]), **fields)
    reduction = policy.reduce(tokens, z["kept"].shape[1])
    same(reduction.order, z["kept"])
    assert (reduction.source, policy.behind, policy.merges) == (None, True, False)


def weights_of(z) -> dict:
    """State dict of the file."""
    names = [name for name in z if name.startswith("w__")]
    return {name.removeprefix("w__").replace("__", "."): floats(z[name]) for name in names}


@torch.no_grad()
def recorded(module, *inputs, **modules):
    """What a call answers, and what each of the named modules answered in it."""
    heard = {}
    with ExitStack() as stack:
        for name, part in modules.items():
            # a hook that is not known as the library's own would count as a reader, and be shown all places
            note = Hook(lambda _, given, output, name=name: heard.update({name: output}))
            stack.callback(part.register_forward_hook(note).remove)
        return module(*inputs), heard


def check_evit_block(z):
    p, x, n = parameters(z), floats(z["x"]), z["cls_attn"].shape[1]
    policy = EViT(keep_rate=p["keep_rate"], blocks=(0,), fuse=p["fuse_token"])
    (k,) = policy.counts(1, n)
    attention = torch.cat([torch.zeros(len(x), 1), floats(z["cls_attn"])], 1)
    reduction = policy.reduce(block_tokens(x, prefix=1, class_attention=attention), k)
    same(reduction.order[:, 1 : 1 + z["idx"].shape[1]] - 1, z["idx"])
    model = VisionTransformer(
        img_size=(2, 2 * n),
        patch_size=2,
        embed_dim=x.shape[2],
        depth=1,
        num_heads=p["heads"],
        mlp_ratio=p["mlp_ratio"],
        norm_layer=partial(nn.LayerNorm, eps=p["ln_eps"]),
    ).eval()
    model.blocks[0].load_state_dict(weights_of(z))
    model.norm_pre.register_forward_hook(lambda *_: x)
    with tokenprune.wrap(model, policy):
        _, heard = recorded(model, torch.zeros(len(x), 3, 2, 2 * n), block=model.blocks[0])
    close(heard["block"], z["y"])


def check_tome_vit(z):
    """The last block answers a copy of its token for every place of the input; those before it, the tokens left."""
    p, image = parameters(z), floats(z["image"])
    model = VisionTransformer(
        img_size=p["img"],
        patch_size=p["patch"],
        embed_dim=p["dim"],
        depth=p["depth"],
        num_heads=p["heads"],
        mlp_ratio=p["mlp_ratio"],
        num_classes=z["logits"].shape[1],
    ).eval()
    model.load_state_dict(weights_of(z))
    r = tuple(p["r"]) if isinstance(p["r"], list) and isinstance(p["r"][-1], float) else p["r"]
    close(recorded(model, image)[0], z["logits_unpatched"])
    with tokenprune.wrap(model, tokenprune.ToMe(r=r, proportional=p["prop_attn"])) as handle:
        logits, heard = recorded(model, image, **{str(i): block for i, block in enumerate(model.blocks)})
        units = handle.report().units
    close(logits, z["logits"])
    carrier, last = torch.from_numpy(z["source_map"]).long().argmax(1), p["depth"] - 1
    for i in range(last):
        close(heard[str(i)], z[f"block_{i}"])
    restored = floats(z[f"block_{last}"]).gather(1, carrier[..., None].expand(-1, -1, p["dim"]))
    close(heard[str(last)], restored.numpy())
    for unit, expected, size in zip(units, carrier[:, 1:], torch.from_numpy(z["size"])[..., 0], strict=True):
        assert torch.equal(unit.source[:, None] == unit.source, expected[:, None] == expected)
        assert torch.equal(unit.source.bincount()[unit.source], size[expected].long())
        assert unit.kept == z["size"].shape[1] - 1


def check_sta_vit(z):
    p, hidden = parameters(z), floats(z["tokens_after_pos"])
    model = videomae(p, weights_of(z), z["logits"].shape[1])
    model.videomae.embeddings.register_forward_hook(lambda *_: hidden)
    clip = torch.zeros(len(hidden), p["frames"], 3, p["img"], p["img"])
    close(recorded(model, clip)[0].logits, z["logits_r0"])
    blocks = {str(i): block for i, block in enumerate(model.videomae.encoder.layer)}
    with tokenprune.wrap(model, STA(r=p["r"])):
        output, heard = recorded(model, clip, norm=model.fc_norm, **blocks)
    close(heard["norm"], z["feat"])
    close(output.logits, z["logits"])
    entered = [hidden.shape[1], *(heard[str(i)].shape[1] for i in range(p["depth"]))]
    assert entered[: p["depth"]] == p["tokens_per_block"]


def videomae(p, weights, labels):
    config = VideoMAEConfig(
        image_size=p["img"],
        patch_size=p["patch"],
        num_frames=p["frames"],
        tubelet_size=p["tubelet"],
        hidden_size=p["dim"],
        num_hidden_layers=p["depth"],
        num_attention_heads=p["heads"],
        intermediate_size=int(p["dim"] * p["mlp_ratio"]),
        layer_norm_eps=p["ln_eps"],
        num_labels=labels,
    )
    model = VideoMAEForVideoClassification(config).eval()
    model.fc_norm.eps = p["ln_eps"]
    names = {
        "blocks.": "videomae.encoder.layer.",
        ".norm1.": ".layernorm_before.",
        ".norm2.": ".layernorm_after.",
        ".attn.proj.": ".attention.output.dense.",
        ".attn.q_bias": ".attention.attention.query.bias",
        ".attn.v_bias": ".attention.attention.value.bias",
        ".mlp.fc1.": ".intermediate.dense.",
        ".mlp.fc2.": ".output.dense.",
        "head.": "classifier.",
    }
    state = {}
    for name, value in weights.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if name.endswith(".attn.qkv.weight"):
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = rows
        else:
            state[name] = value
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("patch_embeddings" in name for name in missing)
    return model


FAMILIES = {
    "evit_block": check_evit_block,
    "sta_stage": check_sta,
    "sta_vit": check_sta_vit,
    "tome_kth": check_kth,
    "tome_match": check_match,
    "tome_parse_r": check_schedules,
    "tome_vit": check_tome_vit,
}
