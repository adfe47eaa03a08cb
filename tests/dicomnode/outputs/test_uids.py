"""UIDs follow from what an object is made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dicomnode.outputs.uids import make_fingerprint, make_uid
from dicomnode.settings import OutputSettings
from registration.transforms import RigidTransform
from tests.dicomnode.outputs.known_requests import MR, PET, SMALL_MOTION, load_spec, make_registration, make_request


def test_uid_is_valid_and_the_same_for_ever() -> None:
    # A change of these values changes every UID we ever made: a repeated job would then make a second set of objects.
    assert make_uid("a", "series") == "2.25.309363175192818684315641118978418488174"
    assert make_uid("implementation", "dicomnode") == "2.25.337708006984311984997518147275331192286"
    assert make_uid("a", "series").is_valid


def test_parts_do_not_run_together() -> None:
    assert make_fingerprint(["ab", "c"]) != make_fingerprint(["a", "bc"])
    assert make_fingerprint(["a", ""]) != make_fingerprint(["a"])


def test_fingerprint_changes_with_every_input_and_not_with_the_clock() -> None:
    request = make_request()
    nudged = SMALL_MOTION.matrix.copy()
    nudged[0, 3] += 1e-9
    others = [
        replace(request, settings=OutputSettings(opacity=0.6)),
        replace(request, registration=make_registration(RigidTransform(nudged))),
        replace(request, registration=replace(request.registration, model_sha256="cd" * 32)),
        replace(request, moving=load_spec(replace(PET, uid="1.2.3"))),
        replace(request, fixed=load_spec(replace(MR, uid="1.2.3"))),
        replace(request, fixed=replace(request.fixed, frame_numbers=tuple(range(1, 13)))),
        replace(request, fixed=replace(request.fixed, frame_numbers=tuple(range(13, 25)))),  # of another echo
        replace(request, fixed=replace(request.fixed, set_aside=request.moving.headers[:1])),  # the "reg" names it
    ]
    fingerprints = {other.fingerprint for other in others} | {request.fingerprint}
    assert len(fingerprints) == 9
    assert replace(request, created_at=0.0).fingerprint == request.fingerprint


def test_projected_rotation_is_orthonormal_to_rounding() -> None:
    rough = SMALL_MOTION.matrix.copy()
    rough[:3, :3] *= 1 + 3e-7
    request = replace(make_request(), registration=make_registration(RigidTransform(rough)))
    rotation = request.fixed_from_moving.rotation
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
