"""Steps 3 and 4 of the method: the network's descriptors, normalised and joined with SIFT's.

Flow: keypoints > patches > [descriptors] > matching
Never: a network whose bytes are not those its card names; a device other than the one asked for.
"""

from __future__ import annotations

import hashlib
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from registration.errors import DeviceError, ModelError
from registration.gradients import describe_gradients
from registration.patches import PATCH_VOXELS, cut_patches, pad_for_patches
from registration.preprocess import Cube
from registration.profiles import Profile

BATCH = {"cpu": 64, "cuda": 1024}
# A search by time finds another way to convolve in another session, which rounds otherwise, and anew for each batch.
CUDA = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
PACKAGE = Path(__file__).resolve().parent
# in a wheel the model lies inside the package, in a checkout beside it
FOLDERS = (PACKAGE / "model", PACKAGE.parent / "models")

# onnxruntime's own exceptions share no base class but Exception
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, eq=False)
class Network:
    """The descriptor network in a session of its own; safe to use from one thread at a time.

    Attributes
    ----------
    session : onnxruntime.InferenceSession
    device : str
        "cpu" or "cuda": where it really runs.
    name : str
        Stem of the file: what `Profile.network` asks for.
    sha256 : str
        Of the model's file, as its card names it.
    threads : int
    """

    session: Any
    device: str
    name: str
    sha256: str
    threads: int

    @classmethod
    def load(cls, path: Path | str = "cnn_sift", *, device: Device = "auto", threads: int = 2) -> Network:
        """Load the network.

        Parameters
        ----------
        path : Path or str
            The ONNX file, its card beside it with the ending .toml; or the name of one that is shipped.
        device : "auto", "cpu" or "cuda"
            "cuda" fails if the whole network cannot run there; "auto" takes it if it can, and says what it took.
        threads : int
            For the CPU; at least 1.

        Raises
        ------
        ModelError
            If the file or card is missing, the checksum differs, or the file refers to data outside it.
        DeviceError
            If the device asked for cannot run the network; the message holds the reason.
        """
        if threads < 1:
            raise DeviceError(f"{threads} threads, at least 1 needed")
        path = path if isinstance(path, Path) else find_model(path)
        content, digest = read_model(path)
        if device != "cpu":
            try:
                return cls(_open(content, "cuda", threads), "cuda", path.stem, digest, threads)
            except DeviceError:
                if device == "cuda":
                    raise
        return cls(_open(content, "cpu", threads), "cpu", path.stem, digest, threads)

    def describe(self, patches: NDArray[np.float32], *, is_moving: bool) -> NDArray[np.float32]:
        """Describe (n, 3, 64, 64) patches of one modality: (n, d) float32 of unit length, d the network's own.

        Raises
        ------
        DeviceError
            If the device fails, as when its memory is full.
        """
        size = BATCH[self.device]
        feeds = (
            _feeds(self.session, patches[at : at + size], is_moving=is_moving) for at in range(0, len(patches), size)
        )
        try:
            return np.concatenate([self.session.run(None, feed)[0] for feed in feeds])
        except RUNTIME_ERRORS as error:
            raise DeviceError(f"the network failed on {self.device}: {error}") from error


def describe(
    cube: Cube, index: NDArray[np.int64], network: Network, profile: Profile, *, is_moving: bool
) -> NDArray[np.float32]:
    """Describe points of a cube by the joined descriptor.

    Parameters
    ----------
    cube : Cube
    index : (n, 3) int64, voxels
    network : Network
    profile : Profile
        Which planes, and the share w of the network.
    is_moving : bool
        Which of the network's stems sees the patches.

    Returns
    -------
    (n, d) float32
        [sqrt(w) CNN ; sqrt(1 - w) RootSIFT]: a product of two is the weighted mean of both cosines. A part without a
        share is left out.
    """
    share = profile.cnn_share
    parts = []
    with ThreadPoolExecutor(1) as beside:
        gradients = beside.submit(describe_gradients, cube.array, index, profile.planes) if share < 1 else None
        if share > 0:
            patches = cut_patches(pad_for_patches(cube.array), index, profile.planes)
            parts.append(np.sqrt(share) * network.describe(patches, is_moving=is_moving))
        if gradients is not None:
            parts.append(np.sqrt(1 - share) * gradients.result())
    return np.concatenate(parts, axis=1, dtype=np.float32)


def find_model(name: str) -> Path:
    """Return where the model of this name is shipped, or would be."""
    places = [folder / f"{name}.onnx" for folder in FOLDERS]
    return next((place for place in places if place.is_file()), places[-1])


def _feeds(session: Any, patches: NDArray[np.float32], *, is_moving: bool) -> dict[str, NDArray[Any]]:
    """Return what a session takes: a network with one stem for both modalities does not ask which it is."""
    feeds: dict[str, NDArray[Any]] = {"patches": patches, "is_moving": np.array(is_moving)}
    return {found.name: feeds[found.name] for found in session.get_inputs()}


def read_model(path: Path) -> tuple[bytes, str]:
    """Read the ONNX file and check it against its card; returns its bytes and their sha256."""
    card_path = path.with_suffix(".toml")
    for needed in (path, card_path):
        if not needed.is_file():
            raise ModelError(f"{needed} is not there; a network and its card are needed")
    try:
        card = tomllib.loads(card_path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{card_path} is no TOML: {error}") from error
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.get("sha256"):
        raise ModelError(f"{path} has sha256 {digest}, its card says {card.get('sha256')}")
    return content, digest


def _load_cuda_libraries() -> None:
    """Load CUDA and cuDNN, from their wheels if installed; raise with the first that is missing.

    Without this onnxruntime does not look into the wheels' folders, and its provider does not say what it misses.
    """
    needed = "dicomnode-fusion[cuda] and an NVIDIA driver are needed"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DeviceError(f"this onnxruntime has no CUDA provider; {needed}")
    with redirect_stdout(StringIO()) as said:  # it prints what it cannot load
        onnxruntime.preload_dlls()
    if missing := said.getvalue().strip():
        raise DeviceError(f"CUDA cannot run the network: {missing.splitlines()[0]}; {needed}")


def make_options(device: Literal["cpu", "cuda"], threads: int) -> Any:
    """Return how a session runs, an `onnxruntime.SessionOptions`: quiet, and without a thread that spins.

    For CUDA, which has no kernel for 32-bit biases, weights and biases are made floats again while it opens; what goes
    from layer to layer is rounded to 8 bits all the same.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come back as exceptions
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if device == "cuda":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _open(content: bytes, device: Literal["cpu", "cuda"], threads: int) -> Any:
    """Open a session on exactly this device, and prove that it runs there."""
    options = make_options(device, threads)
    provider: Any = "CPUExecutionProvider"
    if device == "cuda":
        provider = ("CUDAExecutionProvider", CUDA)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        _load_cuda_libraries()
    try:
        # bytes have no folder, so a model that refers to external data cannot be opened
        session = onnxruntime.InferenceSession(content, options, providers=[provider])
        blank = np.zeros((1, 3, PATCH_VOXELS, PATCH_VOXELS), dtype=np.float32)
        session.run(["descriptors"], _feeds(session, blank, is_moving=True))
    except RUNTIME_ERRORS as error:
        if device == "cuda":
            raise DeviceError(f"CUDA cannot run the network: {error}") from error
        raise ModelError(f"the network cannot be opened: {error}") from error
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceError(f"onnxruntime took {session.get_providers()} where CUDA was asked for")
    return session
