"""What a notebook needs of this package: two volumes, a network, `register`, `resample`.

Flow: a notebook > [api] > pipeline, resample
Never: code of its own. These names do not stand in `registration/__init__.py`, for two reasons: whoever needs only
`registration.volume` (reading a series) would load OpenCV and the ONNX runtime with it, and there the function
`resample` would hide the module of its name.
"""

from registration.descriptors import Network
from registration.pipeline import Registration, register
from registration.resample import resample
from registration.volume import Volume

__all__ = ["Network", "Registration", "Volume", "register", "resample"]
