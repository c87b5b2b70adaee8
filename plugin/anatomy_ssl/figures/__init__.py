"""The papers' figures. matplotlib, umap-learn and Pillow (extra `figures`) are imported when a figure is drawn."""

from anatomy_ssl.figures.crops import crop_overview, crop_overview_image
from anatomy_ssl.figures.curves import training_curves
from anatomy_ssl.figures.distances import distance_difference_histogram
from anatomy_ssl.figures.draw import draw_figures
from anatomy_ssl.figures.pairs import view_rows_image
from anatomy_ssl.figures.probes import auc_per_fold
from anatomy_ssl.figures.projections import pca_against_axes, umap_by_axis
from anatomy_ssl.figures.views import grid_view_image

__all__ = [
    "auc_per_fold",
    "crop_overview",
    "crop_overview_image",
    "distance_difference_histogram",
    "draw_figures",
    "grid_view_image",
    "pca_against_axes",
    "training_curves",
    "umap_by_axis",
    "view_rows_image",
]
