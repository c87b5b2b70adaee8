"""The quick search gives what looking at everything gives, and that is the best place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anatomy_ssl.data.stored_embedding import SMALLEST_NORM, StoredEmbedding, interpolate_rows
from anatomy_ssl.matching import DenseEmbedding, search
from anatomy_ssl.matching.search import best_match, exhaustive_match, refine_peak, scores_at, similarity_map
from tests.matching.fields import dense_embedding


def plain_map(dense: DenseEmbedding, fine: torch.Tensor, coarse: torch.Tensor) -> np.ndarray:
    """Scores of queries `(Q, F)` everywhere, in double precision, by upsampling the whole coarse map."""
    grid = dense.fine.shape[:-1]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid], indexing="ij"), -1).reshape(-1, len(grid))
    whole = interpolate_rows(dense.coarse, index * dense.fine_stride / dense.coarse_stride).astype(np.float64)
    whole /= np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), SMALLEST_NORM)
    rows = dense.fine.reshape(len(index), -1).astype(np.float64)
    return (fine.double().numpy() @ rows.T + coarse.double().numpy() @ whole.T) / 2


def queries(stored: StoredEmbedding, count: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of random places of a volume, changed by noise: 0 keeps them, large values make them unrelated."""
    random = torch.Generator().manual_seed(seed)
    reach = torch.tensor(stored.shape) - 1.0
    points = stored.to_world((torch.rand(count, len(reach), generator=random) * reach / stored.fine_stride).numpy())
    vectors = (torch.from_numpy(v) for v in stored.vectors_at(points))
    fine, coarse = (
        F.normalize(v + noise * F.normalize(torch.randn(v.shape, generator=random), dim=1), dim=1) for v in vectors
    )
    return fine, coarse


@pytest.mark.parametrize("smoothness", [0.0, 1.5])
@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0, 50.0])
@pytest.mark.parametrize(("shape", "ratio"), [((19, 13, 22), 4), ((17, 30, 9), 8), ((40, 33), 4), ((5, 1, 6), 2)])
def test_quick_is_exhaustive_is_plain(shape: tuple[int, ...], ratio: int, noise: float, smoothness: float) -> None:
    """Same places and bit-equal scores, from perfect matches to none."""
    for seed in range(3):
        dense = dense_embedding(shape, 16, ratio, smoothness, seed)
        stored = StoredEmbedding.from_dense(dense)
        fine, coarse = queries(stored, 40, noise, seed)
        index, score = best_match(fine, coarse, stored)
        expected, expected_score = exhaustive_match(fine, coarse, stored)
        assert torch.equal(index, expected) and torch.equal(score, expected_score)
        plain = plain_map(dense, fine, coarse)
        at = plain[np.arange(len(plain)), np.ravel_multi_index(tuple(index.numpy().T), shape)]
        assert np.allclose(score, plain.max(axis=1), atol=1e-6) and np.allclose(at, plain.max(axis=1), atol=1e-6)
        assert np.allclose(similarity_map(fine, coarse, stored).flatten(1), plain, atol=1e-5)


def test_few_features_and_vectors_that_cancel_out() -> None:
    """Opposite neighbours leave no direction between them: cosines stay in bounds, and the answer the same."""
    for seed in range(10):
        stored = StoredEmbedding.from_dense(dense_embedding((11, 12, 9), 2, 4, 0.0, seed))
        fine, coarse = queries(stored, 20, 0.3, seed)
        index, score = best_match(fine, coarse, stored)
        expected, expected_score = exhaustive_match(fine, coarse, stored)
        assert torch.equal(index, expected) and torch.equal(score, expected_score)
        assert float(similarity_map(fine, coarse, stored).abs().max()) < 1.002


