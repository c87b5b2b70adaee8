"""From files to a batch: MONAI's transforms as a user would write them, beside the bundles' own recipes.

Both give the same number of crops of the same size from the same files, collated to tensors, in one process with one
thread, as a loader's worker has. The recipes map their crops from a store that is built before; what that takes, once
for each volume, is measured against one load of the plain pipeline.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, Dataset, PersistentDataset, list_data_collate
from monai.transforms import Compose

from anatomy_ssl.data import ScanDataset
from anatomy_ssl.data.scan_store import ScanStore
from anatomy_ssl.transforms.padded_crops import padded_crops_at

from .bundles import recipe
from .files import CT, MR, THICK_CT, compression, write_radiographs, write_scan
from .plain_feeds import distorted_views, foreground_crops, windowed_crop
from .timing import Row, Settings, alternate, compare, threads

CROP, VIEW = (32, 32, 32), (64, 64, 64)
TINY = (64, 64, 56), (56, 64, 48), (72, 72, 68)  # instead of MR, CT and THICK_CT
ASKED = {("MR", 16): 100, ("CT", 16): 1000, ("MR", 512): 10, ("CT", 512): 40}


def run(settings: Settings) -> list[Row]:
    """Rows of all feeds."""
    with threads(1):
        return [*isimed(settings), *alice(settings), *peac(settings)]


def shapes(settings: Settings) -> tuple[tuple[int, ...], ...]:
    """Of an MR, a CT and one of thick slices."""
    return TINY if settings.size == "tiny" else (MR, CT, THICK_CT)


def crop_feed(parser: ConfigParser) -> Callable[[], Any]:
    """The recipe's first volume, its crops collated by the recipe's loader, with other crops in every call."""
    dataset = parser.get_parsed_content("train#dataset")
    collate = parser.get_parsed_content("train#dataloader").collate_fn
    epochs = itertools.count()
    return lambda: collate([dataset[next(epochs), 0]])


def plain_feed(dataset: Dataset) -> Callable[[], Any]:
    """The same of a MONAI data set."""
    return lambda: list_data_collate([dataset[0]])


def isimed(settings: Settings) -> list[Row]:
    """16 crops and 512 crops of a volume, of an MR and of a CT, and the building of the store."""
    rows = []
    for name, kind, shape in zip(("MR", "CT"), ("mr", "ct"), shapes(settings)):
        item = write_scan(settings.folder / f"{kind}.nii.gz", shape, kind)
        label = f"{name} {'x'.join(map(str, shape))}"
        rows.append(store_building(settings, item, f"ISImed, {label}: building the store, by one plain load"))
        for number in (16, 512):
            options: dict[str, Any] = {"crop_store": str(settings.folder / "store"), "crops_per_volume": number}
            ours = crop_feed(recipe("isimed", settings.folder, [item], **options))
            steps = foreground_crops(CROP, number)
            cache = settings.folder / f"persistent_{kind}_{number}"
            ways = {"ours": ours, "plain": plain_feed(Dataset([item], Compose(steps)))}
            if number == 16:
                ways["CacheDataset"] = plain_feed(CacheDataset([item], Compose(steps), progress=False))
                ways["PersistentDataset"] = plain_feed(PersistentDataset([item], Compose(steps), cache_dir=cache))
            assert ours()["image"].shape == ways["plain"]()["image"].shape == (number, 1, *CROP)
            spent = alternate(ways, settings.repeats)
            feed = f"ISImed, {label}: {number} crops"
            note = f"file compressed {compression(item['image'], shape):.1f} times"
            rows.append(compare(feed, spent["plain"], spent["ours"], ASKED[name, number], note))
            kept = [way for way in ("CacheDataset", "PersistentDataset") if way in spent]
            rows += [compare(f"{feed}, plain with {way}", spent[way], spent["ours"]) for way in kept]
    return rows


def store_building(settings: Settings, item: dict[str, Any], what: str) -> Row:
    """Preparing and writing a volume, by loading it in the plain pipeline."""
    parser = recipe("isimed", settings.folder, [item])
    store = ScanStore(settings.folder / "building", parser.get_parsed_content("preprocessing"))
    load = plain_feed(Dataset([item], Compose(foreground_crops(CROP, 16))))
    spent = alternate({"plain": load, "ours": lambda: store.put(item)}, settings.repeats)
    return compare(what, spent["plain"], spent["ours"], 3)


def alice(settings: Settings) -> list[Row]:
    """One view of a CT of thick slices around a point of the body; and a pair of views of two patients."""
    shape = shapes(settings)[2]
    items = [write_scan(settings.folder / f"thick_{i}.nii.gz", shape, "ct", seed=i) for i in range(2)]
    options: dict[str, Any] = {"crop_store": str(settings.folder / "store")}
    parser = recipe("alice", settings.folder, items, ["matcher_world.yaml"], **options)
    scans: ScanDataset = parser.get_parsed_content("train#scans")
    random = np.random.default_rng(0)

    def view() -> torch.Tensor:
        scan = scans.prepared(0)
        point = scan["foreground"][random.integers(len(scan["foreground"]))]
        return list_data_collate([{"image": padded_crops_at(scan["image"], point[None], VIEW)[0][0]}])["image"]

    plain = Dataset(items, Compose(windowed_crop(VIEW)))
    one = alternate({"plain": plain_feed(plain), "ours": view}, settings.repeats)
    pair = alternate(
        {"plain": lambda: list_data_collate([plain[0], plain[1]]), "ours": crop_feed(parser)},
        settings.repeats,
    )
    label = f"CT {'x'.join(map(str, shape))}"
    return [
        compare(f"Alice, {label}: one view of 64^3", one["plain"], one["ours"], 2000),
        compare(f"Alice, {label}: a pair of views", pair["plain"], pair["ours"], note="matched by place in the world"),
    ]


def peac(settings: Settings) -> list[Row]:
    """A batch of radiographs, from PNG files to a distorted and a clean view of each, normalised; grey, and as RGB."""
    count, side = settings.pick((8, 1024), (4, 1024), (2, 256))
    folder = settings.folder / "radiographs"
    folder.mkdir()
    items = write_radiographs(folder, count, side)
    return [radiographs(settings, items, side, channels) for channels in (1, 3)]


def radiographs(settings: Settings, items: list[dict[str, Any]], side: int, channels: int) -> Row:
    """Of so many channels."""
    options: dict[str, Any] = {"crop_store": str(settings.folder / "store"), "images_per_batch": len(items)}
    cell = 8 if settings.size == "tiny" else 32
    options |= {"cell_size": cell, "train#prepare_batch#channels": channels}
    parser = recipe("peac", settings.folder, items, **options)
    cells, size = parser.get_parsed_content("grid_size")[0], parser.get_parsed_content("image_size")[0]
    dataset = parser.get_parsed_content("train#dataset")
    collate = parser.get_parsed_content("train#dataloader").collate_fn
    prepare = parser.get_parsed_content("train#prepare_batch")
    epochs, random = itertools.count(), np.random.default_rng(0)
    plain = Dataset(items, distorted_views(size, cells, cell, channels, random))

    def plain_batch() -> list[torch.Tensor]:
        batch = list_data_collate([plain[i] for i in range(len(items))])
        return [batch["first"], batch["second"]]

    def ours() -> list[torch.Tensor]:
        epoch = next(epochs)
        return prepare(collate([dataset[epoch, i] for i in range(len(items))]), device=torch.device("cpu"))[0]

    assert [v.shape for v in plain_batch()] == [v.shape for v in ours()]
    spent = alternate({"plain": plain_batch, "ours": ours}, settings.repeats)
    colour = "RGB" if channels == 3 else "grey"
    what = f"PEAC, {len(items)} PNG of {side}x{side}, {colour}: two views of {cells * cell}, one distorted"
    return compare(what, spent["plain"], spent["ours"], 20)
