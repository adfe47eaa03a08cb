"""The trained network as ONNX, and the card that goes with it.

Flow: training > [export] > models/*.onnx, models/*.toml
Never: external data, an operator outside the standard set, a file without its card.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tomlkit
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.compose import add_prefix
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from models.train.network import DescriptorNetwork
from registration.patches import CHANNELS, PATCH_VOXELS

OPSET = 17
IR_VERSION = 8


def make_onnx(network: DescriptorNetwork, mr: NDArray[np.float32], pet: NDArray[np.float32]) -> onnx.ModelProto:
    """Make the ONNX model: `patches` (n, 3, 64, 64) and `is_moving` in, `descriptors` (n, d) of unit length out.

    The branch is chosen by an If, so one file serves both modalities and only one stem runs; a network with one stem
    has neither If nor `is_moving`. Weights and activations are 8 bits wide, with scales found on the (n, 3, 64, 64)
    sample patches of each modality.
    """
    if network.has_one_stem:
        return _checked(quantise(make_branch(network.mr, network.trunk), np.concatenate([mr, pet])))
    fixed = quantise(make_branch(network.mr, network.trunk), mr)
    moving = quantise(make_branch(network.pet, network.trunk), pet)
    names = {"fixed": fixed, "moving": moving}
    graphs = {name: add_prefix(model, f"{name}_", rename_inputs=False).graph for name, model in names.items()}
    for graph in graphs.values():
        del graph.input[:]  # a branch reads `patches` from the graph round it
    choose = helper.make_node(
        "If", ["is_moving"], ["descriptors"], then_branch=graphs["moving"], else_branch=graphs["fixed"]
    )
    is_moving = helper.make_tensor_value_info("is_moving", TensorProto.BOOL, [])
    patches, descriptors = _make_ends(network.trunk)
    graph = helper.make_graph([choose], "cnn_sift", [patches, is_moving], [descriptors])
    return _checked(_make_model(graph))


def make_branch(stem: nn.Sequential, trunk: nn.Sequential) -> onnx.ModelProto:
    """Make one modality's whole network in float32."""
    nodes, weights, last = _make_layers(stem, "stem", "patches")
    more_nodes, more_weights, last = _make_layers(trunk, "trunk", last)
    normalise = helper.make_node("LpNormalization", [last], ["descriptors"], axis=1, p=2)
    patches, descriptors = _make_ends(trunk)
    graph = helper.make_graph(
        [*nodes, *more_nodes, normalise], "branch", [patches], [descriptors], [*weights, *more_weights]
    )
    return _make_model(graph)


def _make_ends(trunk: nn.Sequential) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """Return what goes in, `patches`, and what comes out, `descriptors`."""
    length = int(_array(trunk[-1].bias).size)
    patches = helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["n", CHANNELS, PATCH_VOXELS, PATCH_VOXELS])
    return patches, helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["n", length])


def _make_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(model, full_check=True)
    return model


class _Samples(CalibrationDataReader):
    """Hands patches to onnxruntime's calibration in batches."""

    def __init__(self, patches: NDArray[np.float32]) -> None:
        self._batches = iter([patches[at : at + 64] for at in range(0, len(patches), 64)])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"patches": batch}


def quantise(model: onnx.ModelProto, patches: NDArray[np.float32]) -> onnx.ModelProto:
    """Bring a float32 network to 8 bits: weights for each channel, activations by their range on the patches."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantised.onnx"
        quantize_static(
            model,
            path,
            _Samples(patches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # 7-bit weights: processors without VNNI would saturate on 8
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(path)


def _make_layers(
    layers: nn.Sequential, name: str, source: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
    """Turn a chain of layers into nodes and weights, each batch norm folded into the convolution before it."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    modules = list(layers)

    def add(operator: str, tensors: dict[str, NDArray[np.float32]], **attributes: Any) -> None:
        nonlocal source
        target = f"{name}_{len(nodes)}"
        inputs = [f"{target}_{key}" for key in tensors]
        weights.extend(numpy_helper.from_array(value, key) for value, key in zip(tensors.values(), inputs, strict=True))
        nodes.append(helper.make_node(operator, [source, *inputs], [target], **attributes))
        source = target

    for layer, following in zip(modules, [*modules[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            if not isinstance(following, nn.BatchNorm2d):
                raise TypeError(f"{following} after a convolution, a batch norm needed")
            pad, stride = int(layer.padding[0]), int(layer.stride[0])
            add("Conv", _fold(layer, following), pads=[pad] * 4, strides=[stride] * 2)
        elif isinstance(layer, nn.ReLU):
            add("Relu", {})
        elif isinstance(layer, nn.MaxPool2d):
            add("MaxPool", {}, kernel_shape=[layer.kernel_size] * 2, strides=[layer.stride] * 2)
        elif isinstance(layer, nn.Flatten):
            add("Flatten", {})
        elif isinstance(layer, nn.Linear):
            add("Gemm", {"w": _array(layer.weight), "b": _array(layer.bias)}, transB=1)
    return nodes, weights, source


def _fold(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> dict[str, NDArray[np.float32]]:
    """Return the convolution's weight and bias with the batch norm's running statistics in them."""
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("a batch norm without running statistics cannot be folded")
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return {"w": _array(layer.weight * gain[:, None, None, None]), "b": _array(norm.bias - norm.running_mean * gain)}


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    """Return a tensor's values as contiguous float32."""
    return np.ascontiguousarray(tensor.detach().numpy(), dtype=np.float32)


def write_model(model: onnx.ModelProto, path: Path, facts: dict[str, object]) -> None:
    """Write the model, then its card beside it with the ending .toml."""
    content = model.SerializeToString(deterministic=True)
    digest = hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    card = tomlkit.document()
    card.add(tomlkit.comment("Written by models/train; registration/descriptors.py loads no model that differs."))
    for key, value in {"file": path.name, "sha256": digest, "bytes": len(content), **facts}.items():
        card.add(key, value)
    path.with_suffix(".toml").write_text(tomlkit.dumps(card), encoding="utf-8")
