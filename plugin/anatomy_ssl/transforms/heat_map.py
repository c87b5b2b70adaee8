"""From logits to probabilities of named classes, and to pictures on the radiograph's own pixels."""

from __future__ import annotations

import gzip
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform, SpatialResample
from monai.utils import ImageMetaKey, MetaKeys

from anatomy_ssl.data.atomic import atomic_write
from anatomy_ssl.data.folder import file_stem

__all__ = ["ClassProbabilitiesd", "HeatMapd", "SaveHeatMapsd", "on_file_pixels"]

_NIFTI = (".nii", ".nii.gz")
LIKELIEST, ALL = "likeliest", "all"


class ClassProbabilitiesd(MapTransform):
    """Turn what `ClassActivationInferer` gives into probabilities, of the image and of its places.

    Of `{"logits": (K,), "map": (K, *size)}` the map stays under the key, as probabilities. Added are `probability`,
    `(K,)`, and `result`, what MONAI Label's classifiers answer: `{"prediction": [{"idx", "label", "score"}, ...]}`.

    Args:
        keys: one such answer.
        names: of the classes, K.
        exclusive: whether they exclude one another (softmax); else a sigmoid for each.

    Raises:
        ValueError: for another number of classes.
    """

    def __init__(self, keys: KeysCollection, names: Sequence[str], exclusive: bool = False) -> None:
        super().__init__(keys)
        self.names, self.exclusive = list(names), exclusive

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the logits."""
        d = dict(data)
        for key in self.key_iterator(d):
            logits, places = (torch.as_tensor(d[key][part]).float().cpu() for part in ("logits", "map"))
            if len(logits) != len(self.names):
                raise ValueError(f"the network has {len(logits)} outputs, {len(self.names)} classes are named")
            d[key], probability = (x.softmax(0) if self.exclusive else x.sigmoid() for x in (places, logits))
            named = enumerate(zip(self.names, probability.tolist()))
            d["probability"] = probability
            d["result"] = {"prediction": [{"idx": i, "label": name, "score": p} for i, (name, p) in named]}
        return d


class HeatMapd(MapTransform):
    """Bring maps of probabilities to the pixels of the file, for the classes that are asked for.

    A pixel's value is the probability of the class if all of the picture looked like the place around that pixel: 0 to
    1, on one scale for all images. What was cut off when the image was prepared was not looked at, and is 0.

    Added are `heat_maps`, a `MetaTensor` `(M, *spatial)` float32 in the file's order of axes, and `heat_map_names`, the
    M classes. Under the key itself goes the first of them as MONAI Label writes it: uint8, 0 to 255, `(*spatial, 1)`
    for NIfTI files and `(*spatial)` for others, for which `result_extension` asks for PNG.

    Args:
        keys: maps of probabilities `(K, *size)` of the image as the network saw it; with `probability` `(K,)`.
        names: of the classes, K.
        show: names of classes, "all", or "likeliest", the class with the largest probability.
        request_key: entry of the data with which a request replaces `show`.
        image_key: the image as the network saw it, `(C, *size)`, with its affine and its metadata.
        indices: the order into which the preparation put the file's axes, as `Transposed` has it.

    Raises:
        ValueError: for a class that is not there, or an image without metadata.
    """

    def __init__(
        self,
        keys: KeysCollection,
        names: Sequence[str],
        show: str | Sequence[str] = LIKELIEST,
        request_key: str = "heat_map",
        image_key: str = "image",
        indices: Sequence[int] = (0, 2, 1),
    ) -> None:
        super().__init__(keys)
        self.names, self.request_key = list(names), request_key
        self.image_key, self.indices = image_key, list(indices)
        self.show = show
        self._places(show, torch.zeros(len(self.names)))  # a wrong name is said before the first image is read

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Make the maps."""
        d = dict(data)
        image = d[self.image_key]
        if not isinstance(image, MetaTensor):
            raise ValueError(f"{self.image_key!r} has no metadata, without which heat maps have no place: keep them")
        for key in self.key_iterator(d):
            chosen = self._places(d.get(self.request_key) or self.show, d["probability"])
            maps = on_file_pixels(d[key][chosen], image, self.indices)
            d["heat_maps"], d["heat_map_names"] = maps, [self.names[i] for i in chosen]
            d[key] = (maps.as_tensor()[0] * 255).round().to(torch.uint8)
            if _is_nifti(maps):
                d[key] = d[key][..., None]
                # what differs from it is resized in MONAI Label
                image.meta[MetaKeys.SPATIAL_SHAPE] = np.array(d[key].shape)
            else:
                d.setdefault("result_extension", ".png")
        return d

    def _places(self, wanted: str | Sequence[str], probability: torch.Tensor) -> list[int]:
        """Indices of the wanted classes."""
        # MONAI Label hands a list of choices on where nobody chose: the first is meant
        if wanted == LIKELIEST or (not isinstance(wanted, str) and LIKELIEST in wanted):
            return [int(probability.argmax())]
        names = self.names if wanted == ALL else [wanted] if isinstance(wanted, str) else list(wanted)
        unknown = [str(name) for name in names if name not in self.names]
        if unknown or not names:
            raise ValueError(
                f"no heat map of {', '.join(unknown) or 'nothing'}: give {LIKELIEST}, {ALL}, or some of "
                f"{', '.join(self.names)}"
            )
        return [self.names.index(name) for name in names]


