"""zlayer-cni: containers on a WireGuard overlay, from one file."""

__version__ = "0.1.0.dev0"
