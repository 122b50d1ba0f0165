"""A batch as a picture: a map of its rows, then every image and spectrogram in it with a caption.

Notable:
- Pictures are made of the features as the tower is given them, not of the files: small ones are enlarged
  without smoothing, so that their pixels can be seen.
- Each column of the map is a place of the row (or several, where rows are longer than the page is wide).
  What is read but not predicted is paler; a dark line begins a piece; padding is white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from onn_lightning.inspection.fonts import Lettering, find_lettering
from onn_lightning.inspection.page import words_of
from onn_lightning.inspection.pieces import PackedPiece, Run

WIDTH, MARGIN, GAP = 1200, 24, 12
TEXT_HEIGHT, LINE = 14, 19
ROW_HEIGHT, ROW_GAP = 12, 4
SMALL, LARGE = 96, 320
"""Pictures less high than the one are enlarged by whole factors, sides longer than the other reduced."""
NARROW = 118
"""Least width of a caption."""

MAX_PICTURES, MAX_ROWS = 240, 64
BACKGROUND, INK, FAINT, PADDING = (246, 246, 248), (30, 30, 36), (120, 120, 130), (255, 255, 255)
PALETTE = ((66, 120, 190), (226, 138, 56), (92, 160, 100), (176, 92, 160), (110, 110, 110), (196, 78, 82))
PALE = 0.45
"""How much of its colour is left of what is not predicted."""


Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Tile:
    """A picture with its caption."""

    picture: Image.Image
    colour: Colour
    lines: tuple[str, ...]

    @property
    def width(self) -> int:
        return max(self.picture.width, NARROW)


def draw_sheet(pieces: Sequence[PackedPiece], rows: int, row_length: int, title: str) -> Image.Image:
    """Draw one batch.

    Args:
        pieces: of the batch.
        rows, row_length: B, T.
        title: first line of the page.
    """
    lettering = find_lettering(TEXT_HEIGHT)
    names = sorted({run.modality for piece in pieces for run in piece.runs})
    colours = {name: PALETTE[number % len(PALETTE)] for number, name in enumerate(names)}
    tiles = _tiles(pieces, colours)
    lines = _flow(tiles[:MAX_PICTURES])
    map_rows = min(rows, MAX_ROWS)
    top = MARGIN + 2 * LINE + GAP + map_rows * (ROW_HEIGHT + ROW_GAP) + GAP
    height = top + sum(_height(line) + GAP for line in lines) + MARGIN
    page = Image.new("RGB", (WIDTH, height), BACKGROUND)
    draw = ImageDraw.Draw(page)

    left_out = len(tiles) - MAX_PICTURES
    title += f"; {left_out} more pictures are not shown" if left_out > 0 else ""
    title += f"; map of the first {map_rows} of {rows} rows" if map_rows < rows else ""
    draw.text((MARGIN, MARGIN), lettering.cut(title, WIDTH - 2 * MARGIN), INK, lettering.font)
    _draw_legend(draw, lettering, colours, MARGIN + LINE)
    _draw_map(page, pieces, map_rows, row_length, colours, MARGIN + 2 * LINE + GAP)
    for line in lines:
        left = MARGIN
        for tile in line:
            page.paste(tile.picture, (left, top))
            below = top + tile.picture.height + 3
            for number, text in enumerate(tile.lines):
                colour = INK if number else tile.colour
                place = (left, below + number * LINE)
                draw.text(place, lettering.cut(text, tile.width), colour, lettering.font)
            left += tile.width + GAP
        top += _height(line) + GAP
    return page


def _tiles(pieces: Sequence[PackedPiece], colours: Mapping[str, Colour]) -> list[_Tile]:
    tiles = []
    for piece in pieces:
        words = " ".join(_text_of(run) for run in piece.runs if run.segment.positions_2d is None)
        for run in piece.runs:
            if run.preview is None or run.preview.picture is None:
                continue
            picture = _to_size(Image.fromarray(run.preview.picture.numpy()))
            place = f"{piece.row}.{piece.number}: {len(run):,} tokens"
            tiles.append(_Tile(picture, colours[run.modality], (place, run.preview.caption, words.strip())))
    return tiles


def _text_of(run: Run) -> str:
    words = None if run.preview is None else words_of(run.preview)
    return "".join(word for word in words or () if not word.startswith("⟨")).replace("\n", " ")


def _to_size(picture: Image.Image) -> Image.Image:
    longest = max(picture.size)
    if longest > LARGE:
        size = [max(1, round(side * LARGE / longest)) for side in picture.size]
        return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    factor = max(1, min(-(-SMALL // picture.height), LARGE // longest))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def _flow(tiles: Sequence[_Tile]) -> list[list[_Tile]]:
    """Lines of tiles that fit on the page."""
    lines: list[list[_Tile]] = []
    room = 0
    for tile in tiles:
        if tile.width > room:
            lines.append([])
            room = WIDTH - 2 * MARGIN
        lines[-1].append(tile)
        room -= tile.width + GAP
    return lines


def _height(line: Sequence[_Tile]) -> int:
    return max(tile.picture.height for tile in line) + 3 + max(len(tile.lines) for tile in line) * LINE


def _draw_legend(
    draw: ImageDraw.ImageDraw, lettering: Lettering, colours: Mapping[str, Colour], top: int
) -> None:
    left = MARGIN
    for name, colour in colours.items():
        draw.rectangle((left, top + 3, left + LINE - 6, top + LINE - 4), colour)
        draw.text((left + LINE, top), lettering.safe(name), INK, lettering.font)
        left += LINE + lettering.width(lettering.safe(name)) + 2 * GAP
    note = "paler: read but not predicted; dark line: a piece begins; white: padding; 2.5: row 2, piece 5"
    note += "" if lettering.has_chinese else "; ?: no font here has this character"
    draw.text((left, top), note, FAINT, lettering.font)


def _draw_map(
    page: Image.Image,
    pieces: Sequence[PackedPiece],
    rows: int,
    row_length: int,
    colours: Mapping[str, Colour],
    top: int,
) -> None:
    width = WIDTH - 2 * MARGIN
    for row in range(rows):
        strip: NDArray[np.uint8] = np.full((row_length, 3), PADDING, np.uint8)
        begins = []
        for piece in (piece for piece in pieces if piece.row == row):
            place = piece.start
            begins.append(piece.start)
            for run in piece.runs:
                full = np.array(colours[run.modality], np.float64)
                pale = 255 - PALE * (255 - full)
                strip[place : place + len(run)] = np.where(run.supervised.numpy()[:, None], full, pale)
                place += len(run)
        bar = Image.fromarray(strip[None]).resize((width, ROW_HEIGHT), Image.Resampling.NEAREST)
        y = top + row * (ROW_HEIGHT + ROW_GAP)
        page.paste(bar, (MARGIN, y))
        draw = ImageDraw.Draw(page)
        for begin in begins:
            x = MARGIN + begin * width // row_length
            draw.line((x, y, x, y + ROW_HEIGHT - 1), INK)
