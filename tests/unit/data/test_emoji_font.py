"""The font is read right: every emoji of the categories, ligatures as the system draws them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

from hffm_flower.assets import asset_root
from hffm_flower.data.emoji import CATEGORIES
from hffm_flower.data.emoji_font import EmojiFont


@pytest.fixture(scope="module")
def font() -> EmojiFont:
    return EmojiFont(asset_root("openmoji") / "openmoji/font/glyf_colr0.ttf", glyph_px=76)


def sequences() -> list[tuple[int, ...]]:
    entries = json.loads((asset_root("emoji-data") / "data/emoji.json").read_text("utf-8"))
    return [
        tuple(int(code, 16) for code in e["unified"].split("-"))
        for e in entries
        if e["category"] in CATEGORIES
    ]


def test_every_emoji_has_a_glyph_of_its_own(font: EmojiFont) -> None:
    glyphs = [font.glyph(s) for s in sequences()]
    assert None not in glyphs
    assert len(set(glyphs)) == len(glyphs) == 1813


def test_unknown_sequences_have_none(font: EmojiFont) -> None:
    assert font.glyph((0x10FFFF,)) is None
    assert font.glyph((0x1F600, 0x1F600, 0x1F600)) is None


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow finds no FriBiDi here")
@pytest.mark.parametrize("sequence", [(0x1F600,), (0x1F1E6, 0x1F1F7), (0x1F468, 0x200D, 0x1F33E)])
def test_drawing_equals_the_shaping_engine(font: EmojiFont, sequence: tuple[int, ...]) -> None:
    glyph = font.glyph(sequence)
    assert glyph is not None
    ours = np.asarray(font.draw(glyph, side_px=96)).astype(int)
    path = asset_root("openmoji") / "openmoji/font/glyf_colr0.ttf"
    shaped = ImageFont.truetype(str(path), 76, layout_engine=ImageFont.Layout.RAQM)
    picture = Image.new("RGB", (96, 96), "white")
    canvas, text = ImageDraw.Draw(picture), "".join(map(chr, sequence))
    box = canvas.textbbox((0, 0), text, font=shaped)
    corner = ((96 - box[0] - box[2]) / 2, (96 - box[1] - box[3]) / 2)
    canvas.text(corner, text, font=shaped, embedded_color=True, fill="black")
    assert np.abs(ours - np.asarray(picture)).mean() < 1.0
    assert np.ptp(ours.reshape(-1, 3), axis=0).max() > 100
