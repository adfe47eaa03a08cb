from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from registration.descriptors import Network, describe, find_model, make_options, read_model
from registration.errors import DeviceError, ModelError
from registration.preprocess import Cube, make_cube_grid
from registration.profiles import DEFAULT, PAPER

MODEL = find_model(DEFAULT.network)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.load(device="cpu", threads=1)


def draw_patches(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, 64, 64), dtype=np.float32)


def test_the_shipped_network_names_its_checksum_and_device(network: Network) -> None:
    assert network.sha256 == hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert network.device == "cpu"
    assert MODEL.stat().st_size < 20e6


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_any_number_of_patches_becomes_unit_vectors(network: Network, count: int) -> None:
    described = network.describe(draw_patches(count), is_moving=True)

    assert described.shape == (count, 256)
    assert described.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(described, axis=1), 1, rtol=1e-5)


def test_a_patch_is_described_the_same_in_any_batch_and_by_any_number_of_threads(network: Network) -> None:
    patches = draw_patches(70)
    two = Network.load(device="cpu", threads=2)

    together = network.describe(patches, is_moving=False)

    alone = network.describe(patches[66:67], is_moving=False)
    np.testing.assert_array_equal(alone[0], together[66])
    np.testing.assert_array_equal(two.describe(patches, is_moving=False), together)


def test_each_modality_has_its_own_stem(network: Network) -> None:
    patches = draw_patches(4)

    fixed, moving = (network.describe(patches, is_moving=flag) for flag in (False, True))

    assert (np.abs(fixed - moving).max(axis=1) > 0.05).all()


def test_joined_descriptors_have_unit_length(network: Network) -> None:
    grid = make_cube_grid(np.zeros(3))
    array = np.random.default_rng(0).random((128, 128, 128), dtype=np.float32)
    cube = Cube(array, array > 0, grid.affine)

    joined = describe(cube, np.array([[64, 64, 64], [0, 127, 5]]), network, DEFAULT, is_moving=True)

    assert joined.shape == (2, 640)
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, rtol=1e-4)


def test_a_changed_model_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    for ending in (".onnx", ".toml"):
        shutil.copy(MODEL.with_suffix(ending), tmp_path / f"model{ending}")
    content = bytearray((tmp_path / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)

    with pytest.raises(ModelError, match="its card says"):
        Network.load(tmp_path / "model.onnx")


def test_a_missing_or_broken_card_is_refused(tmp_path: Path) -> None:
    shutil.copy(MODEL, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"model\.toml is not there"):
        read_model(tmp_path / "model.onnx")
    (tmp_path / "model.toml").write_text("sha256 = ")
    with pytest.raises(ModelError, match="is no TOML"):
        read_model(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"other\.onnx is not there"):
        read_model(tmp_path / "other.onnx")


def test_a_file_that_is_no_network_is_refused_although_its_checksum_is_right(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not an ONNX model")
    digest = hashlib.sha256(b"not an ONNX model").hexdigest()
    (tmp_path / "model.toml").write_text(f'sha256 = "{digest}"\n')

    with pytest.raises(ModelError, match="cannot be opened"):
        Network.load(tmp_path / "model.onnx", device="cpu")


def test_external_data_is_refused_even_where_it_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = b"weights.bin"
    (tmp_path / "weights.bin").write_bytes(np.zeros(4, np.float32).tobytes())
    # a graph of one Add whose initialiser lies in a file: the protobuf by hand, so that no ONNX library is needed
    content = external_model(name)
    (tmp_path / "model.onnx").write_bytes(content)
    (tmp_path / "model.toml").write_text(f'sha256 = "{hashlib.sha256(content).hexdigest()}"\n')

    with pytest.raises(ModelError, match="cannot be opened"):
        Network.load(tmp_path / "model.onnx", device="cpu")


def field(number: int, content: bytes | int) -> bytes:
    """Return one protobuf field: a varint below 128, or bytes shorter than 128."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    return bytes([number << 3 | 2, len(content)]) + content


def external_model(location: bytes) -> bytes:
    """Return `descriptors = patches + w` as ONNX, with w in an external file."""
    pointer = field(1, b"location") + field(2, location)
    weight = field(1, 4) + field(2, 1) + field(8, b"w") + field(13, pointer) + field(14, 1)
    node = field(1, b"patches") + field(1, b"w") + field(2, b"descriptors") + field(4, b"Add")
    kind = field(2, field(1, field(1, 1) + field(2, field(1, field(1, 4)))))
    graph = field(1, node) + field(2, b"g") + field(5, weight)
    graph += field(11, field(1, b"patches") + kind) + field(12, field(1, b"descriptors") + kind)
    return field(1, 8) + field(7, graph) + field(8, field(2, 17))


def test_no_threads_are_refused() -> None:
    with pytest.raises(DeviceError, match="0 threads"):
        Network.load(device="cpu", threads=0)


def has_cuda() -> bool:
    try:
        Network.load(device="cuda")
    except DeviceError:
        return False
    return True


def test_cuda_runs_there_or_fails_with_the_reason_and_auto_says_what_it_took(
    capfd: pytest.CaptureFixture[str],
) -> None:
    if has_cuda():
        assert Network.load(device="cuda").device == "cuda"
        assert Network.load(device="auto").device == "cuda"
        return
    with pytest.raises(DeviceError, match=r"CUDA.*dicomnode-fusion\[cuda\] and an NVIDIA driver are needed"):
        Network.load(device="cuda")
    assert Network.load(device="auto").device == "cpu"
    assert capfd.readouterr() == ("", ""), "a command's output is its result"


@pytest.mark.parametrize("name", [DEFAULT.network, PAPER.network])
def test_what_cuda_is_given_has_no_32_bit_bias_and_describes_alike(tmp_path: Path, name: str) -> None:
    options = make_options("cuda", 1)
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    asked = Network.load(name, device="cpu", threads=1)
    session = onnxruntime.InferenceSession(find_model(name), options, providers=["CPUExecutionProvider"])
    patches = draw_patches(64)

    as_floats = replace(asked, session=session).describe(patches, is_moving=True)

    ran = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event["args"] for event in ran if event.get("cat") == "Node" and "op_name" in event["args"]]
    taken = {kind for kernel in kernels for one in kernel["input_type_shape"] for kind in one}
    assert {"Conv", "Gemm"} <= {kernel["op_name"] for kernel in kernels}, "products of floats, as CUDA makes them"
    assert "int32" not in taken
    cosines = (as_floats * asked.describe(patches, is_moving=True)).sum(axis=1)
    assert cosines.min() > 0.99


def test_a_device_that_fails_while_it_runs_is_named(network: Network) -> None:
    with pytest.raises(DeviceError, match="the network failed on cpu"):
        network.describe(np.zeros((2, 3, 32, 32), np.float32), is_moving=True)


def test_the_session_does_not_spin(network: Network) -> None:
    options = network.session.get_session_options()

    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 1
    assert isinstance(network.session, onnxruntime.InferenceSession)
