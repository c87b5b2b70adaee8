"""From a collated batch to plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor, list_data_collate

from anatomy_ssl.data.dataset import subject_ids
from anatomy_ssl.engines.prepare_batch import PrepareViews


def batch(**extra: Any) -> dict[str, Any]:
    """Two crops of two patients, collated as by a data loader."""
    items = [
        {
            "image": MetaTensor(torch.full((1, 2, 2, 2), float(i)), affine=torch.eye(4)),
            "position": torch.tensor([10.0 * i, 1.0, 2.0], dtype=torch.float64),
            "subject": name,
            **{key: values[i] for key, values in extra.items()},
        }
        for i, name in enumerate("ab")
    ]
    return list_data_collate(items)


def test_positions_are_relative_to_each_patients_origin() -> None:
    """Across patients they can be compared; without origins they stay in the scanner's frame."""
    origins = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-4.0, 0.0, 0.5])]
    images, targets = PrepareViews()(batch(origin=origins), "cpu")
    assert targets["position"].tolist() == [[-1, -1, -1], [14, 1, 1.5]]
    assert targets["position"].dtype == torch.float32
    assert PrepareViews()(batch(), "cpu")[1]["position"].tolist() == [[0, 1, 2], [10, 1, 2]]
    assert images.shape == (2, 1, 2, 2, 2)


def test_distances_within_a_patient_do_not_depend_on_the_origin() -> None:
    """One origin for all of a patient's crops moves all of them alike."""
    origin = torch.tensor([50.0, -20.0, 7.0])
    free, bound = (PrepareViews()(b, "cpu")[1]["position"] for b in (batch(), batch(origin=[origin, origin])))
    assert torch.allclose(torch.pdist(free), torch.pdist(bound))


def test_everything_is_a_plain_tensor() -> None:
    """Metadata has no place in a network or a loss."""
    seen: list[torch.Tensor] = []

    def views(images: torch.Tensor) -> list[torch.Tensor]:
        seen.append(images)
        return [images, images + 1]

    images, targets = PrepareViews(views=views, target_keys=["volume"])(batch(volume=[1.0, 2.0]), "cpu")
    assert {type(x) for x in (*seen, *images, *targets.values())} == {torch.Tensor}
    assert torch.equal(images[1], images[0] + 1)
    assert targets["volume"].tolist() == [1, 2]
    assert set(targets) == {"position", "subject", "scan", "volume"}


def test_two_scans_of_a_patient_are_two_frames() -> None:
    """Their positions cannot be compared, so no distance is learned between them."""
    _, targets = PrepareViews()(batch(subject=["p", "p"], source=["chest.nii", "abdomen.nii"]), "cpu")
    assert targets["subject"].unique().numel() == 1
    assert targets["scan"].unique().numel() == 2
    _, targets = PrepareViews()(batch(subject=["p", "q"]), "cpu")
    assert torch.equal(targets["scan"], targets["subject"])


def test_views_are_made_on_the_device() -> None:
    """Distortions run where the network runs."""
    devices = []
    images, targets = PrepareViews(views=lambda x: [devices.append(x.device.type), x])(batch(), torch.device("meta"))
    assert devices == ["meta"]
    assert {x.device.type for x in (images[1], *targets.values())} == {"meta"}


def test_patients_have_the_same_number_in_every_process_and_run() -> None:
    """The numbers of Python's `hash` would change from process to process; these are fixed for good."""
    assert subject_ids(["p1", "p2", "p1"]).tolist() == [
        -1723077891436786031,
        5531477141196234052,
        -1723077891436786031,
    ]
    assert len(set(subject_ids([f"p{i}" for i in range(5000)]).tolist())) == 5000
    assert PrepareViews()(batch(), "cpu")[1]["subject"].dtype == torch.int64
