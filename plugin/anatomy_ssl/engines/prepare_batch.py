"""From a collated batch to plain tensors on the device: views for the network, positions and patients for the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from anatomy_ssl.data.dataset import subject_ids


class PrepareViews:
    """`prepare_batch` for MONAI's engines: crops to views, positions to the patient's own frame.

    Args:
        image_key: crops `(N, C, *roi_size)`.
        views: turns a batch of crops, on the device, into a list of differently distorted views; None leaves one view.
        target_keys: further entries `(N, ...)` that go to the targets as they are.

    A call returns the views `(N, C, *roi_size)`, one tensor or a list, and the targets: `position` `(N, D)` float32 mm,
    relative to the patient's `origin` where the batch has one (positions can then be compared across patients;
    distances within a scan do not change), `subject` and `scan` `(N,)` int64, and `target_keys`. Two scans of a patient
    have frames of their own, so distances are learned within scans; `scan` is the batch's `source`, or the subject.
    """

    def __init__(
        self,
        image_key: str = "image",
        views: Callable[[torch.Tensor], Sequence[torch.Tensor]] | None = None,
        target_keys: Sequence[str] = (),
    ) -> None:
        self.image_key, self.views, self.target_keys = image_key, views, tuple(target_keys)

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor | Sequence[torch.Tensor], dict[str, torch.Tensor]]:
        """Move a batch to the device and make its views."""

        def to_device(value: Any) -> torch.Tensor:
            tensor = torch.as_tensor(value)
            tensor = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
            return tensor.to(device=device, non_blocking=non_blocking, **kwargs)

        images = to_device(batch[self.image_key])
        position = torch.as_tensor(batch["position"])
        if "origin" in batch:
            position = position - torch.as_tensor(batch["origin"])
        targets = {
            "position": to_device(position.float()),
            "subject": to_device(subject_ids(batch["subject"])),
            "scan": to_device(subject_ids(batch.get("source", batch["subject"]))),
        }
        targets.update({key: to_device(batch[key]) for key in self.target_keys})
        return (images if self.views is None else self.views(images)), targets
