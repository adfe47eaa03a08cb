"""The peers: SimpleITK, elastix and ANTs, each with its own way to hold an image and a transform.

Flow: volume > [peers] > methods
Never: a volume changed for one of them; all get the same voxels at the same places.

Each keeps its library's own recipe for a rigid registration by Mattes' mutual information, from the centres of mass;
what differs from a default is said beside it. ITK's transforms take fixed points to moving ones: the inverse of ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registration.volume import Volume

Angles = tuple[float, float, float]
Matrix = NDArray[np.float64]
Register = Callable[[Volume, Volume], Matrix]
Load = Callable[[int], Register]

UPRIGHT: Angles = (0.0, 0.0, 0.0)
# About x, y and z through the centres: each way by 40 degrees, and lying on either side.
STARTS_DEG: tuple[Angles, ...] = (
    UPRIGHT,
    *((sign * 40.0, 0.0, 0.0) for sign in (1, -1)),
    *((0.0, sign * 40.0, 0.0) for sign in (1, -1)),
    *((0.0, 0.0, sign * 40.0) for sign in (1, -1)),
    *((0.0, 0.0, sign * 90.0) for sign in (1, -1)),
)
SEED = 1
# SimpleITK has no default for these; this gave the least error of what was tried, at about the least time.
BINS = 50
SHRINK, SIGMAS_MM, SAMPLED = [4, 2, 1], [3.0, 1.5, 0.5], [0.2, 0.05, 0.02]
STEP, LEAST_STEP, ITERATIONS = 1.0, 1e-4, 200
ELASTIX_LEVELS = 4
ELASTIX_VALID_SAMPLES = 0.05  # 0.25 by default, with which it gives up on small fields of view


def frame_of(volume: Volume) -> tuple[Matrix, Matrix, Matrix]:
    """Return what ITK calls spacing, direction and origin: axes i, j, k; LPS mm."""
    columns = volume.affine[:3, [2, 1, 0]]
    spacing = np.linalg.norm(columns, axis=0)
    return spacing, columns / spacing, volume.affine[:3, 3]


def invert_points(moving_from_fixed: Callable[[Sequence[float]], Sequence[float]]) -> Matrix:
    """Return the (4, 4) `fixed_from_moving` of a peer's transform that takes one fixed point to a moving one."""
    corners = np.vstack([np.zeros(3), np.eye(3)])
    moved = np.array([moving_from_fixed(corner.tolist()) for corner in corners])
    matrix = np.eye(4)
    matrix[:3, :3] = (moved[1:] - moved[0]).T
    matrix[:3, 3] = moved[0]
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def load_simpleitk(threads: int) -> Register:
    """Return SimpleITK from the centres of mass."""
    return _load_simpleitk(threads, [UPRIGHT])


def load_simpleitk_multi_start(threads: int) -> Register:
    """Return SimpleITK from several rotations, of which it keeps the best by its own metric."""
    return _load_simpleitk(threads, STARTS_DEG)


def _load_simpleitk(threads: int, starts_deg: Sequence[Angles]) -> Register:
    sitk: Any = importlib.import_module("SimpleITK")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)

    def run(fixed: Volume, moving: Volume) -> Matrix:
        images = _simpleitk_image(sitk, fixed), _simpleitk_image(sitk, moving)
        found = [_climb(sitk, images, start_deg) for start_deg in starts_deg]
        metric, transform = min(found, key=lambda one: one[0])
        if metric == np.inf:
            raise RuntimeError("every start left the images' overlap")
        return invert_points(transform.TransformPoint)

    return run


def _simpleitk_image(sitk: Any, volume: Volume) -> Any:
    spacing, direction, origin = frame_of(volume)
    image = sitk.GetImageFromArray(np.asarray(volume.array))
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(origin.tolist())
    return image


def _climb(sitk: Any, images: tuple[Any, Any], start_deg: Angles) -> tuple[float, Any]:
    """Return the metric, the lower the better, and the transform from one start."""
    centred = sitk.CenteredTransformInitializer(
        *images, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    start = sitk.Euler3DTransform(centred)
    start.SetRotation(*np.radians(start_deg).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel(SAMPLED, seed=SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(STEP, LEAST_STEP, ITERATIONS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(SHRINK)
    method.SetSmoothingSigmasPerLevel(SIGMAS_MM)
    method.SetInitialTransform(start, inPlace=False)
    try:
        transform = method.Execute(*images)
    except RuntimeError:  # this start left the images' overlap; another may not
        return np.inf, start
    return method.GetMetricValue(), transform


def load_elastix(threads: int) -> Register:
    """Return elastix' rigid recipe (Euler transform, advanced Mattes, adaptive stochastic gradient descent)."""
    itk: Any = importlib.import_module("itk")

    def run(fixed: Volume, moving: Volume) -> Matrix:
        parameters = itk.ParameterObject.New()
        recipe = dict(parameters.GetDefaultParameterMap("rigid", ELASTIX_LEVELS))
        recipe["AutomaticTransformInitialization"] = ["true"]
        recipe["AutomaticTransformInitializationMethod"] = ["CenterOfGravity"]
        recipe["RequiredRatioOfValidSamples"] = [str(ELASTIX_VALID_SAMPLES)]
        recipe["WriteResultImage"] = ["false"]
        parameters.AddParameterMap(recipe)
        method = itk.ElastixRegistrationMethod.New(_itk_image(itk, fixed), _itk_image(itk, moving))
        method.SetParameterObject(parameters)
        method.SetNumberOfThreads(threads)
        method.SetLogToConsole(False)
        method.UpdateLargestPossibleRegion()
        transform = method.ConvertToItkTransform(method.GetNthTransform(0))
        return invert_points(transform.TransformPoint)

    return run


def _itk_image(itk: Any, volume: Volume) -> Any:
    spacing, direction, origin = frame_of(volume)
    image = itk.image_from_array(np.ascontiguousarray(volume.array))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    image.SetDirection(itk.matrix_from_array(direction))
    return image


def load_ants(threads: int) -> Register:
    """Return ANTs' rigid recipe; its threads are set by the worker's environment."""
    ants: Any = importlib.import_module("ants")

    def image(volume: Volume) -> Any:
        spacing, direction, origin = frame_of(volume)
        columns = np.ascontiguousarray(volume.array.transpose(2, 1, 0))  # ANTs' arrays are (i, j, k)
        return ants.from_numpy(columns, origin=origin.tolist(), spacing=spacing.tolist(), direction=direction)

    def run(fixed: Volume, moving: Volume) -> Matrix:
        found = ants.registration(
            image(fixed), image(moving), type_of_transform="Rigid", aff_metric="mattes", random_seed=SEED
        )
        transform = ants.read_transform(found["fwdtransforms"][0])
        for path in {*found["fwdtransforms"], *found["invtransforms"]}:
            Path(path).unlink(missing_ok=True)
        return invert_points(lambda point: ants.apply_ants_transform_to_point(transform, point))

    return run
