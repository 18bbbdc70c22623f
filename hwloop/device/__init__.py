"""What runs on the device: the standard library, numpy and the runtime; Python 3.10 or newer.

The host sends these files over the connection and starts :func:`hwloop.device.serve.serve`. They
import nothing else of hwloop, so a board needs no installation. Devices return samples, never
decisions.
"""


class SettingsRefused(ValueError):
    """What the profile asks for cannot be had on this machine."""
