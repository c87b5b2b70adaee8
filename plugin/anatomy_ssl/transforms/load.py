"""Loading with guards: one clear error for each way in which a medical image can be bad."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from anatomy_ssl.data.reading import BadImageError, check_volume, first_path, read_image


class LoadVolumed(MapTransform):
    """Read images of any supported format and check that shape, geometry and values can be trusted.

    Takes the place of `LoadImaged` and `EnsureChannelFirstd`. The result is a `MetaTensor` `(C, *spatial)` whose affine
    goes from voxels to world millimetres in RAS+. The first image's path is kept as `source`.

    Args:
        keys: items that hold a path, or the list of files of one DICOM series.
        spatial_dims: 2 or 3.
        channels: number of channels that every image must have; None accepts any.
        allow_missing_keys: whether an item without one of the keys is left as it is.
        keep_integers: False gives float32. True gives integers that a file holds unscaled as they are: int8, uint8 and
            int16 in their type, wider ones as int16 or int32, by their values; all else float32. A fraction of the time
            and memory, for what works on integers, too.

    Raises:
        BadImageError: for an absent key, a missing or truncated file, a 4D file, NaN or infinite voxels, a sheared or
            singular affine or a zero spacing; the message names file, cause and remedy.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int = 3,
        channels: int | None = 1,
        allow_missing_keys: bool = False,
        keep_integers: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_dims, self.channels, self.keep_integers = spatial_dims, channels, keep_integers

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each path by its image."""
        d = dict(data)
        absent = [] if self.allow_missing_keys else [key for key in self.keys if d.get(key) is None]
        if absent:
            raise BadImageError(d.get("source", "an item"), f"the datalist gives no {absent[0]!r} for it")
        for key in self.key_iterator(d):
            d.setdefault("source", str(first_path(d[key])))
            image = read_image(d[key], self.keep_integers)
            d[key] = check_volume(image, d[key], self.spatial_dims, self.channels)
        return d