def on_file_pixels(maps: torch.Tensor, image: MetaTensor, indices: Sequence[int] = (0, 2, 1)) -> MetaTensor:
    """Bring maps of a prepared image to the pixels of the file that it came from.

    Args:
        maps: `(M, *size)`; NaN is nothing, 0.
        image: as the network saw it, `(C, *size)`; its affine tells how it was scaled and cut (transposing leaves that
            as it is), its metadata what the file was like.
        indices: the order into which the preparation put the file's axes, the channel's first.

    Returns:
        `(M, *spatial)` float32 with the file's axes and metadata; 0 beyond the image.
    """
    dims, size = maps.ndim - 1, image.shape[1:]
    file_affine = to_affine_nd(dims, image.meta.get(MetaKeys.ORIGINAL_AFFINE, np.eye(dims + 1)))  # pictures have none
    own = torch.as_tensor(file_affine, dtype=torch.float64)
    to_file = torch.linalg.inv(own) @ torch.as_tensor(to_affine_nd(dims, image.affine), dtype=torch.float64)
    loaded = [int(n) for n in image.meta[MetaKeys.SPATIAL_SHAPE]]
    shape = [loaded[i - 1] for i in indices[1:]]
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=np.float32)
    source = MetaTensor(torch.as_tensor(maps), affine=to_file)
    placed = resample(source, dst_affine=torch.eye(dims + 1), spatial_size=shape).as_subclass(torch.Tensor)
    for axis, (n, pixels) in enumerate(zip(size, shape)):
        at = (torch.arange(pixels) - to_file[axis, -1]) / to_file[axis, axis]  # index in the prepared image
        inside = (at >= -0.5) & (at <= n - 0.5)
        placed = placed * inside.view([-1 if a == axis else 1 for a in range(dims)])
    back = placed.nan_to_num(0.0).permute(*np.argsort(indices).tolist()).contiguous()
    return MetaTensor(back, meta={**image.meta, MetaKeys.AFFINE: own})


def _is_nifti(image: MetaTensor) -> bool:
    return str(image.meta[ImageMetaKey.FILENAME_OR_OBJ]).lower().endswith(_NIFTI)


class SaveHeatMapsd(MapTransform):
    """Write heat maps: `STEM_CLASS.nii.gz`, 0 to 1, for NIfTI files, `STEM_CLASS.png`, grey, 0 to 255, for all others.

    Args:
        keys: maps `(M, *spatial)`, as `HeatMapd` gives them, with `heat_map_names`.
        output_dir: where the files go; the folders of the images below `data_root` are repeated.
        data_root: folder that all images lie in.
    """

    def __init__(self, keys: KeysCollection, output_dir: str, data_root: str) -> None:
        super().__init__(keys)
        self.output_dir, self.data_root = Path(output_dir), Path(data_root)
        self.stems: dict[Path, Path] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files."""
        d = dict(data)
        for key in self.key_iterator(d):
            source = Path(str(d[key].meta[ImageMetaKey.FILENAME_OR_OBJ]))
            stem = self._stem(source)
            for heat, name in zip(d[key], d["heat_map_names"]):
                path = stem.with_name(f"{stem.name}_{''.join(c if c.isalnum() else '_' for c in name)}")
                if _is_nifti(d[key]):
                    _write_nifti(heat, path.with_name(path.name + ".nii.gz"))
                else:
                    _write_png(heat, path.with_name(path.name + ".png"))
        return d

    def _stem(self, source: Path) -> Path:
        """The file's path without its extension; with it where another file of that name came before."""
        folder = self.output_dir / source.parent.relative_to(self.data_root)
        stem = folder / file_stem(source)
        return stem if self.stems.setdefault(stem, source) == source else folder / source.name


def _write_nifti(heat: MetaTensor, path: Path) -> None:
    """Write `(X, Y)` values with the file's affine, compressed."""
    affine = np.asarray(to_affine_nd(3, heat.meta[MetaKeys.ORIGINAL_AFFINE]))
    image = nib.Nifti1Image(heat.numpy()[..., None].astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    with atomic_write(path) as file:
        file.write(gzip.compress(image.to_bytes(), mtime=0))


def _write_png(heat: torch.Tensor, path: Path) -> None:
    """Write `(columns, rows)` values of 0 to 1."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("writing pictures needs Pillow: pip install anatomy-ssl[figures]") from error
    picture = (torch.as_tensor(heat) * 255).round().to(torch.uint8).numpy().T
    with atomic_write(path) as file:
        Image.fromarray(np.ascontiguousarray(picture)).save(file, format="PNG")
