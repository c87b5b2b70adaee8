from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from anatomy_ssl.metrics.statistics import comparison_table, mean_sd, paired_t_test, random_rows
from anatomy_ssl.metrics.tables import markdown_table, write_table

A = [0.81, 0.83, 0.79, 0.90, 0.86]
B = [0.80, 0.78, 0.80, 0.85, 0.81]


def test_paired_t_test_by_its_formula() -> None:
    differences = [a - b for a, b in zip(A, B)]
    mean = sum(differences) / 5
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / 4) / math.sqrt(5)
    result = paired_t_test(A, B)
    assert result["difference"] == pytest.approx(mean)
    assert result["t"] == pytest.approx(mean / error)
    assert result["p"] == pytest.approx(2 * student.sf(mean / error, 4))
    assert result["ci_low"] == pytest.approx(mean - student.ppf(0.975, 4) * error)
    assert result["ci_high"] == pytest.approx(mean + student.ppf(0.975, 4) * error)
    assert (result["n"], result["dropped"]) == (5, 0)


def test_order_of_methods_and_folds() -> None:
    forward, back = paired_t_test(A, B), paired_t_test(B, A)
    assert back["difference"] == pytest.approx(-forward["difference"])
    assert back["p"] == pytest.approx(forward["p"])
    assert paired_t_test(A[::-1], B[::-1])["p"] == pytest.approx(forward["p"])
    assert paired_t_test(A, B[::-1])["p"] != pytest.approx(forward["p"])


def test_folds_without_a_value_are_dropped_in_pairs() -> None:
    nan = math.nan
    result = paired_t_test([*A, nan, 0.1, nan], [*B, 0.2, nan, nan])
    assert (result["n"], result["dropped"]) == (5, 3)
    assert result["p"] == paired_t_test(A, B)["p"]
    with pytest.raises(ValueError, match="at least 2 folds"):
        paired_t_test([0.1, nan], [0.2, 0.3])
    with pytest.raises(ValueError, match="same folds"):
        paired_t_test(A, B[1:])


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_methods_that_never_differ() -> None:
    result = paired_t_test(A, A)
    assert result["difference"] == 0
    assert math.isnan(result["p"])


def test_mean_sd() -> None:
    assert mean_sd([1.0, 2.0, math.nan, 4.5]) == pytest.approx((2.5, np.std([1, 2, 4.5], ddof=1)))
    assert mean_sd([3.0])[0] == 3
    assert math.isnan(mean_sd([3.0])[1])
    assert math.isnan(mean_sd([math.nan])[0])


def test_comparison_table() -> None:
    rows = comparison_table({"isimed": A, "random": B})
    assert [row["method"] for row in rows] == ["isimed", "random"]
    assert "p" not in rows[0]
    assert rows[1]["against"] == "isimed"
    assert rows[1]["difference"] == pytest.approx(np.mean(B) - np.mean(A))
    other = comparison_table({"isimed": A, "random": B}, reference="random")
    assert other[0]["difference"] == pytest.approx(-rows[1]["difference"])
    with pytest.raises(ValueError, match="simclr"):
        comparison_table({"isimed": A}, reference="simclr")


def test_written_table(tmp_path: Path) -> None:
    rows = [{"method": "a", "value": 1 / 3, "n": 5}, {"method": "long name", "value": 2e-7, "p": math.nan}]
    path = write_table(tmp_path / "new" / "table.csv", rows)
    with open(path, newline="") as file:
        read = list(csv.DictReader(file))
    assert float(read[0]["value"]) == 1 / 3
    assert read[1]["n"] == ""
    lines = (tmp_path / "new" / "table.md").read_text().splitlines()
    assert "".join(f"{line}\n" for line in lines) == markdown_table(rows)
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["method", "value", "n", "p"]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["a", "0.333", "5", ""]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["long name", "2.0e-07", "", "nan"]


def test_random_rows_are_mean_and_sd() -> None:
    rows = random_rows("method", [{"auc": 0.4, "r2": 1.0}, {"auc": 0.6, "r2": 1.0}])
    assert [row["method"] for row in rows] == ["random, mean of 2", "random, sd of 2"]
    assert rows[0]["auc"] == pytest.approx(0.5)
    assert rows[1] == {"method": "random, sd of 2", "auc": pytest.approx(0.2 / math.sqrt(2)), "r2": 0.0}
