"""The teacher's moving average: a loop over parameters, as the public code of MoCo and DINO has it, beside one call.

The network is PEAC's: Swin-B and its heads, whose largest layers have 67 million weights.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from anatomy_ssl.handlers import MomentumTeacher

from .bundles import recipe
from .timing import Row, Settings, alternate, compare, median

MOMENTUM = 0.99
SMALLER = {"encoder#depths": [2, 2, 6, 2], "encoder#embed_dim": 64, "global_features": 4096}
TINY = {"encoder#depths": [2, 2, 2, 2], "encoder#embed_dim": 32, "global_features": 8, "local_features": 8}


def run(settings: Settings) -> list[Row]:
    """A row each for the loop with a product in between and for the loop in place."""
    parser = recipe("peac", settings.folder, [], **settings.pick({}, SMALLER, TINY))
    network = parser.get_parsed_content("network_def").to(settings.device)
    handler = MomentumTeacher(network, MOMENTUM, MOMENTUM)
    engine: Any = SimpleNamespace(state=SimpleNamespace(iteration=1, max_epochs=1, epoch_length=1))

    @torch.no_grad()
    def loop() -> None:
        for mine, theirs in zip(network.teacher.parameters(), network.student.parameters()):
            mine.data.mul_(MOMENTUM).add_((1 - MOMENTUM) * theirs.detach().data)

    @torch.no_grad()
    def loop_in_place() -> None:
        for mine, theirs in zip(network.teacher.parameters(), network.student.parameters()):
            mine.mul_(MOMENTUM).add_(theirs, alpha=1 - MOMENTUM)

    ways = {"loop": loop, "loop in place": loop_in_place, "ours": lambda: handler(engine)}
    spent = alternate(ways, settings.repeats, settings.device)
    sizes = [weights.numel() for weights in network.student.parameters()]
    what = f"average of {sum(sizes) / 1e6:.0f} million weights in {len(sizes)} tensors, by a loop"
    moved = 3 * 4 * sum(sizes) / median(spent["ours"].wall) / 1e9  # two tensors read, one written
    note = f"ours moves {moved:.0f} GB/s"
    return [
        compare(what, spent["loop"], spent["ours"], 5, note),
        compare(f"{what} in place", spent["loop in place"], spent["ours"]),
    ]
