"""What registration can say went wrong; `dicomnode.jobs.pipeline` translates these into the node's own tree.

    RegistrationError
    +- InvalidVolumeError         not three-dimensional, not finite, no usable affine
    |  +- EmptyVolumeError        nothing in it, or one value everywhere
    +- InvalidTransformError      not a rotation and a translation
    +- TooFewPointsError          fewer points than a transform needs
    +- NoOverlapError             the volumes share too little of the head to be compared
    +- ModelError                 the network's file is missing, changed, or not what its card says
    +- DeviceError                the device asked for cannot run the network

Flow: every module of registration > [errors]
Never: a retry; each of these fails again with the same input.
"""

from __future__ import annotations


class RegistrationError(Exception):
    """Root of what this package raises on purpose."""


class InvalidVolumeError(RegistrationError):
    """A volume's array or affine cannot be used."""


class EmptyVolumeError(InvalidVolumeError):
    """A volume holds no signal: it has one value everywhere, or no foreground."""


class InvalidTransformError(RegistrationError):
    """A matrix is not rigid: a scale, a shear or a mirror image is in it."""


class TooFewPointsError(RegistrationError):
    """Fewer points than a rigid transform needs, or all on one line."""


class NoOverlapError(RegistrationError):
    """The two volumes share too little of the head under every transform tried."""


class ModelError(RegistrationError):
    """The network's file is missing, is not the one its card describes, or has another form."""


class DeviceError(RegistrationError):
    """The device asked for is not there, or cannot run the whole network."""
