"""What stands in for the registration where a test looks at everything round it.

Flow: faulty_node, simulated_day > [stand_in] > jobs/pipeline
Never: a test of registration.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from registration.pipeline import Registration
from registration.transforms import RigidTransform


def stand_in(*_volumes: Any, **_options: Any) -> Registration:
    """Find a small shift, as the registration would of two series that fit, and be sure of it."""
    matrix = np.eye(4)
    matrix[:3, 3] = 3.0, -2.0, 1.0
    return Registration(RigidTransform.from_matrix(matrix), "accept", 0.99, True, {}, {}, "cpu", "ab" * 32)
