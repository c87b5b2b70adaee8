from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from anatomy_ssl.losses import BarlowTwinsLoss, PhysicalDistanceLoss, WeightedSumLoss

TERMS = {"distance": PhysicalDistanceLoss(), "barlow": BarlowTwinsLoss()}
ARGUMENTS = {"distance": ["embedding", "position", "subject"], "barlow": ["view_1", "view_2"]}


class Never(nn.Module):
    """A term that has to stay unevaluated."""

    def forward(self, *tensors: Tensor) -> Tensor:
        raise AssertionError


def batch(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    outputs = {name: torch.randn(8, 4, generator=generator) for name in ("embedding", "view_1", "view_2")}
    position = torch.rand(8, 3, generator=generator) * 100
    return outputs, {"position": position, "subject": torch.arange(8) // 4}


def test_sum_of_weighted_terms_and_logged_values() -> None:
    outputs, targets = batch()
    outputs["view_1"].requires_grad_()
    loss = WeightedSumLoss(TERMS, ARGUMENTS, {"barlow": 10.0})
    total = loss(outputs, targets)
    distance = TERMS["distance"](outputs["embedding"], targets["position"], targets["subject"])
    barlow = TERMS["barlow"](outputs["view_1"], outputs["view_2"])
    torch.testing.assert_close(total, distance + 10 * barlow)
    assert total.requires_grad
    assert total.ndim == 0
    assert list(loss.values) == ["distance", "barlow", "loss"]
    for name, value in {"distance": distance, "barlow": barlow, "loss": total}.items():
        torch.testing.assert_close(loss.values[name], value.detach())
        assert not loss.values[name].requires_grad


def test_weights_scale_the_gradient_and_may_be_scheduled() -> None:
    outputs, targets = batch()
    z = outputs["embedding"].requires_grad_()
    loss = WeightedSumLoss({"distance": TERMS["distance"]}, {"distance": ARGUMENTS["distance"]})
    (one,) = torch.autograd.grad(loss(outputs, targets), z)
    loss.weights["distance"] = 3.0
    (three,) = torch.autograd.grad(loss(outputs, targets), z)
    torch.testing.assert_close(three, 3 * one)


def test_a_term_of_weight_zero_is_off() -> None:
    outputs, targets = batch()
    loss = WeightedSumLoss(TERMS | {"barlow": Never()}, ARGUMENTS, {"barlow": 0})
    loss(outputs, targets)
    assert list(loss.values) == ["distance", "loss"]


def test_outputs_are_looked_up_before_targets() -> None:
    term = WeightedSumLoss({"mse": nn.MSELoss()}, {"mse": ["a", "b"]})
    assert term({"a": torch.ones(3)}, {"a": torch.zeros(3), "b": torch.ones(3)}).item() == 0


def test_missing_tensor_names_the_term_and_what_is_there() -> None:
    outputs, targets = batch()
    del targets["subject"]
    with pytest.raises(ValueError, match=r"'distance' needs 'subject'.*embedding.*view_1.*position"):
        WeightedSumLoss(TERMS, ARGUMENTS)(outputs, targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terms": {}}, "empty"),
        ({"terms": TERMS | {"loss": nn.MSELoss()}}, "'loss'"),
        ({"terms": TERMS | {"a.b": nn.MSELoss()}}, "a.b"),
        ({"arguments": ARGUMENTS | {"typo": ["a"]}}, "`arguments` names unknown terms .'typo'"),
        ({"arguments": {"distance": ["a"]}}, "barlow"),
        ({"arguments": ARGUMENTS | {"barlow": "view_1"}}, "barlow"),
        ({"weights": {"typo": 1.0}}, "`weights` names unknown terms .'typo'"),
        ({"weights": {"barlow": -1.0}}, "barlow"),
        ({"weights": {"barlow": float("nan")}}, "barlow"),
    ],
)
def test_bad_setting_is_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedSumLoss(**({"terms": TERMS, "arguments": ARGUMENTS} | change))


def test_nothing_to_train_or_no_scalar_is_an_error() -> None:
    with pytest.raises(ValueError, match="Every weight is 0"):
        WeightedSumLoss(TERMS, ARGUMENTS, {"distance": 0, "barlow": 0})(*batch())
    with pytest.raises(ValueError, match=r"'mse'.*scalar"):
        WeightedSumLoss({"mse": nn.MSELoss(reduction="none")}, {"mse": ["view_1", "view_2"]})(*batch())


def test_runs_in_monais_trainer_from_a_config() -> None:
    config = {
        "loss": {
            "_target_": "anatomy_ssl.losses.WeightedSumLoss",
            "terms": {"distance": {"_target_": "anatomy_ssl.losses.PhysicalDistanceLoss", "reference_length": 10.0}},
            "arguments": {"distance": ["embedding", "position", "subject"]},
            "weights": {"distance": 0.5},
        }
    }
    loss = ConfigParser(config).get_parsed_content("loss")
    outputs, targets = batch()

    class Network(nn.Linear):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"embedding": super().forward(x)}

    network = Network(4, 2)
    before = network.weight.detach().clone()
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": outputs["embedding"], "label": targets}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=loss,
        prepare_batch=lambda data, *_, **__: (data["image"], data["label"]),
    )
    trainer.run()
    assert not torch.equal(network.weight, before)
    assert set(loss.values) == {"distance", "loss"}
    assert trainer.state.output[0]["loss"] == pytest.approx(loss.values["loss"].item())
