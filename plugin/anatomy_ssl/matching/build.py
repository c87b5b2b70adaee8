"""A matcher by name, or from a file of configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from anatomy_ssl.matching.embedding import EmbeddingMatcher
from anatomy_ssl.matching.matcher import Matcher
from anatomy_ssl.matching.neighbourhood import NeighbourhoodMatcher
from anatomy_ssl.matching.registration import RegistrationMatcher
from anatomy_ssl.matching.world import WorldMatcher

__all__ = ["build_matcher"]

NAMES = ("embedding", "registration", "world")
NEEDED = (
    "the embedding matcher needs --embedding FILE, the embedding.pt of pretrain_embedding.yaml, and --store DIR, where "
    "embeddings of volumes are kept"
)


def build_matcher(
    matcher: str = "embedding",
    embedding: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    neighbours: int = 0,
    radius: float = 24.0,
    **keys: Any,
) -> Matcher:
    """Build what `--matcher` names.

    Args:
        matcher: embedding, registration or world; or a YAML or JSON file whose key `matcher` is one, such as
            `bundles/alice/configs/matcher_position.yaml`.
        embedding: embedding.pt, for the embedding matcher.
        store: folder for embeddings and registrations; None keeps registrations in memory only.
        device: where networks run.
        neighbours: points around each point that are matched too and have a vote, see `NeighbourhoodMatcher`; 0 for
            none.
        radius: mm within which they lie.
        keys: of the file, to be replaced; for a name, arguments of the matcher.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is unknown, an argument is missing, or the file defines no matcher.
    """
    named = matcher in NAMES
    found = (_named if named else _from_file)(matcher, embedding, store, device, keys)
    return NeighbourhoodMatcher(found, points=int(neighbours), radius=float(radius)) if int(neighbours) else found


def _from_file(
    matcher: str,
    embedding: str | os.PathLike[str] | None,
    store: str | os.PathLike[str] | None,
    device: str,
    keys: dict[str, Any],
) -> Matcher:
    """The one that a file of configuration describes."""
    file = Path(matcher)
    if file.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ValueError(f"unknown matcher {matcher!r}: choose {', '.join(NAMES)} or give a YAML file with one")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}: give a YAML file with the key matcher")
    config = ConfigParser.load_config_file(file)
    if "matcher" not in config:
        raise ValueError(f"{file} has no key matcher: add matcher: {{_target_: ...}}")
    given = {"embedding": embedding, "store": store}
    defaults: dict[str, Any] = {"bundle_root": str(file.absolute().parent.parent), "device": device, "min_score": None}
    defaults |= {key: None if value is None else str(value) for key, value in given.items()}
    # what the file says of itself is kept, unless the command says otherwise
    asked = {key: value for key, value in defaults.items() if key not in config or given.get(key) is not None}
    unknown = [key for key in keys if key.split("#")[0].split("::")[0] not in config]
    if unknown:
        raise ValueError(f"{file} has no key {unknown[0]!r}: it has {', '.join(map(str, config))}")
    parser = ConfigParser(config)
    parser.update(asked | keys)
    taken = [name for name in given if parser.get(f"matcher#{name}") == f"@{name}"]
    if any(parser[name] is None for name in taken):
        raise ValueError(NEEDED)
    return parser.get_parsed_content("matcher")


def _named(
    name: str,
    embedding: str | os.PathLike[str] | None,
    store: str | os.PathLike[str] | None,
    device: str,
    keys: dict[str, Any],
) -> Matcher:
    """One of the matchers that need no file."""
    try:
        if name == "world":
            return WorldMatcher(**keys)
        if name == "registration":
            return RegistrationMatcher(store=store, **keys)
        if embedding is None or store is None:
            raise ValueError(NEEDED)
        return EmbeddingMatcher(embedding=str(embedding), store=str(store), device=device, compute=True, **keys)
    except TypeError as error:
        raise ValueError(f"the {name} matcher: {error}") from error
