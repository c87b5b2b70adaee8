"""Writes embeddings so that people and programs can use them: a table of crops, and a picture for any viewer."""

from __future__ import annotations

import gzip
import logging
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA

from anatomy_ssl.data.atomic import atomic_write
from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.transforms.points import voxel_to_world

logger = logging.getLogger(__name__)
_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


class EmbeddingWriter:
    """Writes, for each scan that an evaluator with `GridEmbeddingInferer` has embedded,

    - `NAME.npz` and `NAME.csv`: one row per crop in the body, with its centre in world mm (RAS+);
    - `NAME_pca.nii.gz`: the first three principal components, common to all scans, as red, green and blue (NIfTI's
      RGB24) on the grid of crop centres, black outside of the body; any viewer lays it over the scan.

    The evaluator's output holds the map as `pred`, `(1, F, *grid)` with its affine; its batch holds `subject`, `source`
    and `foreground`, `(1, N, D)` world mm.

    Args:
        output_dir: where the files go.
        fit_crops: crops per scan that the principal components are fitted on, evenly spaced.
        body_distance: crops whose centre is farther from every foreground point, in mm, are left out.
        csv_embeddings: whether the CSV holds the embeddings besides the positions.
    """

    def __init__(
        self, output_dir: str, fit_crops: int = 500, body_distance: float = 8.0, csv_embeddings: bool = True
    ) -> None:
        self.output_dir, self.fit_crops = Path(output_dir), fit_crops
        self.body_distance, self.csv_embeddings = body_distance, csv_embeddings
        self.grids: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self.grids.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write_table)
        engine.add_event_handler(Events.COMPLETED, self.write_pictures)

    def write_table(self, engine: Engine) -> None:
        """Write one scan's crops, and remember which of its grid lie in the body."""
        state: Any = engine.state
        batch, grid = state.batch, state.output["pred"]
        affine = grid.affine.reshape(-1, *grid.affine.shape[-2:])[0].cpu()
        index = torch.cartesian_prod(*[torch.arange(n) for n in grid.shape[2:]])
        position = voxel_to_world(affine, index)
        distance, _ = cKDTree(np.asarray(batch["foreground"][0])).query(position.numpy())
        body = distance <= self.body_distance
        subject, source = batch["subject"][0], batch["source"][0]
        if not body.any():
            logger.warning("%s: no crop fits into the body, nothing is written", source)
            return
        name = self._name(subject, source)
        z = grid.as_tensor()[0].flatten(1).T.float().cpu().numpy()
        table = Embeddings(z[body], position.numpy()[body], np.full(body.sum(), subject), np.array([source]))
        table.save(self.output_dir / f"{name}.npz")
        table.to_csv(self.output_dir / f"{name}.csv", embedding=self.csv_embeddings)
        self.grids[name] = (body.reshape(grid.shape[2:]), affine.numpy())

    def _name(self, subject: str, source: str) -> str:
        """The patient's name as a file name; with the scan's own where a patient has several."""
        name = re.sub(r"[^\w.-]+", "_", str(subject))
        return name if name not in self.grids else f"{name}_{len(self.grids)}_{Path(source).name.split('.')[0]}"

    def write_pictures(self, engine: Engine) -> None:
        """Fit the components on all scans and write each scan's picture."""
        if not self.grids:
            return
        paths = {name: self.output_dir / f"{name}.npz" for name in self.grids}
        sample = [evenly(Embeddings.load(path).embedding, self.fit_crops) for path in paths.values()]
        rows = np.concatenate(sample)
        pca = PCA(n_components=min(3, *rows.shape)).fit(rows)
        low, high = np.percentile(pca.transform(rows), [2, 98], axis=0)
        for name, (body, affine) in self.grids.items():
            components = pca.transform(Embeddings.load(paths[name]).embedding)
            colours = ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1) * 254 + 1
            picture = np.zeros((*body.shape, 3), dtype=np.uint8)
            picture[body, : colours.shape[1]] = colours.astype(np.uint8)
            save_rgb(picture, affine, self.output_dir / f"{name}_pca.nii.gz")
        logger.info("wrote the embeddings of %d scans to %s", len(self.grids), self.output_dir)


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]


def save_rgb(picture: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write `(*grid, 3)` uint8 colours, 2D or 3D, as NIfTI RGB24 with the affine `(D + 1, D + 1)`."""
    dims = picture.ndim - 1
    full = np.eye(4)
    full[:dims, :dims], full[:dims, 3] = affine[:dims, :dims], affine[:dims, -1]
    voxels = np.ascontiguousarray(picture).view(_RGB)[..., 0]
    image = nib.Nifti1Image(voxels.reshape(*voxels.shape, *[1] * (3 - dims)), full)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(gzip.compress(image.to_bytes(), mtime=0))
