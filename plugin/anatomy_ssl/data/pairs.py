"""Pairs of views of two patients that show the same anatomy: mined while training, by any matcher of points."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ensure_tuple_rep
from torch.utils.data import Dataset

from anatomy_ssl.data.dataset import ScanDataset
from anatomy_ssl.data.reading import first_path
from anatomy_ssl.transforms.padded_crops import inside_volume, padded_crops_at

__all__ = ["PairDataset", "partner_order"]

logger = logging.getLogger(__name__)

PARTNERS = ("previous", "random", "nearest")
FALLBACKS = ("best", "same_volume", "raise")


class Found(NamedTuple):
    """A point `(D,)` in a scan, its match `(D,)` in `partner` (which scan of the partners), world mm, and the score."""

    query: torch.Tensor
    match: torch.Tensor
    score: float
    partner: int


class PairDataset(Dataset):
    """A view of each scan and a view of another patient's around the matching point (Jiang et al. 2023, section 3.1).

    For each scan some body points are drawn and matched all at once in a partner, another patient. The first of them,
    in the random order in which they were drawn, whose score is above `min_score` is taken, and views are cut around it
    and its match; they are padded where they leave their volume, never moved, so that both show the same place. Pairs
    are a function of seed, epoch and index (keys `(epoch, index)` from `EpochSampler`; a plain index stands for epoch
    0): the same with any number of workers and processes, and after a resume. Every scan is in the first view of one
    pair of an epoch, and a partner once.

    An item holds `view_1` and `view_2`, plain tensors `(C, *roi_size)`; `position_1` and `position_2`, their centres in
    world mm (RAS+), `(D,)` float32; `score`; `subject_1` and `subject_2`; and `fell_back`, whether the pair came about
    by the fall-back.

    Args:
        scans: prepared scans, without random transforms; each with points of the body under `foreground`.
        matcher: points of one scan to points of another with scores, a `matching.Matcher`; it gets two datalist items.
        roi_size: voxels of a view, or samples where `spacing` is given.
        spacing: mm between a view's samples, along the world's axes; None takes each volume's own voxels.
        partner: "previous" (in the epoch's random order of scans), "random", or "nearest": of `partners` random ones,
            the one whose matches have the highest mean score.
        partners: how many patients are asked, one after the other, until one has a match above `min_score`; the first
            is chosen by `partner`, further ones at random.
        candidates: points that are drawn in a scan and matched in each partner.
        min_score: which a match's score has to exceed.
        fallback: when no partner has such a match: "best" takes the best-scored match of all, and the same volume where
            no match scores above 0 (nothing in common); "same_volume" takes the same place of the same scan for both
            views; "raise" is an error. The cause is logged, once for each kind.
        jitter: points are moved by up to that many mm along each axis, off the grid on which body points lie.
        partner_scans: where partners come from, by default `scans`; for a single held-out scan, those of training.
        pairs_per_scan: pairs of each scan in an epoch, of several partners; for the few scans of a validation.
        seed: of everything random.

    Raises:
        ValueError: unknown names, bad numbers; no other patient to pair with, unless the fall-back is "same_volume".
    """

    def __init__(
        self,
        scans: ScanDataset,
        matcher: Any,
        roi_size: Sequence[int],
        spacing: Sequence[float] | float | None = None,
        partner: str = "previous",
        partners: int = 3,
        candidates: int = 32,
        min_score: float = 0.7,
        fallback: str = "best",
        jitter: float = 4.0,
        partner_scans: ScanDataset | None = None,
        pairs_per_scan: int = 1,
        seed: int = 0,
    ) -> None:
        for name, value, known in (("partner", partner, PARTNERS), ("fallback", fallback, FALLBACKS)):
            if value not in known:
                raise ValueError(f"{name} has to be one of {', '.join(known)}, not {value!r}.")
        if min(candidates, partners, pairs_per_scan, *roi_size) < 1 or not min_score >= 0:
            raise ValueError(
                f"candidates {candidates}, partners {partners}, pairs_per_scan {pairs_per_scan} and roi_size "
                f"{tuple(roi_size)} have to be positive, and min_score {min_score} not negative."
            )
        self.scans, self.matcher, self.seed = scans, matcher, seed
        self.roi_size = tuple(int(n) for n in roi_size)
        self.pairs_per_scan = pairs_per_scan
        self.spacing = None if spacing is None else ensure_tuple_rep(spacing, len(self.roi_size))
        self.partner, self.partners, self.candidates = partner, partners, candidates
        self.min_score, self.fallback, self.jitter = min_score, fallback, jitter
        self.partner_scans = scans if partner_scans is None else partner_scans
        self._subjects, self._partner_subjects = (
            np.array([_subject(item) for item in pool.data]) for pool in (scans, self.partner_scans)
        )
        self._order: tuple[int, list[int]] = (-1, [])
        self._logged: set[str] = set()
        self._check_patients()

    def _check_patients(self) -> None:
        """Every scan needs another patient's."""
        available = set(self._partner_subjects)
        lonely = [i for i, subject in enumerate(self._subjects) if not available - {subject}][:1]
        if lonely and self.fallback != "same_volume":
            message = (
                f"There is no other patient to pair {first_path(self.scans.data[lonely[0]]['image'])} (patient "
                f"{self._subjects[lonely[0]]}) with: give scans of two patients at least, or set fallback to "
                "same_volume, which masks one view twice."
            )
            logger.error("%s", message)  # MONAI's bundle wraps what happens at construction in messages of its own
            raise ValueError(message)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.scans) * self.pairs_per_scan

    def __getitem__(self, key: Any) -> dict[str, Any]:
        """The pair `index` of `epoch`, for the key `(epoch, index)`."""
        epoch, number = key if isinstance(key, tuple) else (0, key)
        lap, index = divmod(number, len(self.scans))
        epoch += lap << 32  # as `EpochSampler` counts its own repeats
        random = np.random.default_rng([self.seed, epoch & 0xFFFFFFFF, epoch >> 32, index])
        scan = self.scans.prepared(index)
        points = self._draw_points(scan, random)
        found, fell_back = self._find(index, points, self._partners(epoch, index, random))
        if found is None:
            other, item = scan, self.scans.data[index]
            found = Found(points[0], points[0], 1.0, index)
        else:
            other, item = self.partner_scans.prepared(found.partner), self.partner_scans.data[found.partner]
        view_1, position_1 = self._cut(scan["image"], found.query)
        view_2, position_2 = self._cut(other["image"], found.match)
        return {
            "view_1": view_1,
            "view_2": view_2,
            "position_1": position_1,
            "position_2": position_2,
            "score": torch.tensor(found.score, dtype=torch.float32),
            "subject_1": _subject(self.scans.data[index]),
            "subject_2": _subject(item),
            "fell_back": fell_back,
        }

    def _draw_points(self, scan: Mapping[str, Any], random: np.random.Generator) -> torch.Tensor:
        """Body points `(candidates, D)` in world mm, in random order."""
        body = torch.as_tensor(scan["foreground"])
        points = body[torch.from_numpy(random.integers(len(body), size=self.candidates))]
        moved = points + torch.from_numpy(random.uniform(-self.jitter, self.jitter, tuple(points.shape))).to(points)
        return torch.where(inside_volume(scan["image"], moved)[:, None], moved, points)

    def _others(self, index: int) -> list[int]:
        """The scans of other patients."""
        return np.flatnonzero(self._partner_subjects != self._subjects[index]).tolist()

    def _partners(self, epoch: int, index: int, random: np.random.Generator) -> list[int]:
        """Scans to look for a match in, in that order; none where there is no other patient."""
        others = self._others(index)
        drawn = [int(i) for i in random.permutation(others)[: self.partners]]
        if self.partner == "previous" and self.partner_scans is self.scans and others:
            first = self._previous(epoch, index)
            if first in others:
                drawn = [first, *[i for i in drawn if i != first]][: self.partners]
        return drawn

    def _previous(self, epoch: int, index: int) -> int:
        """The scan before this one in the epoch's order of partners."""
        if self._order[0] != epoch:
            random = np.random.default_rng([self.seed, epoch & 0xFFFFFFFF, epoch >> 32])
            self._order = epoch, partner_order(self._subjects.tolist(), random)
        return self._order[1][index]

    def _find(self, index: int, points: torch.Tensor, partners: Sequence[int]) -> tuple[Found | None, bool]:
        """The pair of points to use, None for the same place of the same scan; and whether it is the fall-back."""
        tried: list[Found] = []
        for matches in self._matched(index, points, partners):
            good = self._inside([found for found in matches if found.score > self.min_score])
            if good:
                return good[0], False
            tried += matches
        some = self._inside([found for found in tried if found.score > 0])
        return self._fall_back(index, max(some, key=lambda found: found.score, default=None), partners), True

    def _matched(self, index: int, points: torch.Tensor, partners: Sequence[int]) -> Iterator[list[Found]]:
        """Matches of all points in each partner, for "nearest" in all of them first and the best partner's in front."""
        matched = (self._match(index, points, partner) for partner in partners)
        if self.partner == "nearest":
            yield from sorted(matched, key=lambda found: -sum(f.score for f in found))
        else:
            yield from matched

    def _match(self, index: int, points: torch.Tensor, partner: int) -> list[Found]:
        """Every point with its match."""
        matches = self.matcher(self.scans.data[index], self.partner_scans.data[partner], points)
        rows = zip(points, matches.points, matches.scores.tolist())
        return [Found(query, match, score, partner) for query, match, score in rows]

    def _inside(self, found: Sequence[Found]) -> list[Found]:
        """Those that lie in their volume, whatever the matcher says: a view of nothing but padding shows nothing."""
        volumes = {i: self.partner_scans.prepared(i)["image"] for i in dict.fromkeys(f.partner for f in found)}
        return [f for f in found if inside_volume(volumes[f.partner], f.match[None])]

    def _fall_back(self, index: int, best: Found | None, partners: Sequence[int]) -> Found | None:
        """What to use where no partner has a good match; `best` is None where none scores above 0."""
        scan = first_path(self.scans.data[index]["image"])
        if not partners:
            self._log("alone", f"there is no other patient to pair {scan} with: both views show the same place of it")
            return None
        names = ", ".join(str(first_path(self.partner_scans.data[i]["image"])) for i in partners)
        count = len(partners) * self.candidates
        score = f"nothing in common: none of {count} matches scores above 0"
        if best is not None:
            score = f"the best of {count} matches has the score {best.score:.3g}"
        cause = f"{scan} has no match above min_score {self.min_score:g} in {names} ({score})"
        if self.fallback == "raise":
            remedy = "lower min_score, raise candidates or partners, or set fallback to best or same_volume"
            raise ValueError(f"{cause}: {remedy}.")
        if self.fallback == "best" and best is not None:
            self._log("low", f"{cause}: the best one is used")
            return best
        self._log("low" if best else "nothing", f"{cause}: both views show the same place of the first")
        return None

    def _log(self, kind: str, message: str) -> None:
        """Say a cause once; the metrics of validation count how often it comes."""
        if kind not in self._logged:
            self._logged.add(kind)
            logger.warning("%s; further such pairs are counted as fallback_share, not logged", message)

    def _cut(self, volume: MetaTensor, point: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        crops, centres = padded_crops_at(volume, point[None], self.roi_size, self.spacing)
        return crops[0].clone(), centres[0]


def partner_order(subjects: Sequence[str], random: np.random.Generator) -> list[int]:
    """For each scan the one that comes before it in a random order, such that it is another patient's.

    Scans of a patient stand together in that order, and the partner is as many places back as the patient with most
    scans has: with one scan each it is the scan before. Everyone is a partner once. Where one patient has more than
    half of all scans, some of them have a partner of the same patient.

    Args:
        subjects: patient of each scan, `(N,)`.
        random: to draw from.
    """
    scans: dict[str, list[int]] = {}
    for i in random.permutation(len(subjects)).tolist():
        scans.setdefault(subjects[i], []).append(i)
    order = [i for own in scans.values() for i in own]
    back = max(len(own) for own in scans.values())
    partner = dict(zip(order, order[-back:] + order[:-back]))
    return [partner[i] for i in range(len(subjects))]


def _subject(item: Mapping[str, Any]) -> str:
    return str(item["subject"])
