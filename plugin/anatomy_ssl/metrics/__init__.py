"""What is computed on embeddings: position, collapse, probes and their statistics."""

from anatomy_ssl.metrics.alignment import AlignmentQuality
from anatomy_ssl.metrics.auc import MultiLabelAUC, auc_per_label, bootstrap_auc, probabilities
from anatomy_ssl.metrics.classes import ClassMean
from anatomy_ssl.metrics.collapse import rankme, spread
from anatomy_ssl.metrics.dice import ClassDice
from anatomy_ssl.metrics.grid import GridQuality
from anatomy_ssl.metrics.points import PointError
from anatomy_ssl.metrics.position import (
    cross_fitted_position_scores,
    fit_position,
    pair_distances,
    position_scores,
    position_table,
    rho_across,
    rho_per_subject,
    rho_within,
    subject_pairs,
)
from anatomy_ssl.metrics.probe import cross_validate, linear_probe, patient_folds, probe_rows, read_probe
from anatomy_ssl.metrics.quality import EmbeddingQuality, embedding_and_position
from anatomy_ssl.metrics.statistics import comparison_table, mean_sd, paired_t_test
from anatomy_ssl.metrics.tables import markdown_table, write_table

__all__ = [
    "AlignmentQuality",
    "ClassDice",
    "ClassMean",
    "EmbeddingQuality",
    "GridQuality",
    "MultiLabelAUC",
    "PointError",
    "auc_per_label",
    "bootstrap_auc",
    "comparison_table",
    "cross_fitted_position_scores",
    "cross_validate",
    "embedding_and_position",
    "fit_position",
    "linear_probe",
    "markdown_table",
    "mean_sd",
    "pair_distances",
    "paired_t_test",
    "patient_folds",
    "position_scores",
    "position_table",
    "probabilities",
    "probe_rows",
    "rankme",
    "read_probe",
    "rho_across",
    "rho_per_subject",
    "rho_within",
    "spread",
    "subject_pairs",
    "write_table",
]
