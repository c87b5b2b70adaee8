"""`python -m anatomy_ssl COMMAND`: prepares data and draws. Training and inference are `python -m monai.bundle run`."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import fire


def phantom(output: str, subjects: int = 24, seed: int = 0) -> None:
    """Write the phantom cohort: procedural "patients" as NIfTI, with organs, lesions, landmarks and radiographs.

    Args:
        output: folder to write.
        subjects: number of patients.
        seed: of the cohort.
    """
    from anatomy_ssl.data.phantom import write_phantom_cohort

    print(f"wrote {write_phantom_cohort(output, subjects=int(subjects), seed=int(seed))}")


def figure(
    *embeddings: str, output: str, kind: str = "all", probe: str = "", metric: str = "auc", reference: str | None = None
) -> None:
    """Draw the ISImed paper's figures 1 to 4 from saved embeddings and probe results.

    Args:
        embeddings: npz files, one per method, each as FILE or NAME=FILE.
        output: folder for the pictures.
        kind: distances, umap, pca, auc, several with commas between, or all that the files allow.
        probe: CSV of probe results; several with commas between.
        metric: metric of the probe results to draw.
        reference: method that the others are tested against.
    """
    from anatomy_ssl.figures.draw import draw_figures

    kinds: Any = kind if isinstance(kind, str) else list(kind)
    for path in draw_figures(embeddings, output, kind=kinds, probe=probe, metric=metric, reference=reference):
        print(f"wrote {path}")


def datalist(source: str, root: str, output: str, **options: Any) -> None:
    """Write a datalist JSON (Decathlon form) with splits grouped by patient.

    Args:
        source: "folder" (every scan under a folder), "csv" (a table with one image a row), or a public data set: brats,
            autopet, flare22, btcv, chestxray14, chexpert, shenzhen, rsna_pneumonia, jsrt.
        root: the folder, or the CSV file.
        output: JSON to write.
        options: of the source. A folder and a csv take --validation and --test (share of the patients, or a number of
            them), --order random|sorted and --seed; a folder --pattern and --subject_pattern; a csv --image, --subject
            and --label COLUMN, --labels "COLUMN,..." (findings: 1, 0, -1 uncertain, empty), and --where
            "column=value,...". Public data sets take --seed and their own.
    """
    from anatomy_ssl.data import public, write_datalist

    if source in ("folder", "csv"):
        splits = _split_list(source, root, options)
    elif source in public.__all__:
        splits = getattr(public, source)(root, **options)
    else:
        raise ValueError(f"unknown source {source!r}; choose folder, csv, {', '.join(public.__all__)}")
    path = write_datalist(output, splits, name=source if source in public.__all__ else Path(root).stem)
    print(f"wrote {path}: " + ", ".join(f"{len(items)} {name}" for name, items in splits.items()))


def _split_list(source: str, root: str, options: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Items of a folder or a table, split by patients."""
    from anatomy_ssl.data import split_patients
    from anatomy_ssl.data.folder import scan_folder
    from anatomy_ssl.data.table import datalist_from_csv

    validation, test = options.pop("validation", 0.1), options.pop("test", 0.1)
    order, seed = options.pop("order", "random"), options.pop("seed", 0)
    if source == "csv":
        label, labels = options.pop("label", None), options.pop("labels", ())
        names = labels.split(",") if isinstance(labels, str) else labels  # Fire makes a tuple of what has a comma
        items = datalist_from_csv(root, keys={"label": label} if label else None, labels=names, **options)
    else:
        items = scan_folder(root, **options)
    shares = sum(size for size in (validation, test) if isinstance(size, float))
    sizes = {"training": 1.0 - shares, "validation": validation, "test": test}
    return split_patients(items, {name: size for name, size in sizes.items() if size}, seed, order)


def export(
    checkpoint: str, output: str, part: str = "encoder", half: bool = False, allow_unknown: bool = False
) -> None:
    """Write the encoder of a training checkpoint alone, under its own names, with the record of its training.

    Args:
        checkpoint: checkpoint.pt of a run, or any file with a state dict.
        output: file to write.
        part: what to export; encoder.backbone for networks inside PooledEncoder, "" for all.
        half: store half precision.
        allow_unknown: export a file that does not say how it was trained.
    """
    from anatomy_ssl.handlers import switch
    from anatomy_ssl.weights import export_encoder

    options = {"half": switch(half), "allow_unknown": switch(allow_unknown)}
    print(f"wrote {export_encoder(str(checkpoint), str(output), part=str(part), **options)}")


