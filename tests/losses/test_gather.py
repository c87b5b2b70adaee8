"""Two gloo processes give the loss and the gradients of one process with the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anatomy_ssl.losses.gather import all_gather_rows, row_counts, sum_over_processes
from tests.losses import two_processes


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process saved; one start of the processes serves every test."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(two_processes.work, args=(str(folder),), nprocs=len(two_processes.SHARES))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(two_processes.SHARES))]


def test_one_process_is_left_alone() -> None:
    x = torch.ones(3, 2)
    assert all_gather_rows(x) is x
    assert sum_over_processes(x) is x
    assert row_counts(3, "cpu") == [3]


@pytest.mark.parametrize("name", [name for name in two_processes.CASES if name != "gathered rows"])
def test_two_processes_equal_one(results: list[dict[str, Any]], name: str) -> None:
    expected = two_processes.gradients(two_processes.network(), two_processes.CASES[name], two_processes.EVERYTHING)
    assert max(gradient.abs().max() for gradient in expected[1]) > 1e-3
    for result in results:
        torch.testing.assert_close(result[name], expected, rtol=1e-10, atol=1e-12)


def test_gathered_rows_sum_the_gradients_of_different_losses(results: list[dict[str, Any]]) -> None:
    _, expected = two_processes.gradients(
        two_processes.network(), two_processes.CASES["gathered rows"], two_processes.EVERYTHING
    )
    for result in results:
        torch.testing.assert_close(result["gathered rows"][1], expected, rtol=1e-10, atol=1e-12)


def test_collectives_take_unequal_and_empty_shares_of_any_dtype(results: list[dict[str, Any]]) -> None:
    for result in results:
        got = result["collectives"]
        assert got["counts"] == [3, 0]
        assert torch.equal(got["integers"], torch.arange(3))
        assert got["volumes"].dtype == torch.bfloat16
        assert got["volumes"].flatten(1).tolist() == [[0.0] * 4, [0.0] * 4, [1.0] * 4]
        assert torch.equal(got["sum"], torch.full((2,), 3.0))
        assert torch.equal(got["gradient of sum"], torch.full((2,), 3.0))


def test_a_batch_without_pairs_is_an_error_in_every_process(results: list[dict[str, Any]]) -> None:
    assert all("several crops per volume" in result["no pairs"] for result in results)
