"""Plain ways beside this package's: seconds and megabytes side by side, and their ratios.

    python -m benchmarks [NAMES ...] [--quick] [--device cpu|cuda] [--markdown FILE] [--json FILE] [--plot FILE]

Both ways of a row run in turn in one process, after a warm-up; the ratio is the median of the ratios of neighbouring
repeats, with the least and the largest. Ratios last across machines, seconds do not; let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from .machine import describe, memory
from .report import markdown, plain_text, plot, write_json
from .timing import Row, Settings

BENCHMARKS = ("feeds", "losses", "averaging", "matching", "steps", "growth", "machine")


@contextmanager
def _no_warnings_logged() -> Iterator[None]:
    """The recipes' own words would tear the table apart."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Row]]:
    """Run the named benchmarks, or all."""
    options = argparse.ArgumentParser("benchmarks", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", metavar="NAMES", help=f"of {', '.join(BENCHMARKS)}; all by default")
    options.add_argument("--quick", action="store_const", const="quick", dest="size", help="minutes, less exact")
    options.add_argument("--tiny", action="store_const", const="tiny", dest="size", help="for tests; tells nothing")
    options.add_argument("--device", type=torch.device, default="cpu", help="of losses, averages and steps")
    options.add_argument("--memory", type=float, default=memory() / 2e9, help="GB that a benchmark may take")
    for name in ("markdown", "json", "plot"):
        options.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write the table there as {name}")
    chosen = options.parse_args(arguments)
    if unknown := sorted(set(chosen.names) - set(BENCHMARKS)):
        options.error(f"there is no benchmark {', '.join(unknown)}: {', '.join(BENCHMARKS)}")
    size, rows = chosen.size or "full", {}
    for name in chosen.names or BENCHMARKS:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _no_warnings_logged():
            warnings.simplefilter("ignore")
            settings = Settings(size, chosen.device, Path(folder), chosen.memory * 1e9)
            rows[name] = importlib.import_module(f"benchmarks.{name}").run(settings)
        print(f"\n{name}, {time.perf_counter() - begun:.0f} s\n{plain_text(rows[name])}", flush=True)
    if chosen.markdown:
        chosen.markdown.write_text(markdown(rows))
    if chosen.json:
        write_json(chosen.json, rows, describe(chosen.device), size)
    if chosen.plot:
        plot(chosen.plot, rows)
    return rows


if __name__ == "__main__":
    main()
