"""Encoder, decoder, head and alignment of anatomical invariance with semantic alignment (Alice)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from anatomy_ssl.networks.casa import ConditionalAlignment
from anatomy_ssl.networks.distillation_head import DistillationHead

__all__ = ["AliceNetwork"]

OBJECTIVES = ("global", "patch", "reconstruction")


class AliceNetwork(nn.Module):
    """Student or teacher of two views of the same anatomy (Jiang et al. 2023, arXiv 2302.05615).

    To be put into a `StudentTeacher`. The student sees both views masked and runs whole; the teacher sees them whole
    and runs only as far as its outputs ask for: in the default, no further than the encoder. Each takes both views in
    one batch. 2D and 3D.

    Tokens are the cells of the deepest map (T of them) and of the decoder's first map, both projected to one width. The
    aligned tokens are CASA's answer to the student's deepest tokens: the student's CASA reads what the student has
    decoded, the teacher's own CASA reads the teacher's tokens, asked by the student's.

    Outputs, with F the channels of the deepest map and K the prototypes:

    - `cls_1`, `cls_2` `(N, K)`: scores of a view's mean token; teacher too;
    - `aligned_1`, `aligned_2` `(N, T, K)`: scores of the aligned tokens; teacher too;
    - `pooled_1`, `pooled_2` `(N, F)`: the mean token itself, detached, for metrics; teacher too;
    - `tokens_1`, `tokens_2` `(N, T, width)`: the deepest tokens as CASA is asked with them;
    - `restored_1`, `restored_2` `(N, C, *spatial)`: the decoder's images.

    Args:
        backbone: `encode(x)` -> maps from fine to coarse, `first_decoder(maps)`, `restore(maps, first)`, and their
            widths `num_features` and `decoder_features`: `SwinUNETRStages`, `HierarchicalTransformer`.
        hidden: width of the head's hidden layers.
        bottleneck: length of the head's unit vectors.
        prototypes: K.
        width: of the projected tokens and of CASA.
        heads: of CASA.
        head_features: of each of CASA's heads.
        feedforward: width of CASA's hidden layer.
        dropout: of CASA, for the student alone.
        teacher_tokens: what the teacher's CASA reads: the deepest tokens of its "encoder" (the paper's figure), or
            those of its "decoder" (the release).
        align: "tokens" aligns projected tokens and scores the result; "outputs" aligns the head's scores (the release),
            for which `prototypes` and `width` have to be equal. Then scores are no cosines, and the teacher's
            distribution is close to one prototype a token.
        standardise: see `DistillationHead`; views of one pair alone would be pushed apart, so give two pairs or more.
        objectives: the losses' terms, of "global", "patch" and "reconstruction": what only others need is left out.

    Raises:
        ValueError: for other words, or scores that CASA cannot take.
    """

    def __init__(
        self,
        backbone: nn.Module,
        hidden: int = 2048,
        bottleneck: int = 256,
        prototypes: int = 512,
        width: int = 512,
        heads: int = 8,
        head_features: int = 64,
        feedforward: int = 2048,
        dropout: float = 0.1,
        teacher_tokens: str = "encoder",
        align: str = "tokens",
        standardise: bool = False,
        objectives: Collection[str] = OBJECTIVES,
    ) -> None:
        super().__init__()
        _check("teacher_tokens", [teacher_tokens], ("encoder", "decoder"))
        _check("align", [align], ("tokens", "outputs"))
        _check("objectives", objectives, OBJECTIVES)
        if align == "outputs" and prototypes != width:
            raise ValueError(f"to align outputs, prototypes {prototypes} and width {width} have to be equal")
        self.teacher_tokens, self.align, self.objectives = teacher_tokens, align, tuple(objectives)
        self.backbone = backbone
        if "global" in objectives or "patch" in objectives:
            self.encoder_projection = nn.Linear(int(backbone.num_features), width)  # type: ignore[arg-type]
            self.head = DistillationHead(width, hidden, bottleneck, prototypes, standardise=standardise)
        if "patch" in objectives:
            self.decoder_projection = nn.Linear(int(backbone.decoder_features), width)  # type: ignore[arg-type]
            self.casa = ConditionalAlignment(width, heads, head_features, feedforward, dropout)

    def forward(
        self, x: Mapping[str, Sequence[torch.Tensor]], student: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Run as the student, or as the teacher of a student that has run.

        Args:
            x: two views `(N, C, *spatial)` each, "masked" for the student and "whole" for the teacher.
            student: the student's outputs on the same views; None for the student itself.

        Returns:
            The outputs by name; see the list above.
        """
        return self._as_student(x["masked"]) if student is None else self._as_teacher(x["whole"], student)

    def _as_student(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Everything."""
        maps = self.backbone.encode(torch.cat(list(views)))  # type: ignore[operator]
        tokens = _tokens(maps[-1])  # (2N, T, F)
        outputs = self._whole_views(tokens)
        if {"patch", "reconstruction"} & set(self.objectives):
            first = self.backbone.first_decoder(maps)  # type: ignore[operator]
        if "patch" in self.objectives:
            query = self._project(self.encoder_projection, tokens)
            outputs |= _by_view("tokens", query)
            outputs |= self._aligned(query, self._project(self.decoder_projection, _tokens(first)))
        if "reconstruction" in self.objectives:
            outputs |= _by_view("restored", self.backbone.restore(maps, first))  # type: ignore[operator]
        return outputs

    def _as_teacher(
        self, views: Sequence[torch.Tensor], student: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What losses compare with, asked by the student's tokens."""
        if not {"global", "patch"} & set(self.objectives):
            return {}
        maps = self.backbone.encode(torch.cat(list(views)))  # type: ignore[operator]
        tokens = _tokens(maps[-1])
        outputs = self._whole_views(tokens)
        if "patch" in self.objectives:
            projection = self.encoder_projection
            if self.teacher_tokens == "decoder":
                projection, tokens = self.decoder_projection, _tokens(self.backbone.first_decoder(maps))  # type: ignore[operator]
            query = torch.cat([student["tokens_1"], student["tokens_2"]])
            outputs |= self._aligned(query, self._project(projection, tokens))
        return outputs

    def _whole_views(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean tokens and their scores."""
        pooled = tokens.mean(dim=1)  # (2N, F)
        outputs = _by_view("pooled", pooled.detach())
        if "global" in self.objectives:
            outputs |= _by_view("cls", self.head(self.encoder_projection(pooled)))
        return outputs

    def _project(self, projection: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens as CASA takes them, `(2N, T, width)`."""
        projected = projection(tokens)
        return self.head(projected) if self.align == "outputs" else projected

    def _aligned(self, query: torch.Tensor, context: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores of the tokens that answer the query."""
        aligned = self.casa(query, context)
        return _by_view("aligned", aligned if self.align == "outputs" else self.head(aligned))


def _check(name: str, words: Collection[str], known: Sequence[str]) -> None:
    """Refuse words that are not known."""
    if unknown := sorted(set(words) - set(known)):
        raise ValueError(f"{name} takes {', '.join(known)}, not {', '.join(map(str, unknown))}")


def _tokens(found: torch.Tensor) -> torch.Tensor:
    """Cells of a map `(N, F, *grid)` as tokens `(N, T, F)`."""
    return found.flatten(2).mT


def _by_view(name: str, stacked: torch.Tensor) -> dict[str, torch.Tensor]:
    """The halves of a batch of two views under their names."""
    return {f"{name}_{number}": half for number, half in enumerate(stacked.chunk(2), start=1)}
