"""How sure a pose has to be, on scores written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fx_d2.data.doctor.orientation import _judge


@pytest.mark.parametrize(
    ("scores", "turn", "inverted"),
    [
        # (upright, and after one to three quarter turns); their negatives are inverted
        ((0.50, 0.10, 0.20, 0.10), 0, False),
        ((0.10, 0.20, 0.40, 0.10), 2, False),  # upside down by +0.30
        ((0.30, 0.10, 0.40, 0.10), 0, False),  # by +0.10: not sure
        ((0.10, 0.10, -0.30, 0.10), 0, False),  # upside down and inverted by +0.20: may be fluid
        ((0.10, 0.10, -0.45, 0.10), 2, True),  # by +0.35: no fluid does that
        ((0.10, -0.30, 0.10, 0.10), 1, True),  # on its side and inverted by +0.20
        ((-0.20, 0.10, 0.00, 0.10), 0, False),  # resembles nothing
        ((-0.40, 0.10, 0.20, 0.10), 0, True),
    ],
)
def test_how_sure_a_pose_has_to_be(scores: tuple[float, ...], turn: int, inverted: bool) -> None:
    found_turn, found_inverted = _judge(np.array([scores]))
    assert (found_turn[0], found_inverted[0]) == (turn, inverted)
