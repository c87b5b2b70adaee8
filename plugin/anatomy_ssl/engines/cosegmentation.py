"""Zero-shot co-segmentation (Zhou et al. 2023, arXiv 2312.00335): one clustering of the tokens of several images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from anatomy_ssl.data.reading import read_image
from anatomy_ssl.data.tokens import TokenMap
from anatomy_ssl.engines.encoded import EncodedImages, errors_told
from anatomy_ssl.engines.visual import Rows, method_table
from anatomy_ssl.figures.tokens import cosegmentation_figure
from anatomy_ssl.metrics.clusters import best_clusters, dice
from anatomy_ssl.metrics.correspondence import refined
from anatomy_ssl.metrics.statistics import mean_sd
from anatomy_ssl.metrics.tables import markdown_table, write_table

__all__ = ["CosegmentationTest"]

logger = logging.getLogger(__name__)


class CosegmentationTest:
    """Tokens of several radiographs clustered together: the same colour in all of them is the same cluster.

    Args:
        images: the images and encoders.
        output_dir: where `cosegmentation.png`, and, with masks, `cosegmentation.csv` and `.md` go.
        pictures: patients or files; None takes the first `number` patients.
        number: see `pictures`.
        clusters: of k-means.
        components: of the tokens that are kept by a PCA before; None clusters the tokens as they are.
        refine: steps between two tokens, for edges that are finer than a cell.
        mask: entry of the items with the path of a mask. Dice is that of the clusters that fit it best, chosen once for
            all images with the masks in hand: of how well clusters can tell it, not of a segmentation.
        seed: of k-means.
    """

    def __init__(
        self,
        images: EncodedImages,
        output_dir: str,
        pictures: Sequence[str] | None = None,
        number: int = 6,
        clusters: int = 6,
        components: int | None = 16,
        refine: int = 8,
        mask: str | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.output_dir, self.pictures, self.number = images, Path(output_dir), pictures, number
        self.clusters, self.components, self.refine = clusters, components, refine
        self.mask, self.seed = mask, seed

    @errors_told()
    def run(self) -> Rows:
        """Write picture and table; returns the rows of the table, none without masks."""
        chosen = self.images.choose(self.pictures, self.number)
        maps = {name: self.images.maps(name, chosen) for name in self.images.encoders}
        maps["position alone"] = self.images.positions(chosen)
        labels = {name: self._cluster(found, name != "position alone") for name, found in maps.items()}
        masks = [self._read_mask(i) for i in chosen]
        known = [k for k, mask in enumerate(masks) if mask is not None]
        scores: dict[str, dict[str, float]] = {}
        for name in maps if known else ():
            pixels = [_at_pixels(*labels[name][k], masks[k].shape) for k in known]
            truth = [masks[k] for k in known]
            best = best_clusters(
                np.concatenate([p.ravel() for p in pixels]), np.concatenate([m.ravel() for m in truth])
            )
            values = [dice(np.isin(p, best), m) for p, m in zip(pixels, truth)]
            scores[name] = {"dice": mean_sd(values)[0], "lowest": min(values), "images": len(values)}
        table = method_table(scores) if scores else []
        if table:
            path = write_table(self.output_dir / "cosegmentation.csv", table)
            logger.info("Dice of the clusters that fit %s best, %s:\n%s", self.mask, path, markdown_table(table))
        titles = {"trained": "trained", "random_0": "random", "position alone": "position alone"}
        notes = {name: f"\nDice {scores[name]['dice']:.2f}" if scores else "" for name in titles}
        drawn = {title + notes[name]: labels[name] for name, title in titles.items()}
        path = self.output_dir / "cosegmentation.png"
        cosegmentation_figure([self.images.picture(i) for i in chosen], drawn, masks, path)
        logger.info("drew %s", path)
        return table

    def _cluster(self, maps: Sequence[TokenMap], angles: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        """Clusters of each image on the refined grid, up to the edges, and its affine; `angles` compares by cosine."""
        prepare = normalize if angles else np.asarray
        tokens = np.concatenate([prepare(_rows(m)) for m in maps])
        if self.clusters > len(tokens):
            raise ValueError(f"clusters is {self.clusters}, but there are {len(tokens)} tokens: lower it")
        pca = PCA(min(self.components or tokens.shape[1], *tokens.shape), random_state=self.seed).fit(tokens)
        means = KMeans(self.clusters, n_init=10, random_state=self.seed).fit(pca.transform(tokens))
        fine = [refined(m, self.refine) for m in maps]
        found = [means.predict(pca.transform(prepare(_rows(m)))).reshape(m.grid) for m in fine]
        half, move = self.refine // 2, np.eye(3)  # of a cell: from the outermost centres to the edge
        move[:2, 2] = -half
        return [(np.pad(labels, half, mode="edge"), m.affine @ move) for labels, m in zip(found, fine)]

    def _read_mask(self, i: int) -> Any:
        """An image's mask, bool `(rows, columns)`; None where it has none."""
        path = None if self.mask is None else self.images.items[i].get(self.mask)
        if path is None:
            return None
        mask = read_image(path).as_tensor()[0].numpy().T > 0
        if mask.shape != tuple(self.images.items[i]["original_size"].tolist()):
            size = " x ".join(str(n) for n in self.images.items[i]["original_size"].tolist())
            raise ValueError(f"{path} is a mask of {mask.shape[0]} x {mask.shape[1]} pixels, its image has {size}")
        return mask


def _rows(tokens: TokenMap) -> np.ndarray:
    """Tokens `(T, F)`."""
    return tokens.tokens.reshape(len(tokens.tokens), -1).T


def _at_pixels(labels: np.ndarray, affine: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The nearest label at every pixel of the file, `(rows, columns)`."""
    index = apply_affine(np.linalg.inv(affine), np.moveaxis(np.indices(size), 0, -1)).round().astype(int)
    row, column = (index[..., k].clip(0, labels.shape[k] - 1) for k in (0, 1))
    return labels[row, column]
