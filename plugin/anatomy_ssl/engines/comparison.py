"""Fine-tuning against a baseline over several seeds: the same budget for all, a paired test, and nothing run twice."""

from __future__ import annotations

import csv
import difflib
import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from anatomy_ssl.data.atomic import atomic_write
from anatomy_ssl.metrics.statistics import mean_sd, paired_t_test
from anatomy_ssl.metrics.tables import write_table
from anatomy_ssl.weights.files import file_hash

__all__ = ["compare"]

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
OF_MONAI = ("init_id", "final_id", "meta_file", "logging_file", "tracking")  # options of monai.bundle run itself


def compare(
    config_files: Sequence[str],
    baselines: Mapping[str, str],
    output_dir: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    name: str = "pretrained",
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Train and evaluate a configuration and its baselines with several seeds, and test the difference.

    Each run is `monai.bundle run training` and then `evaluating` in a process of its own, with the same options; the
    baseline differs by its overlay alone, whose keys win over options of their name: `pretrained` given as an option
    is not given to a baseline without pretraining. A run that is complete is not repeated, one that was stopped is
    resumed: the same call goes on where it was interrupted.

    Args:
        config_files: of the configuration, with run ids `training` and `evaluating`, of which the latter writes
            `evaluation/metrics.csv` (MONAI's `MetricsSaver`).
        baselines: name -> overlay put on top (`{"scratch": ".../scratch.yaml"}`).
        output_dir: `NAME/seedS/` for each run, and `comparison.csv` and `.md`.
        seeds: given to the configuration as `seed`.
        name: of the configuration without overlay.
        options: keys of the configuration and their values, for all runs alike, but for what an overlay sets.

    Returns:
        `comparison.csv`: one row per metric and method with mean and sd over seeds, and the difference of the first
        method to each baseline with its 95% confidence interval and paired t-test: over seeds and, where the evaluation
        lists images, over images (each image's mean over seeds). Images of one patient are no independent ones, and
        the evaluation's list does not tell whose they are: where a patient has several, the latter p is too small.

    Raises:
        ValueError: if there is no baseline, fewer than two seeds, an option that is no key of the files, or the folder
            holds runs of other options or files, or of files that were edited since.
        RuntimeError: if a run fails; names its log.
    """
    output, options = Path(output_dir), dict(options or {})
    if not baselines or len(set(seeds)) < 2:
        raise ValueError("a comparison needs a baseline and at least two different seeds")
    _check_options(options, [*config_files, *baselines.values()])
    hashes = {str(file): file_hash(file) for file in [*config_files, *baselines.values()]}
    noted = {"files": list(config_files), "baselines": dict(baselines), "options": options, "sha256": hashes}
    _check_same(output / "comparison.json", noted)
    methods = {name: list(config_files), **{key: [*config_files, file] for key, file in baselines.items()}}
    folders = {method: [output / method / f"seed{seed}" for seed in seeds] for method in methods}
    given = {name: options, **{key: _without(options, file) for key, file in baselines.items()}}
    for position, seed in enumerate(seeds):  # seed by seed: an interrupted comparison holds complete pairs
        for method, files in methods.items():
            _run(files, folders[method][position], {**given[method], "seed": seed})
    values = {method: [read_metrics(folder) for folder in runs] for method, runs in folders.items()}
    images = {method: [read_images(folder) for folder in runs] for method, runs in folders.items()}
    return write_table(output / "comparison.csv", _rows(values, images))


def _check_options(options: Mapping[str, Any], files: Sequence[str]) -> None:
    """Refuse what MONAI would take as a new key that nothing refers to, and the seed, which each run has its own of."""
    known = {_first(key) for file in files for key in ConfigParser.load_config_file(file)}.union(OF_MONAI)
    for option in options:
        if _first(option) == "seed":
            raise ValueError("--seed is set for each run: give --seeds, a list")
        if _first(option) not in known:
            near = difflib.get_close_matches(_first(option), sorted(known), n=1, cutoff=0)[0]
            raise ValueError(f"--{option} is no key of {', '.join(map(str, files))}; the nearest is --{near}")


def _first(key: str) -> str:
    """`a` of `a#b`, `a::b` and `+a`."""
    return re.split("#|::", key.lstrip("+"))[0]


def _without(options: Mapping[str, Any], overlay: str) -> dict[str, Any]:
    """The options that an overlay leaves alone; on the command line they would replace what it sets."""
    keys = [key.lstrip("+") for key in ConfigParser.load_config_file(overlay)]
    return {option: v for option, v in options.items() if not any(f"{option}#".startswith(f"{k}#") for k in keys)}


def _check_same(path: Path, content: Mapping[str, Any]) -> None:
    """Note what is compared, or refuse to mix it with runs of before."""
    text = json.dumps(content, indent=1, default=str)
    now = json.loads(text)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
    if before != now:
        edited = [file for file, value in now["sha256"].items() if before.get("sha256", {}).get(file) != value]
        same = {**before, "sha256": now["sha256"]} == now
        what = f"{', '.join(edited)} as it was before an edit" if same else "other files or options"
        raise ValueError(f"{path.parent} holds runs of {what} (see {path.name}): give another output_dir")
    with atomic_write(path) as file:
        file.write(text.encode())


def _run(files: Sequence[str], folder: Path, options: Mapping[str, Any]) -> None:
    """Train and evaluate once, unless that was done."""
    if (folder / "evaluation" / "metrics.csv").exists():
        logger.info("%s is complete", folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    given = [text for key, value in options.items() for text in (f"--{key}", "$None" if value is None else str(value))]
    for run_id in ("training", "evaluating"):
        logger.info("%s: %s", folder, run_id)
        command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(list(files))]
        command += ["--output_dir", str(folder), "--resume", "auto", *given]
        log = folder / f"{run_id}.log"
        with open(log, "w", encoding="utf-8") as stream:
            failed = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
        if failed:
            raise RuntimeError(f"{run_id} ended with exit code {failed}, see {log}: {_reason(log)}")


def _reason(log: Path) -> str:
    """The line of a log that names the cause: of errors wrapped in others, the first."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt): ", line)]
    return [*raised[:1], *lines[-1:], "it says nothing"][0][:300]


def read_metrics(folder: Path) -> Metrics:
    """Name -> value of a run's `evaluation/metrics.csv`."""
    with open(folder / "evaluation" / "metrics.csv", newline="", encoding="utf-8") as file:
        return {row[0]: float(row[1]) for row in csv.reader(file) if len(row) == 2}


def read_images(folder: Path) -> dict[str, Metrics]:
    """Metric -> image -> mean over classes, of the `*_raw.csv` that a run's evaluation wrote."""
    found = {}
    for path in sorted((folder / "evaluation").glob("*_raw.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            found[path.name.removesuffix("_raw.csv")] = {r["filename"]: float(r["mean"]) for r in csv.DictReader(file)}
    return found


def _rows(
    values: Mapping[str, Sequence[Metrics]], images: Mapping[str, Sequence[Mapping[str, Metrics]]]
) -> list[dict[str, Any]]:
    """The table: for each metric every method, then the tests of the first method against the others."""
    first, *others = values
    rows = []
    for metric in values[first][0]:
        series = {method: [run.get(metric, math.nan) for run in runs] for method, runs in values.items()}
        for method in values:
            mean, sd = mean_sd(series[method])
            rows.append({"metric": metric, "method": method, "n": len(series[method]), "mean": mean, "sd": sd})
        for other in others:
            rows.append(_test(metric, first, other, "seeds", series[first], series[other]))
            if all(metric in run for runs in (images[first], images[other]) for run in runs):
                pair = [_mean_over_seeds([run[metric] for run in images[method]]) for method in (first, other)]
                common = sorted(pair[0].keys() & pair[1].keys())
                a, b = ([means[image] for image in common] for means in pair)
                rows.append(_test(metric, first, other, "images", a, b))
    return rows


def _mean_over_seeds(runs: Sequence[Metrics]) -> Metrics:
    """Image -> mean over the runs in which it has a value."""
    return {image: float(np.mean([run.get(image, math.nan) for run in runs])) for image in runs[0]}


def _test(metric: str, first: str, other: str, over: str, a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """One row for a paired difference; no test where fewer than two pairs have values."""
    row: dict[str, Any] = {"metric": metric, "method": f"{first} - {other}", "over": over}
    try:
        test = paired_t_test(a, b)
    except ValueError:
        return row
    names = {"n": "n", "mean": "difference", "ci_low": "ci_low", "ci_high": "ci_high", "p": "p"}
    return row | {name: test[key] for name, key in names.items()}