def inspect(path: str) -> None:
    """Print what a file of weights holds and where it comes from.

    Args:
        path: an exported encoder, a checkpoint, or a plain state dict.
    """
    from anatomy_ssl.weights import inspect as summary

    print(summary(str(path)))


def import_released(
    source: str,
    output: str,
    method: str,
    which: str | None = None,
    channels: int | None = None,
    position_embedding: str | None = None,
) -> None:
    """Write an encoder file from a checkpoint that a method's authors released.

    Args:
        source: the authors' file.
        output: file to write.
        method: isimed, peac, alice, or timm for a Swin or ViT of any origin in timm's layout.
        which: teacher or student, of files with both; the teacher by default.
        channels: of your images, 1 sums the weights of equal channels; by default 1 for peac, the file's for timm.
        position_embedding: of alice, file with the tensor that is not in the authors' file; zeros by default.
    """
    from anatomy_ssl.weights import import_released as convert

    number = None if channels is None else int(channels)
    positions = None if position_embedding is None else str(position_embedding)
    print(f"wrote {convert(str(source), str(output), str(method), which, number, positions)}")


def export_timm(encoder: str, output: str, layout: str = "timm") -> None:
    """Write a Swin or ViT encoder of 2D images under timm's names (docs/transfer.md).

    Args:
        encoder: encoder.pt, as `export` writes it.
        output: file to write.
        layout: timm, or original for the names of the Swin paper's code.
    """
    from anatomy_ssl.weights import timm

    print(f"wrote {timm.export_timm(str(encoder), str(output), str(layout))}")


def compare(
    *overlays: str, config_file: Any, output_dir: str, seeds: Any = (0, 1, 2), name: str = "pretrained", **options: Any
) -> None:
    """Fine-tune with several seeds, beside baselines of the same budget: means, sd, paired test, confidence interval.

    Args:
        overlays: configuration files that make the baselines, such as scratch.yaml; each is named by its file.
        config_file: configuration or list of them, with run ids training and evaluating.
        output_dir: folder of the runs and of comparison.md; the same command goes on where it was interrupted.
        seeds: of the runs.
        name: of the configuration without overlay.
        options: any key of the configuration, for all runs alike.
    """
    from anatomy_ssl.engines.comparison import compare as run_all

    files = [config_file] if isinstance(config_file, str) else list(config_file)
    numbers = [seeds] if isinstance(seeds, int) else [int(seed) for seed in seeds]
    path = run_all(files, {Path(file).stem: file for file in overlays}, str(output_dir), numbers, str(name), options)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"wrote {path}")


def zoo_verify(bundle: str) -> None:
    """Check a bundle as MONAI's model zoo does, and list every problem at once.

    Args:
        bundle: the bundle's folder. Its configs are executed: verify only what you trust.
    """
    from anatomy_ssl.zoo import verify_bundle

    verify_bundle(str(bundle))
    print(f"{bundle} is sound")


def zoo_pack(bundle: str, output: str, url: str = "", index: str | None = None) -> None:
    """Verify a bundle and write its versioned zip, files over 25 MB beside it, and the index that MONAI downloads by.

    Args:
        bundle: the bundle's folder; its name is the bundle's.
        output: folder to write.
        url: where the files of the output folder will be downloaded from, without the file names.
        index: file like the model zoo's model_info.json, written or updated; by default in the output folder.
    """
    from anatomy_ssl.zoo import pack_bundle

    packed = pack_bundle(str(bundle), str(output), url=url, index=index)
    print(f"wrote {packed.archive}")
    print(f"sha256 {packed.sha256}")
    for path in (*packed.large_files, packed.index):
        print(f"wrote {path}")


def zoo_push(bundle: str, repo: str, token: str | None = None, private: bool = True, latest: bool = False) -> None:
    """Verify a bundle and upload it to the Hugging Face Hub, tagged with its version.

    Args:
        bundle: the bundle's folder.
        repo: OWNER/NAME on the hub; made where it does not exist.
        token: of the hub; by default that of `hf auth login` or of the variable HF_TOKEN.
        private: whether a new repository is visible to its owner alone.
        latest: whether `monai.bundle.download` takes this version by default.
    """
    from anatomy_ssl.handlers import switch
    from anatomy_ssl.zoo import push_bundle

    options = {"private": switch(private), "latest": switch(latest)}
    print(f"pushed to {push_bundle(str(bundle), str(repo), token=token, **options)}")