def test_of_equal_places_the_first_wins() -> None:
    """Two halves of the volume are alike; and one that is the same all over, as air is."""
    dense = dense_embedding((16, 8, 8), 16, 4)
    dense.fine[8:], dense.coarse[2:] = dense.fine[:8], dense.coarse[:2]
    stored = StoredEmbedding.from_dense(dense)
    index = torch.tensor([[1, 2, 3], [3, 3, 7], [2, 0, 0], [0, 7, 7]])
    fine, coarse = (torch.from_numpy(v) for v in stored.vectors_at(stored.to_world(index.numpy())))
    for match in (best_match, exhaustive_match):
        assert torch.equal(match(fine, coarse, stored)[0], index)
    dense.fine[:], dense.coarse[:] = dense.fine[0, 0, 0], dense.coarse[0, 0, 0]
    same = StoredEmbedding.from_dense(dense)
    for match in (best_match, exhaustive_match):
        assert match(fine, coarse, same)[0].count_nonzero() == 0


def test_a_query_alone_is_a_query_among_many() -> None:
    stored = StoredEmbedding.from_dense(dense_embedding())
    fine, coarse = queries(stored, 70, 0.5)
    index, score = best_match(fine, coarse, stored)
    for q in range(0, 70, 7):
        alone = best_match(fine[q : q + 1], coarse[q : q + 1], stored)
        assert torch.equal(alone[0][0], index[q]) and torch.equal(alone[1][0], score[q])


def test_a_minimum_leaves_good_matches_alone_and_saves_work_on_bad_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = StoredEmbedding.from_dense(dense_embedding((32, 32, 32)))
    fine, coarse = (torch.cat(parts) for parts in zip(queries(stored, 20, 0.3), queries(stored, 20, 50.0)))
    index, score = best_match(fine, coarse, stored)
    useful = score >= 0.75
    assert 10 <= int(useful.sum()) <= 30

    def refuse(*args: object) -> None:
        raise AssertionError("a scan")

    monkeypatch.setattr("anatomy_ssl.matching.search._Search.scan", refuse)
    found, found_score = best_match(fine, coarse, stored, min_score=0.75)
    assert torch.equal(found[useful], index[useful]) and torch.equal(found_score[useful], score[useful])
    assert (found_score[~useful] < 0.75).all() and (found_score[~useful] > -1).all()


def test_a_good_match_reads_little() -> None:
    """Of 32,768 vectors, some hundreds a query."""
    stored = StoredEmbedding.from_dense(dense_embedding((32, 32, 32), 32, 4, 2.0))
    fine, coarse = queries(stored, 20, 0.1)
    read = 0

    class Counted(torch.Tensor):
        def index_select(self, dim: int, index: torch.Tensor) -> torch.Tensor:
            nonlocal read
            read += len(index)
            return super().index_select(dim, index)

    run = search._Search(fine, coarse, stored)
    run.rows = run.rows.as_subclass(Counted)
    run.run()
    assert 20 * search.SEEDS <= read < 20 * 1500


def test_score_of_the_place_itself_is_one() -> None:
    stored = StoredEmbedding.from_dense(dense_embedding(smoothness=1.5))
    index = torch.tensor([[3, 5, 7], [18, 12, 21], [0, 0, 0]])
    fine, coarse = (torch.from_numpy(v) for v in stored.vectors_at(stored.to_world(index.numpy())))
    found, score = best_match(fine, coarse, stored)
    assert torch.equal(found, index) and torch.allclose(score, torch.ones(3), atol=1e-3)
    assert torch.allclose(scores_at(fine, coarse, stored, index).float(), score)


def test_refined_places_are_nearer() -> None:
    """To places between the entries of a smooth map, whose own entry is up to half a step away."""
    stored = StoredEmbedding.from_dense(dense_embedding((24, 24, 24), 32, 4, 2.0))
    random = torch.Generator().manual_seed(0)
    truth = 3 + torch.rand(100, 3, generator=random, dtype=torch.float64) * 17
    fine, coarse = (torch.from_numpy(v) for v in stored.vectors_at(stored.to_world(truth.numpy())))
    index, _ = best_match(fine, coarse, stored)
    refined = refine_peak(fine, coarse, stored, index)
    before, after = ((place - truth).norm(dim=1).median() for place in (index, refined))
    assert after < 0.7 * before


