"""Who sees which item when."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from torch.utils.data import Dataset

from anatomy_ssl.data.sampler import EpochSampler


class Keys(Dataset):
    """Remembers the keys that it was asked for."""

    def __init__(self, length: int) -> None:
        self.length, self.seen = length, []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Any) -> dict[str, torch.Tensor]:
        self.seen.append(key)
        return {"image": torch.zeros(1), "label": torch.zeros(1)}


def samplers(monkeypatch: pytest.MonkeyPatch, replicas: int, length: int, **options: Any) -> list[EpochSampler]:
    """The sampler of every process of a group."""
    made = []
    for rank in range(replicas):
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: replicas)
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        made.append(EpochSampler(Keys(length), **options))
    return made


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("length", [3, 5, 6, 7])
def test_uneven_shares_hold_every_item_once(replicas: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For evaluation: nothing is counted twice, nothing left out, and lengths are true."""
    group = samplers(monkeypatch, replicas, length, shuffle=False, even=False)
    shares = [list(sampler) for sampler in group]
    assert sorted(index for share in shares for _, index in share) == list(range(length))
    assert [len(share) for share in shares] == [len(sampler) for sampler in group]


def test_fewer_items_than_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without an item would keep the others waiting; in training it repeats one."""
    with pytest.raises(ValueError, match="2 validation images are too few for 3 processes"):
        samplers(monkeypatch, 3, 2, even=False)
    assert [len(list(sampler)) for sampler in samplers(monkeypatch, 3, 2)] == [1, 1, 1]


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("repeats", [1, 3])
def test_even_shares_are_of_one_length(replicas: int, repeats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For training: every process has as many steps, every item comes, at most a few come once more."""
    group = samplers(monkeypatch, replicas, 7, repeats=repeats)
    for sampler in group:
        sampler.set_epoch(2)
    shares = [list(sampler) for sampler in group]
    assert {len(share) for share in shares} == {len(group[0])} == {-(-7 * repeats // replicas)}
    counts = Counter(index for share in shares for _, index in share)
    assert set(counts) == set(range(7))
    assert min(counts.values()) >= repeats
    assert sum(counts.values()) - 7 * repeats < replicas


def test_repeats_have_keys_of_their_own() -> None:
    """Each item comes `repeats` times in an epoch, each time with another key, and none returns in a later epoch."""
    sampler = EpochSampler(Keys(5), repeats=4)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert all(Counter(index for _, index in keys) == dict.fromkeys(range(5), 4) for keys in epochs)
    assert len({key for keys in epochs for key in keys}) == 3 * 20


def test_order_is_a_function_of_seed_and_epoch() -> None:
    """Another epoch or seed, another order; the same, the same."""

    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(Keys(20), seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    orders = [[index for _, index in order(*key)] for key in ((0, 1), (0, 2), (9, 1))]
    assert all(sorted(indices) == list(range(20)) for indices in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [index for _, index in EpochSampler(Keys(4), shuffle=False)] == [0, 1, 2, 3]


@pytest.mark.parametrize("seen", [0, 1, 4, 6])
def test_skip_leaves_out_what_was_seen_and_no_more(seen: int) -> None:
    """The rest of the stopped epoch, then whole epochs again; the length stays that of a whole epoch."""
    whole, resumed = EpochSampler(Keys(3), repeats=2), EpochSampler(Keys(3), repeats=2)
    resumed.skip = seen
    for sampler in (whole, resumed):
        sampler.set_epoch(3)
    assert len(resumed) == 6
    assert list(resumed) == list(whole)[seen:]
    assert list(resumed) == list(whole)


def test_monai_trainers_set_the_epoch() -> None:
    """No handler is needed for it."""
    data, network = Keys(4), torch.nn.Linear(1, 1)
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=DataLoader(data, sampler=EpochSampler(data), batch_size=2),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=torch.nn.MSELoss(),
        decollate=False,
    ).run()
    assert [epoch for epoch, _ in data.seen] == [1] * 4 + [2] * 4 + [3] * 4


def test_an_empty_data_set_is_refused() -> None:
    """With the likely reasons."""
    with pytest.raises(ValueError, match="no image was found"):
        EpochSampler(Keys(0))


def test_evaluation_sees_the_same_crops_in_every_epoch() -> None:
    """Curves over epochs are of one sample of crops."""
    sampler = EpochSampler(range(5), shuffle=False, even=False)
    first = list(sampler)
    sampler.set_epoch(7)
    assert list(sampler) == first == [(0, i) for i in range(5)]
