"""Anatomy-aware self-supervised learning for medical images, as parts for MONAI bundles."""

from anatomy_ssl import data, engines, handlers, losses, metrics, networks, transforms

__version__ = "0.1.0"

__all__ = ["data", "engines", "handlers", "losses", "metrics", "networks", "transforms"]
