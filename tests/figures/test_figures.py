from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.figures.curves import training_curves
from anatomy_ssl.figures.distances import distance_difference_histogram, distance_differences
from anatomy_ssl.figures.draw import draw_figures
from anatomy_ssl.figures.probes import auc_per_fold
from anatomy_ssl.figures.projections import pca_against_axes, umap_by_axis
from anatomy_ssl.metrics.probe import probe_rows
from anatomy_ssl.metrics.tables import write_table
from tests.figures.pictures import pixels
from tests.metrics.cohort import cohort

FOLDS = {
    "isimed": [0.9, 0.85, 0.88, 0.91, 0.8],
    "simclr": [0.8, float("nan"), 0.81, 0.86, 0.79],
    "random": [0.5, 0.6, 0.55, 0.7, 0.51],
}


def test_differences_are_in_mm() -> None:
    emb = cohort()  # latent distances are physical ones in units of 100 mm
    values, unit = distance_differences(emb, reference_length=100)
    assert values.max() < 0.01
    assert len(values) == 6 * 15 * 14 / 2
    assert unit == 100
    fitted, unit = distance_differences(emb)
    assert unit == pytest.approx(100, rel=1e-4)
    assert fitted.max() < 0.1
    physical = np.linalg.norm(emb.position[0] - emb.position[1])
    halved = distance_differences(emb.select(np.array([0, 1])), reference_length=50)[0]
    assert halved == pytest.approx([physical / 2], rel=1e-4)
    with pytest.raises(ValueError, match="two crops"):
        distance_differences(emb.select(np.array([0, 15])))


def test_the_fitted_unit_is_the_best_one() -> None:
    emb = cohort(noise=0.7)
    best, unit = distance_differences(emb)
    for other in (0.95 * unit, 1.05 * unit):
        assert (distance_differences(emb, other)[0] ** 2).mean() > (best**2).mean()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_histogram_and_components(tmp_path: Path, dimensions: int) -> None:
    good, bad = cohort(dimensions=dimensions), cohort(noise=1, dimensions=dimensions)
    one = pixels(distance_difference_histogram(good, tmp_path / "one.png"))
    two = pixels(distance_difference_histogram({"isimed": good, "random": bad}, tmp_path / "two.png", 100))
    assert not np.array_equal(one, two)
    pixels(pca_against_axes(bad, tmp_path / "pca.png", "random"))


def test_components_of_few_features_or_a_collapsed_embedding(tmp_path: Path) -> None:
    emb = cohort()
    pixels(pca_against_axes(Embeddings(emb.embedding[:, :2], emb.position, emb.subject), tmp_path / "two.png"))
    collapsed = Embeddings(np.ones((90, 4)), emb.position, emb.subject)
    pixels(pca_against_axes(collapsed, tmp_path / "collapsed.png"))
    pixels(distance_difference_histogram(collapsed, tmp_path / "distances.png"))
    with pytest.raises(ValueError, match="at least 5"):
        pca_against_axes(emb.select(np.arange(4)), tmp_path / "few.png")


def test_many_crops_are_thinned(tmp_path: Path) -> None:
    emb = cohort()
    thinned = pixels(pca_against_axes(emb, tmp_path / "a.png", max_crops=20))
    assert not np.array_equal(thinned, pixels(pca_against_axes(emb, tmp_path / "b.png")))
    np.testing.assert_array_equal(thinned, pixels(pca_against_axes(emb, tmp_path / "c.png", max_crops=20)))


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
def test_umap(tmp_path: Path, dimensions: int) -> None:
    emb = cohort(4, 10, dimensions=dimensions)
    first = pixels(umap_by_axis(emb, tmp_path / "a.png", "isimed"))
    np.testing.assert_array_equal(pixels(umap_by_axis(emb, tmp_path / "b.png", "isimed")), first)
    assert not np.array_equal(pixels(umap_by_axis(emb, tmp_path / "c.png", "isimed", seed=1)), first)


def test_folds(tmp_path: Path) -> None:
    first = pixels(auc_per_fold(FOLDS, tmp_path / "auc.png"))
    assert not np.array_equal(pixels(auc_per_fold(FOLDS, tmp_path / "b.png", reference="random")), first)
    pixels(auc_per_fold({"isimed": [0.5], "same": [0.5]}, tmp_path / "one.png", metric="r2"))
    with pytest.raises(ValueError, match="no method peac"):
        auc_per_fold(FOLDS, tmp_path / "d.png", reference="peac")
    with pytest.raises(ValueError, match="none"):
        auc_per_fold({}, tmp_path / "d.png")
    with pytest.raises(ValueError, match="bad has no fold"):
        auc_per_fold({"bad": [float("nan")]}, tmp_path / "d.png")


def test_curves(tmp_path: Path) -> None:
    nan = float("nan")
    curves = {"epoch": [1, 2, 3], "loss": [3.0, 2.0, 1.5], "rho_within": [nan, 0.4, nan], "unused": [nan] * 3}
    drawn = pixels(training_curves(curves, tmp_path / "a.png"))
    table = tmp_path / "curves.csv"
    table.write_text("epoch,loss,rho_within,unused\n1,3,,\n2,2,0.4,\n3,1.5,,\n")
    np.testing.assert_array_equal(pixels(training_curves(table, tmp_path / "b.png")), drawn)
    with pytest.raises(ValueError, match="differ in length"):
        training_curves({"a": [1.0], "b": [1.0, 2.0]}, tmp_path / "c.png")
    with pytest.raises(ValueError, match="no curve"):
        training_curves({"epoch": [1.0, 2.0]}, tmp_path / "c.png")
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        training_curves(tmp_path / "none.csv", tmp_path / "c.png")
    table.write_text("epoch,phase\n1,train\n")
    with pytest.raises(ValueError, match=r"curves\.csv .*train"):
        training_curves(table, tmp_path / "c.png")


def test_command(tmp_path: Path) -> None:
    a, b = cohort().save(tmp_path / "isimed.npz"), cohort(noise=1).save(tmp_path / "simclr.npz")
    rows = [row for method, values in FOLDS.items() for row in probe_rows(method, {"auc": values})]
    probe = write_table(tmp_path / "probe.csv", rows)
    written = draw_figures(f"{a},other={b}", tmp_path / "out", "distances,pca,auc", probe)
    assert [path.name for path in written] == ["distances.png", "pca_isimed.png", "pca_other.png", "auc_per_fold.png"]
    for path in written:
        pixels(path)
    assert [path.name for path in draw_figures(output=tmp_path, probe=[probe])] == ["auc_per_fold.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "violin"}, "no figure violin"),
        ({"kind": "auc"}, "drawn from probe results"),
        ({"embeddings": ()}, "nothing to draw"),
        ({"embeddings": (), "kind": "pca"}, "drawn from embeddings"),
        ({"embeddings": "{0},{0}"}, "Two methods are called isimed"),
    ],
)
def test_command_errors(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    path = cohort(1).save(tmp_path / "isimed.npz")
    filled = {k: v.format(path) if isinstance(v, str) else v for k, v in {"embeddings": "{0}", **arguments}.items()}
    with pytest.raises(ValueError, match=message):
        draw_figures(output=tmp_path / "out", **filled)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("module", "draw"),
    [
        ("matplotlib", lambda emb, path: pca_against_axes(emb, path)),
        ("umap", lambda emb, path: umap_by_axis(emb, path)),
    ],
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, draw: Callable[[Embeddings, Path], Path]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"anatomy-ssl\[figures\]"):
        draw(cohort(), tmp_path / "figure.png")
