"""Crops, grids and patches are where the adapters say: a change of one pixel shows which token it belongs to."""

from dataclasses import dataclass, field

import pytest
import torch

import tokenprune
from tests import reference
from tests.families import ALL, BUILT, BY_NAME, FAMILIES
from tokenprune.adapters import ADAPTERS, Adapter, lookup, register
from tokenprune.adapters.base import Features
from tokenprune.adapters.layouts import packed_tiles
from tokenprune.errors import InvalidArgumentError, UnsupportedModelError

MIXED = ("llava_onevision-video",)  # interpolates frames behind its projector
MERGED = [one for one in FAMILIES if lookup(one.model_type).patches is not None and one.name not in MIXED]
# Pixels of image shape, and tokens that see one place: no learned queries, no overlapping convolutions.
PICTURES = [
    *("llava", "llava-pixtral", "vipllava", "llava_next", "llava_onevision", "fast_vlm", "perception_lm"),
    *("paligemma", "gemma3", "gemma3n", "llama4", "mistral3", "janus", "deepseek_vl"),
    *("internvl", "aya_vision", "cohere2_vision", "idefics3", "smolvlm", "qianfan_ocr", "ovis2"),
]


@dataclass(kw_only=True)
class Look(tokenprune.ProjectorPolicy):
    """Notes what it is shown."""

    needs = frozenset({"features", "encoder"})
    seen: list = field(default_factory=list)

    def select(self, tokens, k):
        self.seen.append(tokens)
        return tokenprune.Selection.subset(torch.arange(k).expand(len(tokens.features), k))


def changed(inputs, places):
    """The inputs with some numbers of the pixels far off."""
    name = next(name for name in inputs if name.startswith("pixel_values"))
    pixels = inputs[name].clone()
    pixels.view(-1)[places] += 15
    return {**inputs, name: pixels}


@pytest.mark.parametrize("family", MERGED, ids=lambda family: family.name)
def test_patches_belong_to_their_token(family):
    """Of all tokens, the one whose own patches change most is the one whose features change most."""
    model, inputs, look = family.model(), family.inputs((1,)), Look(keep=1)
    size = next(value for name, value in inputs.items() if name.startswith("pixel_values")).numel()
    compared = 0
    with torch.no_grad(), tokenprune.wrap(model, look, per="prompt"):
        model(**inputs)
        before = look.seen.pop()
        for place in torch.randint(size, (40,), generator=torch.Generator().manual_seed(0)).tolist():
            model(**changed(inputs, [place]))
            after = look.seen.pop()
            features = (after.features - before.features)[0].norm(dim=-1)
            patches = (after.encoder - before.encoder)[0].flatten(1).norm(dim=-1)
            first, second = features.topk(2).values
            if first > 1.5 * second:  # not in padding, and not spread by attention
                compared += 1
                assert patches.argmax() == features.argmax()
    assert compared >= 5


@pytest.mark.parametrize("name", [name for name in PICTURES if name in BY_NAME])
def test_grids_lie_as_the_picture_does(name):
    """A pixel inside cell (row, column) of tile t changes that cell of crop t most."""
    family = next(family for family in FAMILIES if family.name == name)
    model, inputs = family.model(), family.inputs((1,))
    with tokenprune.wrap(model, "uniform", keep=1, per="crop") as handle:
        model.generate(**inputs, max_new_tokens=1)
    units = handle.report().units
    pixels = inputs["pixel_values"]
    before, hits, tries = reference.decoder_inputs(model, inputs)["inputs_embeds"], 0, 0
    for tile, unit in enumerate(units):
        _, rows, columns = unit.grid
        if rows != columns and len(units) > 1:
            continue  # a tile whose padding was cut off
        height, width = (
            pixels.shape[-2:] if len(units) > 1 else inputs.get("image_sizes", torch.tensor([pixels.shape[-2:]]))[0]
        )
        for cell in (0, columns - 1, columns + 1, rows * columns - 2):
            y = int((cell // columns + 0.5) * height / rows)
            x = int((cell % columns + 0.5) * width / columns)
            place = ((tile * 3) * pixels.shape[-2] + y) * pixels.shape[-1] + x
            after = reference.decoder_inputs(model, changed(inputs, [place]))["inputs_embeds"]
            slot = int((after - before)[0].norm(dim=-1).argmax())
            hits += slot == int(unit.slots[cell])
            tries += 1
    assert tries
    assert hits == tries


class TestPackedTiles:
    """A base view of 2 x 2, then the tiles of a 1 x 2 picture whose first line was cut off as padding."""

    BASE = torch.arange(4).double()

    def layout(self, rest):
        index = torch.cat([self.BASE, torch.tensor(rest).double()])
        return packed_tiles(None, Features(modality="image", packed=[index], tile=4))[0]

    def test_tiles_and_newlines(self):
        layout = self.layout([6, 7, 10, 11, -1])
        assert layout.crop.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, -1]
        assert layout.grids == ((1, 2, 2), (1, 1, 2), (1, 1, 2))
        assert layout.line_end.tolist() == [-1] * 4 + [8] * 4 + [-1]
        assert layout.patches.tolist() == [0, 1, 2, 3, 6, 7, 10, 11, -1]

    def test_interpolated_rows_are_of_no_tile(self):
        layout = self.layout([4.5, 5, 6, -1, 6.5, 7, 8, -1])
        assert layout.crop.tolist() == [0, 0, 0, 0, 1, 1, 1, -1, 1, 1, 1, -1]
        assert layout.grids == ((1, 2, 2), (1, 2, 3))
        assert layout.patches.tolist() == [0, 1, 2, 3] + [-1] * 8

    def test_a_base_view_alone(self):
        layout = self.layout([-1])
        assert layout.crop.tolist() == [0, 0, 0, 0, -1]
        assert layout.grids == ((1, 2, 2),)


def test_every_adapter_is_built_and_every_built_family_has_one():
    built = {family.model_type for family in ALL}
    assert built == {adapter.model_type for adapter in ADAPTERS}
    assert len(ADAPTERS) == len(built)
    assert all(family.model().config.model_type == family.model_type for family in BUILT)


def test_a_family_of_ones_own():
    """An unlisted model type is refused until an adapter vouches for it."""
    family = BY_NAME["llava"]
    model, inputs = family.model(), family.inputs((2, 1))
    model.config.model_type = "newllava"
    with pytest.raises(UnsupportedModelError, match="not supported yet"):
        tokenprune.wrap(model, "uniform", keep=4)
    own = register(Adapter(model_type="newllava"))
    try:
        with tokenprune.wrap(model, "divprune", keep=4) as handle:
            model(**inputs)
        assert [(unit.kept, unit.total, unit.grid) for unit in handle.report().units] == [(4, 36, None)] * 3
        with pytest.raises(InvalidArgumentError, match="already"):
            register(Adapter(model_type="llava"))
    finally:
        ADAPTERS.remove(own)