def export_nnunet(
    encoder: str,
    plans: str,
    output: str,
    configuration: str = "3d_fullres",
    channels: int | None = None,
    inflate: bool = False,
    seed: int = 0,
) -> None:
    """Write a pretrained encoder as a file for `nnUNetv2_train -pretrained_weights` (docs/nnunet.md).

    Args:
        encoder: encoder.pt or checkpoint.pt of a run with encoder_resenc.yaml.
        plans: nnU-Net's plans file of the data set to train on.
        output: file to write, such as weights.pth.
        configuration: one of the plan's configurations.
        channels: of that data set's images; by default counted in the dataset.json beside the plans.
        inflate: spread an encoder of one channel over images of several.
        seed: of the decoder's random start.
    """
    from anatomy_ssl.handlers import switch
    from anatomy_ssl.weights import nnunet

    report = nnunet.export_nnunet(
        str(encoder), str(output), str(plans), str(configuration), channels, inflate=switch(inflate), seed=int(seed)
    )
    print(f"wrote {output}: the encoder from {encoder} ({report.loaded} tensors), a random decoder, no class layers")


def match(
    source: str,
    target: str,
    *,
    points: str,
    output: str,
    matcher: str = "embedding",
    embedding: str | None = None,
    store: str | None = None,
    round_trip: bool = False,
    pictures: int | None = None,
    similarity: bool = False,
    device: str = "cpu",
    **options: Any,
) -> None:
    """Find points of one scan in another: matches.csv, matches.mrk.json for 3D Slicer, and pictures (docs/matching.md).

    Args:
        source: scan that the points lie in, a file or the folder of a DICOM series.
        target: scan that they are looked for in.
        points: CSV with the columns x, y, z in world mm (RAS+), and name; or markups of 3D Slicer (.mrk.json).
        output: folder to write.
        matcher: embedding, registration or world; or a YAML file with one, such as
            bundles/alice/configs/matcher_position.yaml.
        embedding: embedding.pt, for the embedding matcher.
        store: folder where embeddings of volumes, or registrations, are kept.
        round_trip: match back too, and say how far from the query that leads.
        pictures: how many of the points are drawn; the first 3 by default.
        similarity: draw where else in the target they would fit.
        device: where networks run.
        options: keys of the YAML file, or arguments of the matcher.
    """
    from anatomy_ssl.engines.point_matching import match_points
    from anatomy_ssl.handlers import switch
    from anatomy_ssl.matching import build_matcher

    found = build_matcher(str(matcher), embedding, store, str(device), **options)
    checks = {"check_round_trip": switch(round_trip), "similarity": switch(similarity)}
    number = None if pictures is None else int(pictures)
    for path in match_points(found, str(source), str(target), str(points), str(output), pictures=number, **checks):
        print(f"wrote {path}")


