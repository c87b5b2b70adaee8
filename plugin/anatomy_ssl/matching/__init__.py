"""Points in one volume to the same anatomy in another, millimetres to millimetres."""

from anatomy_ssl.matching.build import build_matcher
from anatomy_ssl.matching.dense import DenseEmbedding, embed_volume
from anatomy_ssl.matching.embedding import EmbeddingMatcher
from anatomy_ssl.matching.matcher import Matcher, Matches, round_trip
from anatomy_ssl.matching.neighbourhood import NeighbourhoodMatcher
from anatomy_ssl.matching.position import PositionMatcher
from anatomy_ssl.matching.recipe import EmbeddingRecipe
from anatomy_ssl.matching.registration import RegistrationMatcher
from anatomy_ssl.matching.world import WorldMatcher

__all__ = [
    "DenseEmbedding",
    "EmbeddingMatcher",
    "EmbeddingRecipe",
    "Matcher",
    "Matches",
    "NeighbourhoodMatcher",
    "PositionMatcher",
    "RegistrationMatcher",
    "WorldMatcher",
    "build_matcher",
    "embed_volume",
    "round_trip",
]
