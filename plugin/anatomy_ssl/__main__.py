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
            and --label COLUMN, and --where "column=value,...". Public data sets take --seed and their own.
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
        label = options.pop("label", None)
        items = datalist_from_csv(root, keys={"label": label} if label else None, **options)
    else:
        items = scan_folder(root, **options)
    shares = sum(size for size in (validation, test) if isinstance(size, float))
    sizes = {"training": 1.0 - shares, "validation": validation, "test": test}
    return split_patients(items, {name: size for name, size in sizes.items() if size}, seed, order)


COMMANDS: dict[str, Callable[..., None]] = {"phantom": phantom, "datalist": datalist, "figure": figure}


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

    try:
        fire.Fire({name: later(command) for name, command in COMMANDS.items()}, command=arguments, name="anatomy_ssl")
        for call in calls:
            call()
    except (ValueError, OSError, ImportError, TypeError) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
