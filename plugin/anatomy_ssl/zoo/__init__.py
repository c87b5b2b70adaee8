"""Publishing a bundle: verification, the versioned zip with its index, and the Hugging Face Hub."""

from .pack import Packed, pack_bundle
from .push import push_bundle
from .verify import BundleError, find_problems, verify_bundle

__all__ = ["BundleError", "Packed", "find_problems", "pack_bundle", "push_bundle", "verify_bundle"]
