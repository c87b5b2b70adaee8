"""The losses written as plain loops over Python floats, from the formulas; slow, used as oracles."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def distance_loss(embedding: Rows, position: Rows, subject: Sequence[int] | None, reference_length: float) -> float:
    """Mean over pairs i < j (of one subject, where subjects are given) of the squared difference of distances."""
    errors = []
    for j in range(len(embedding)):
        for i in range(j):
            if subject is None or subject[i] == subject[j]:
                latent = math.dist(embedding[i], embedding[j])
                physical = math.dist(position[i], position[j]) / reference_length
                errors.append((latent - physical) ** 2)
    return sum(errors) / len(errors)


def barlow_loss(view_1: Rows, view_2: Rows, redundancy_weight: float, epsilon: float) -> float:
    """Zbontar et al. 2021, equation 1, over the number of features."""
    features = len(view_1[0])
    one, two = _standardised_columns(view_1, epsilon), _standardised_columns(view_2, epsilon)
    loss = 0.0
    for i in range(features):
        for j in range(features):
            correlation = sum(a * b for a, b in zip(one[i], two[j])) / len(view_1)
            loss += (correlation - 1) ** 2 if i == j else redundancy_weight * correlation**2
    return loss / features


def _standardised_columns(rows: Rows, epsilon: float) -> list[list[float]]:
    columns = []
    for column in zip(*rows):
        mean = sum(column) / len(column)
        variance = sum((value - mean) ** 2 for value in column) / len(column)
        columns.append([(value - mean) / math.sqrt(variance + epsilon) for value in column])
    return columns


def ntxent_loss(view_1: Rows, view_2: Rows, temperature: float) -> float:
    """Chen et al. 2020, equation 1, averaged over both directions of every pair."""
    views = [*view_1, *view_2]
    count = len(view_1)
    losses = []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        candidates = [math.exp(_cosine(views[i], views[k]) / temperature) for k in range(2 * count) if k != i]
        losses.append(-math.log(math.exp(_cosine(views[i], views[partner]) / temperature) / sum(candidates)))
    return sum(losses) / len(losses)


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / (math.hypot(*a) * math.hypot(*b))


def coordinate_loss(prediction: Rows, position: Rows, reference_length: float) -> float:
    """Mean over crops and axes of the squared error in units of the reference length."""
    errors = []
    for predicted, true in zip(prediction, position):
        errors += [(p - c / reference_length) ** 2 for p, c in zip(predicted, true)]
    return sum(errors) / len(errors)