def test_the_centroid_is_that_of_the_map() -> None:
    """Of the 5^3 entries around the best, on the border of those that there are."""
    stored = StoredEmbedding.from_dense(dense_embedding((9, 8, 7)))
    index = torch.tensor([[0, 0, 6], [4, 4, 4], [8, 7, 0]])
    fine, coarse = (torch.from_numpy(v) for v in stored.vectors_at(stored.to_world(index.numpy())))
    refined = refine_peak(fine, coarse, stored, index)
    maps = similarity_map(fine, coarse, stored).double()
    for q, centre in enumerate(index.tolist()):
        box = [slice(max(0, c - 2), c + 3) for c in centre]
        places = torch.cartesian_prod(*[torch.arange(n)[b] for n, b in zip((9, 8, 7), box)])
        scores = maps[q][tuple(box)].flatten()
        weights = (40 * (scores - scores.max())).exp()
        expected = (places * weights[:, None]).sum(0) / weights.sum()
        assert torch.allclose(refined[q], expected, atol=1e-3)
    assert ((refined >= 0) & (refined <= torch.tensor([8, 7, 6]))).all()


def test_no_queries_no_matches() -> None:
    stored = StoredEmbedding.from_dense(dense_embedding())
    index, score = best_match(torch.zeros(0, 16), torch.zeros(0, 16), stored)
    assert index.shape == (0, 3) and score.shape == (0,)


def test_queries_that_do_not_fit_are_refused() -> None:
    stored = StoredEmbedding.from_dense(dense_embedding())
    with pytest.raises(ValueError, match=r"\(Q, 16\) vectors as in scan.nii.gz"):
        best_match(torch.zeros(3, 8), torch.zeros(3, 8), stored)
    with pytest.raises(ValueError, match="not finite"):
        best_match(torch.full((1, 16), torch.nan), torch.zeros(1, 16), stored)


def test_norms_are_those_of_the_interpolated_map() -> None:
    dense = dense_embedding((10, 7, 9), ratio=4)
    stored = StoredEmbedding.from_dense(dense)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (10, 7, 9)], indexing="ij"), -1).reshape(-1, 3)
    expected = np.linalg.norm(interpolate_rows(dense.coarse, index / 4), axis=1)
    cell, place = stored.cells.locate(np.arange(len(index)))
    assert np.allclose(stored.norms[cell, place], expected, atol=1e-5)
    assert np.isfinite(stored.norms).sum() == len(index)


@pytest.mark.parametrize("shape", [(9, 8, 7), (12, 11)])
def test_vectors_at_entries_and_between(shape: tuple[int, ...]) -> None:
    """At an entry its own, between two their normalised mean, and beyond the last the last one."""
    dense = dense_embedding(shape, smoothness=1.0)
    stored = StoredEmbedding.from_dense(dense)
    base = np.full((1, len(shape)), 3.0)
    step = np.eye(len(shape))[:1]
    here, there, between = (stored.vectors_at(stored.to_world(i))[0][0] for i in (base, base + step, base + step / 2))
    assert np.allclose(here, dense.fine[tuple(base[0].astype(int))], atol=1e-3)
    mean = here + there
    assert np.allclose(between, mean / np.linalg.norm(mean), atol=1e-3)
    last = np.array([shape]) - 1.0
    ends = [stored.vectors_at(stored.to_world(i))[k][0] for i in (last, last + 0.4) for k in (0, 1)]
    assert np.allclose(ends[0], ends[2]) and np.allclose(ends[1], ends[3])


def test_maps_that_do_not_belong_together_are_refused() -> None:
    dense = dense_embedding((16, 16, 16), ratio=4)
    wrong = DenseEmbedding(**{**dense.__dict__, "coarse": dense.coarse[:3]})
    with pytest.raises(ValueError, match="do not belong together"):
        StoredEmbedding.from_dense(wrong)
    broken = DenseEmbedding(**{**dense.__dict__, "fine": np.full_like(dense.fine, np.nan)})
    with pytest.raises(ValueError, match="not finite"):
        StoredEmbedding.from_dense(broken)
