"""Weights: export an encoder with its provenance, load one into any network, and refuse what does not fit."""

from anatomy_ssl.weights.files import file_hash, fingerprint, read_state, read_weights, settings_of
from anatomy_ssl.weights.loading import check_recipe, load_pretrained, pretrained
from anatomy_ssl.weights.record import WeightsSummary, export_encoder, inspect, save_encoder, training_record
from anatomy_ssl.weights.released import import_released
from anatomy_ssl.weights.report import LoadReport

__all__ = [
    "LoadReport",
    "WeightsSummary",
    "check_recipe",
    "export_encoder",
    "file_hash",
    "fingerprint",
    "import_released",
    "inspect",
    "load_pretrained",
    "pretrained",
    "read_state",
    "read_weights",
    "save_encoder",
    "settings_of",
    "training_record",
]
