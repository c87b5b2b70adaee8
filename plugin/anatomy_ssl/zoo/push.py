"""Upload of a bundle to the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from monai.bundle import push_to_hf_hub

from .files import published_files
from .metadata import METADATA
from .verify import verify_bundle

__all__ = ["push_bundle"]


def push_bundle(
    bundle: str | os.PathLike[str], repo: str, token: str | None = None, private: bool = True, latest: bool = False
) -> str:
    """Verify a bundle and upload it by `monai.bundle.push_to_hf_hub`, tagged with its version.

    MONAI uploads everything in the folder, and writes the model card into it; so a copy of what `pack_bundle` publishes
    is uploaded, large files among it, and the folder stays as it is.

    Args:
        bundle: the bundle's folder.
        repo: OWNER/NAME on the hub; made where it does not exist.
        token: of the hub; None takes that of `hf auth login` or of the variable HF_TOKEN.
        private: whether a new repository is visible to its owner alone.
        latest: whether `monai.bundle.download` takes this version by default.

    Returns:
        Address of the upload.

    Raises:
        BundleError: the bundle has problems.
        ImportError: huggingface_hub is not installed.
        ValueError: `repo` is not OWNER/NAME.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise ImportError("zoo push needs huggingface_hub: pip install anatomy-ssl[hub]") from error
    if len([part for part in str(repo).split("/") if part]) != 2:
        raise ValueError(f"repo {repo!r} must be OWNER/NAME, the name of a repository on the hub")
    verify_bundle(bundle)
    folder = Path(bundle).resolve()
    version = json.loads((folder / METADATA).read_text(encoding="utf-8"))["version"]
    with tempfile.TemporaryDirectory() as staging:
        for name in published_files(folder)[0]:
            target = Path(staging) / folder.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)
        options = {"private": private, "version": version, "tag_as_latest_version": latest}
        return str(push_to_hf_hub(repo=repo, name=folder.name, bundle_dir=staging, token=token, **options))