def landmarks(
    datalist: str,
    *,
    output: str,
    matcher: str = "embedding",
    embedding: str | None = None,
    store: str | None = None,
    landmarks: str | None = None,
    labels: dict[str, int] | None = None,
    split: str = "all",
    pairs: Any = "all",
    seed: int = 0,
    round_trip: bool = True,
    within: float = 10.0,
    round_trip_within: float = 4.0,
    device: str = "cpu",
    **options: Any,
) -> None:
    """How far from the truth a matcher finds known landmarks of one patient in another (docs/matching.md).

    Args:
        datalist: JSON of images; their own `landmarks` count where neither --landmarks nor --labels is given.
        output: folder for landmarks.csv and landmarks_table.csv and .md.
        matcher: see `match`, also for embedding, store and device.
        embedding: embedding.pt.
        store: folder for embeddings or registrations.
        landmarks: CSV with the columns subject, landmark, x, y, z (world mm), in_field.
        labels: "{name: value, ...}" of the label maps, whose centroids are the landmarks.
        split: of the datalist, or all.
        pairs: all, next (each with the following one), or how many to draw.
        seed: of that draw.
        round_trip: match back too, at twice the cost.
        within: mm up to which a match counts as right.
        round_trip_within: mm from the query up to which a match leads back.
        device: where networks run.
        options: keys of the YAML file, or arguments of the matcher.
    """
    from anatomy_ssl.data import load_datalist
    from anatomy_ssl.engines import landmarks as engine
    from anatomy_ssl.handlers import switch
    from anatomy_ssl.matching import build_matcher

    if labels is not None and not isinstance(labels, dict):
        raise ValueError(f'labels is "{{name: value, ...}}", such as "{{heart: 6, liver: 11}}", not {labels!r}')
    found = build_matcher(str(matcher), embedding, store, str(device), **options)
    items = load_datalist(datalist, str(split), keys=("image", "label") if labels else ("image",))
    marks = engine.landmarks_of(items, landmarks, labels)
    chosen = engine.choose_pairs([str(item["subject"]) for item in items], pairs, int(seed))
    rows = list(engine.evaluate_landmarks(found, items, marks, chosen, switch(round_trip)))
    path = engine.write_landmarks(str(output), rows, float(within), float(round_trip_within), int(seed))
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"wrote {path}")


def store_build(*, datalist: str, output: str, config_file: Any, workers: int = 2, **options: Any) -> None:
    """Prepare the scans of a pre-training and keep them for it, and any other of the same preparation (docs/store.md).

    Args:
        datalist: folder of scans or datalist JSON, the dataset_dir of the training.
        output: folder of the store, the crop_store of the training.
        config_file: pretrain.yaml, or a list with the overlays that the training will have.
        workers: processes that prepare scans.
        options: further keys of the config, as the training will get them.
    """
    from anatomy_ssl.engines.crop_store import build_crop_store

    files = [config_file] if isinstance(config_file, str) else [str(file) for file in config_file]
    store, count, bad = build_crop_store(files, str(datalist), str(output), int(workers), options)
    size = sum(path.stat().st_size for path in store.folder.glob("*.safetensors"))
    print(f"{store.folder} holds {count - len(bad)} of {count} scans, {size / 1e6:.1f} MB")
    print(f"train with --crop_store {output}")


def store_check(folder: str) -> None:
    """Compare the checksums of all stored scans, and whether their sources have changed.

    Args:
        folder: of the store.
    """
    from anatomy_ssl.data.store_building import check_store

    counts, problems = check_store(str(folder))
    for name, count in counts.items():
        print(f"{name}: {count} scans")
    if problems:
        raise ValueError(f"{len(problems)} are not sound: " + "; ".join(problems))
    print(f"{folder} is sound")


COMMANDS: dict[str, Callable[..., None] | dict[str, Callable[..., None]]] = {
    "phantom": phantom,
    "datalist": datalist,
    "figure": figure,
    "compare": compare,
    "export-nnunet": export_nnunet,
    "export-timm": export_timm,
    "export": export,
    "inspect": inspect,
    "import-released": import_released,
    "match": match,
    "landmarks": landmarks,
    "store": {"build": store_build, "check": store_check},
    "zoo": {"verify": zoo_verify, "pack": zoo_pack, "push": zoo_push},
}


def main() -> int:
    """Run a command; errors end with one line and exit code 2, with `--debug` after the traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--debug", "--help", "-h")]
    if {"--help", "-h"} & set(sys.argv[1:]):
        arguments += ["--", "--help"]  # where Fire takes it for help, not for an option of the command
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    calls: list[Callable[[], None]] = []

    def later(command: Callable[..., None]) -> Callable[..., None]:
        """Fire runs a command before it finds an option that does not exist; this lets it only read the arguments."""

        @wraps(command)
        def record(*args: Any, **options: Any) -> None:
            calls.append(partial(command, *args, **options))

        return record

    def all_later(commands: dict[str, Any]) -> dict[str, Any]:
        """Groups of commands are dictionaries."""
        return {name: all_later(c) if isinstance(c, dict) else later(c) for name, c in commands.items()}

    try:
        fire.Fire(all_later(COMMANDS), command=arguments, name="anatomy_ssl")
        for call in calls:
            call()
    except (ValueError, OSError, ImportError, TypeError, RuntimeError) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        for line in getattr(error, "problems", [str(error)]):
            print(f"error: {' '.join(line.split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
