"""Draws emoji sequences with a colour font, the same on every machine.

Pillow draws ligatures (flags, people of a profession) only where the system has FriBiDi.
So the font's own ligature table is read here, each glyph gets a private code point in a
copy of the font in memory, and the simple layout draws that.

Source: OpenType 1.9, tables ``cmap`` (formats 4 and 12) and ``GSUB`` (lookup type 4).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

PRIVATE: Final = 0xF0000  # first code point of Supplementary Private Use Area A
SELECTOR: Final = 0xFE0F  # asks for the coloured form; fonts drop it as they like


class EmojiFont:
    """A COLR font whose every glyph has the code point `PRIVATE` + glyph number."""

    def __init__(self, path: Path, *, glyph_px: int) -> None:
        self._data = path.read_bytes()
        self._tables = {
            self._data[at : at + 4].decode(): at for at in range(12, 12 + 16 * self._u16(4), 16)
        }
        self._glyphs = dict(self._read_cmap())
        self._ligatures = dict(self._read_ligatures())
        self._font = ImageFont.truetype(
            io.BytesIO(self._renumbered()), glyph_px, layout_engine=ImageFont.Layout.BASIC
        )

    def glyph(self, sequence: tuple[int, ...]) -> int | None:
        """Glyph number of a sequence of code points; None where the font has none."""
        for codes in (sequence, tuple(c for c in sequence if c != SELECTOR)):
            glyphs = tuple(self._glyphs.get(c, 0) for c in codes)
            found = glyphs[0] if len(glyphs) == 1 else self._ligatures.get(glyphs, 0)
            if found:
                return found
        return None

    def draw(self, glyph: int, *, side_px: int) -> Image.Image:
        """Picture [side_px, side_px] RGB: the glyph in the middle, on white."""
        text = chr(PRIVATE + glyph)
        picture = Image.new("RGB", (side_px, side_px), "white")
        canvas = ImageDraw.Draw(picture)
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=self._font)
        corner = ((side_px - left - right) / 2, (side_px - top - bottom) / 2)
        canvas.text(corner, text, font=self._font, embedded_color=True, fill="black")
        return picture

    def _u16(self, at: int) -> int:
        return int.from_bytes(self._data[at : at + 2], "big")

    def _u32(self, at: int) -> int:
        return int.from_bytes(self._data[at : at + 4], "big")

    def _table(self, name: str) -> int:
        return self._u32(self._tables[name] + 8)

    def _read_cmap(self) -> Iterator[tuple[int, int]]:
        cmap = self._table("cmap")
        for entry in range(cmap + 4, cmap + 4 + 8 * self._u16(cmap + 2), 8):
            at = cmap + self._u32(entry + 4)
            if self._u16(at) == 12:
                for group in range(at + 16, at + 16 + 12 * self._u32(at + 12), 12):
                    first, last, glyph = struct.unpack_from(">III", self._data, group)
                    yield from ((first + i, glyph + i) for i in range(last - first + 1))
                return

    def _read_ligatures(self) -> Iterator[tuple[tuple[int, ...], int]]:
        gsub = self._table("GSUB")
        lookups = gsub + self._u16(gsub + 8)
        for i in range(self._u16(lookups)):
            lookup = lookups + self._u16(lookups + 2 + 2 * i)
            if self._u16(lookup) == 4:
                for j in range(self._u16(lookup + 4)):
                    yield from self._read_subtable(lookup + self._u16(lookup + 6 + 2 * j))

    def _read_subtable(self, at: int) -> Iterator[tuple[tuple[int, ...], int]]:
        for i, first in enumerate(self._coverage(at + self._u16(at + 2))):
            ligatures = at + self._u16(at + 6 + 2 * i)
            for j in range(self._u16(ligatures)):
                ligature = ligatures + self._u16(ligatures + 2 + 2 * j)
                rest = range(self._u16(ligature + 2) - 1)
                glyphs = (first, *(self._u16(ligature + 4 + 2 * k) for k in rest))
                yield glyphs, self._u16(ligature)

    def _coverage(self, at: int) -> Iterator[int]:
        count = self._u16(at + 2)
        if self._u16(at) == 1:
            yield from (self._u16(at + 4 + 2 * i) for i in range(count))
            return
        for entry in range(at + 4, at + 4 + 6 * count, 6):
            yield from range(self._u16(entry), self._u16(entry + 2) + 1)

    def _renumbered(self) -> bytes:
        """The font with a ``cmap`` of one group: private code point -> glyph number."""
        glyphs = self._u16(self._table("maxp") + 4)
        cmap = struct.pack(">HHHHI", 0, 1, 3, 10, 12)  # version, one table: Windows, UCS-4
        cmap += struct.pack(">HHIII", 12, 0, 16 + 12, 0, 1)  # format 12, one group
        cmap += struct.pack(">III", PRIVATE, PRIVATE + glyphs - 1, 0)
        data = bytearray(self._data + bytes(-len(self._data) % 4))
        struct.pack_into(">II", data, self._tables["cmap"] + 8, len(data), len(cmap))
        return bytes(data + cmap)
