"""The probe of image labels finds what is planted in the embeddings, and nothing where nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from anatomy_ssl.engines.label_probe import LabelProbe, embed_images
from anatomy_ssl.weights import save_encoder


def images(count: int, seed: int, shift: float) -> list[dict[str, Any]]:
    """Batches of noise, brighter by `shift` where the first label is 1; the second label is a coin."""
    rng = np.random.default_rng(seed)
    batches = []
    for start in range(0, count, 8):
        label = rng.integers(0, 2, (8, 2)).astype(np.float32)
        image = rng.normal(size=(8, 1, 8, 8)) + shift * label[:, :1, None, None]
        subject = [f"p{seed}_{start + n}" for n in range(8)]
        batches.append({"image": torch.from_numpy(image).float(), "label": torch.from_numpy(label), "subject": subject})
    return batches


def probe(tmp_path: Path, shift: float = 1.0, **kwargs: Any) -> LabelProbe:
    encoder = nn.Conv2d(1, 4, 4, stride=4)
    save_encoder(encoder.state_dict(), {"method": "test"}, tmp_path / "encoder.pt")
    loaders = {"train_loader": images(160, 0, shift), "test_loader": images(160, 1, shift)}
    arguments: dict[str, Any] = {
        "encoder": nn.Conv2d(1, 4, 4, stride=4),
        "checkpoints": {"trained": str(tmp_path / "encoder.pt")},
        "random_encoders": [nn.Conv2d(1, 4, 4, stride=4) for _ in range(2)],
        "labels": ["bright", "coin"],
        "output_dir": str(tmp_path),
    }
    return LabelProbe(**{**arguments, **loaders, **kwargs})


def test_finds_what_is_planted_and_no_more(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = probe(tmp_path).run()
    assert [row["encoder"] for row in rows] == ["trained", "random, mean of 2", "random, sd of 2"]
    assert rows[0]["bright"] > 0.95
    assert 0.35 < rows[0]["coin"] < 0.65
    assert rows[0]["mean_auc"] == pytest.approx((rows[0]["bright"] + rows[0]["coin"]) / 2)
    assert (tmp_path / "probe.csv").is_file()


def test_is_repeatable(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = probe(tmp_path, shift=0.1)
    assert one.run() == one.run()


def test_unknown_labels_are_left_out(tmp_path: Path) -> None:
    """An unknown label takes its image out of that label alone."""
    torch.manual_seed(0)
    whole = probe(tmp_path)
    rows = whole.run()
    train = [{**b, "label": torch.cat([b["label"][:, :1], torch.full((8, 1), torch.nan)], 1)} for b in images(8, 5, 0)]
    extended = probe(tmp_path)
    extended.encoders, extended.random_encoders = whole.encoders, whole.random_encoders
    extended.loaders = ([*whole.loaders[0], *train], whole.loaders[1])
    found = extended.run()
    assert found[0]["coin"] == rows[0]["coin"]
    assert found[0]["bright"] != rows[0]["bright"]


def test_says_which_label_has_one_value(tmp_path: Path) -> None:
    test = [{**batch, "label": torch.ones(8, 2)} for batch in images(16, 1, 0.0)]
    with pytest.raises(ValueError, match="'bright' has one value only in the held-out images"):
        probe(tmp_path, test_loader=test).run()


def test_nothing_without_random_encoders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="random"):
        probe(tmp_path, random_encoders=[])


def test_embedding_is_the_mean_token_and_keeps_the_mode() -> None:
    encoder = nn.Conv2d(1, 3, 4, stride=4).train()
    batch = images(8, 0, 0.0)[0]
    features = embed_images(encoder, [batch], "cpu")
    expected = encoder(batch["image"]).flatten(2).mean(dim=2)
    np.testing.assert_allclose(features.values, expected.detach().numpy(), rtol=1e-6)
    assert encoder.training


def rare(positive: int, count: int = 40) -> list[dict[str, Any]]:
    """One batch of which the first images have the label, which shows faintly in them."""
    label = (torch.arange(count) < positive).float()[:, None]
    noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return [
        {"image": noise + 0.2 * label[:, :, None, None], "label": label, "subject": [f"p{i}" for i in range(count)]}
    ]


def test_rare_label_is_judged_by_the_folds_that_have_it(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Three patients cannot be in five folds: the others must not turn every choice into NaN."""
    probe(tmp_path, train_loader=rare(3), test_loader=rare(20), labels=["faint"], folds=5).run()
    assert not [w for w in recwarn if "non-finite" in str(w.message) or "not defined" in str(w.message)]


def test_label_of_one_patient_is_refused(tmp_path: Path) -> None:
    """Without it in both parts of any fold nothing could be chosen."""
    with pytest.raises(ValueError, match=r"too few training patients have label 'faint'.*leave it out"):
        probe(tmp_path, train_loader=rare(1), test_loader=rare(20), labels=["faint"]).run()
