"""What a notebook imports, and what nobody pays who imports less."""

from __future__ import annotations

import subprocess
import sys

import pytest

from registration import api
from registration.pipeline import register
from registration.resample import resample
from registration.volume import Volume


def test_a_notebook_gets_the_real_things_from_one_place() -> None:
    assert {"Network", "Volume", "register", "resample"} <= set(api.__all__)
    assert (api.Volume, api.register, api.resample) == (Volume, register, resample)


@pytest.mark.parametrize("module", ["registration.volume", "dicomnode.volumes.series", "dicomnode.receive.scp"])
def test_reading_and_receiving_load_neither_opencv_nor_the_onnx_runtime(module: str) -> None:
    program = f"import sys, {module}; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert f"'{module}'" in done.stdout
    for heavy in ("cv2", "onnxruntime"):
        assert f"'{heavy}'" not in done.stdout
