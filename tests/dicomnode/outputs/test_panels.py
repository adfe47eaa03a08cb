"""What pictures are made of: tiles in their places, squares in turn, one line round what is inside."""

from __future__ import annotations

import cv2
import numpy as np

from dicomnode.outputs.panels import GAP_PX, OUTLINE, arrange, chequer, encode_png, outline, place_of


def test_tiles_stand_in_rows_and_columns_without_touching() -> None:
    tiles = [[np.full((20, 20, 3), 10 * row + column + 1, np.uint8) for column in range(3)] for row in range(2)]
    picture = arrange([("a", ""), ("b", ""), ("c", "")], [("one", tiles[0]), ("two", tiles[1])])
    for row in range(2):
        for column in range(3):
            top, left = place_of(row, column, 20)
            assert (picture[top : top + 20, left : left + 20] == 10 * row + column + 1).all()
            assert not picture[top : top + 20, left + 20 : left + 20 + GAP_PX].any()
            assert not picture[top + 20 : top + 20 + GAP_PX, left : left + 20].any()


def test_a_chequerboard_takes_squares_in_turn() -> None:
    one, other = np.full((40, 40, 3), 1, np.uint8), np.full((40, 40, 3), 2, np.uint8)
    board = chequer(one, other, 10)[..., 0]
    assert board[5::10, 5::10].tolist() == [[1, 2, 1, 2], [2, 1, 2, 1], [1, 2, 1, 2], [2, 1, 2, 1]]


def test_an_outline_goes_round_the_outside_and_past_a_narrow_gap() -> None:
    inside = np.zeros((60, 60), bool)
    inside[10:50, 10:50] = True
    inside[20:40, 20:40] = False
    inside[10:14, 28:32] = False
    drawn = (outline(np.zeros((60, 60, 3), np.uint8), inside) == OUTLINE).all(axis=2)
    assert drawn[[10, 49], 10:26].all()
    assert drawn[10:50, [10, 49]].all()
    assert not drawn[13:47, 13:47].any()


def test_a_png_holds_what_was_drawn() -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    read = cv2.imdecode(np.frombuffer(encode_png(image, compression=4), np.uint8), cv2.IMREAD_COLOR)
    assert read is not None
    assert (read == image).all()
