"""Every benchmark runs, in sizes that tell nothing, and writes what its page and its picture are made of; no times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.report import cells, markdown
from benchmarks.timing import Row, alternate

KEYS = {"what", "plain", "ours", "unit", "at_least", "at_most", "note", "cpu", "ratio", "met"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_runs_and_writes_its_numbers(name: str, tmp_path: Path) -> None:
    """JSON with all repeats and the machine, a table and a picture of what was compared."""
    files = [f"--{kind}={tmp_path / kind}" for kind in ("json", "markdown", "plot")]
    rows = main([name, "--tiny", *files[:2], *([f"{files[2]}.png"] if name == "feeds" else [])])[name]
    found = json.loads((tmp_path / "json").read_text())
    assert {"processor", "cores", "threads", "torch", "monai", "device"} <= set(found["machine"])
    assert found["size"] == "tiny"
    written = found["benchmarks"][name]
    assert len(written) == len(rows) > 0
    for row in written:
        assert set(row) == KEYS
        assert row["ours"] and all(value >= 0 or row["unit"] == "%" for value in row["ours"])
        assert len(row["plain"]) in (0, len(row["ours"]))
    assert (tmp_path / "markdown").read_text().count("\n") == len(rows) + 2
    assert (tmp_path / "plot.png").exists() == (name == "feeds")


def test_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """With the names that there are."""
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "there is no benchmark speed" in capsys.readouterr().err


def test_ways_are_timed_in_turn() -> None:
    """A B A B, after each has warmed up; slow ways once a turn."""
    calls: list[str] = []

    def way(name: str) -> None:
        calls.append(name)
        torch.randn(300, 300) @ torch.randn(300, 300)

    spent = alternate({"plain": lambda: way("plain"), "ours": lambda: way("ours")}, repeats=3)
    turns = [name for name, before in zip(calls, ["", *calls]) if name != before]
    assert turns == ["plain", "ours"] * 4
    assert all(len(s.wall) == len(s.cpu) == 3 and min(s.wall) > 0 for s in spent.values())


def test_ratio_is_the_median_of_neighbours() -> None:
    """And not the ratio of medians; what is asked is compared with it."""
    row = Row("feed", ours=[1.0, 2.0, 4.0], plain=[10.0, 40.0, 40.0], at_least=10)
    assert row.ratios == [10, 20, 10]
    assert row.met
    assert not Row("feed", [1.0], [9.0], at_least=10).met
    assert Row("feed", [1.0]).met is None
    assert Row("share", [4.0], unit="%", at_most=5).met
    assert not Row("memory", [120.0], [16e3], unit="MB", at_most=100).met


def test_table_says_what_was_missed() -> None:
    """In the cell of what was asked."""
    assert cells(Row("feed", [0.001], [0.009], at_least=10)) == ["feed", "9 ms", "1 ms", "9x", "at least 10x (missed)"]
    assert "| memory | 16.0 GB | 50 MB | 320x | at most 100 MB |" in markdown(
        {"losses": [Row("memory", [50.0], [16e3], unit="MB", at_most=100)]}
    )
