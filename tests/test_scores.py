"""Test that probabilities, log-probabilities and logits are told apart, whatever made them.

The oracles are torch's arithmetic, scikit-learn (log loss) and torchmetrics (calibration).
"""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchmetrics.functional.classification import multiclass_calibration_error

from cifar_resnet import compute_cams, find_misclassified
from cifar_resnet.misclassified.scores import class_scores

SAMPLES, CLASSES = 300, 10
Output = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """A small network with random weights, whose logits pass through a function."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, 1, bias=False)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            nn.init.normal_(self.conv.weight, std=6.0)
        self.output = output

    def logits(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.logits(images))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(SAMPLES, 3, 4, 4, generator=generator)
    return TensorDataset(images, torch.randint(CLASSES, (SAMPLES,), generator=generator))


def softmax(x: Tensor) -> Tensor:
    return x.softmax(1)


with warnings.catch_warnings(action="ignore"):  # deprecated, but such models remain
    scripted_softmax = torch.jit.script(softmax)


def in_place(x: Tensor) -> Tensor:
    p = x.softmax(1)
    p[:, 0] *= 2
    return p / p.sum(1, keepdim=True)


def last_by_difference(x: Tensor) -> Tensor:
    first = x.softmax(1)[:, :-1]
    return torch.cat([first, 1 - first.sum(1, keepdim=True)], 1)


PROBABILITIES: dict[str, Output] = {
    "view": lambda x: F.softmax(x, 1).view(len(x), -1),
    "clamp": lambda x: x.softmax(-1).clamp(1e-7, 1 - 1e-7),
    "rough clamp": lambda x: x.softmax(-1).clamp(min=1e-3),
    "exp of log-softmax": lambda x: torch.log_softmax(x, 1).exp(),
    "ensemble": lambda x: (x.softmax(1) + (x / 3).softmax(1)) / 2,
    "4-D softmax": lambda x: F.softmax(x[:, :, None, None], dim=1).flatten(1),
    "Softmax2d": lambda x: nn.Softmax2d()(x[:, :, None, None])[:, :, 0, 0],
    "torch.special": lambda x: torch.special.softmax(x, 1),
    "scripted": scripted_softmax,
    "by hand": lambda x: x.exp() / x.exp().sum(1, keepdim=True),
    "keyword": lambda x: torch.softmax(input=x, dim=1) * 1,
    "temperature": lambda x: (x / 2.5).softmax(1) + 0,
    "softmin": lambda x: F.softmin(-x, 1),
    "in place": in_place,
    "by difference": last_by_difference,
    "float64": lambda x: x.double().softmax(1),
    "float16": lambda x: x.softmax(1).half(),
    "bfloat16": lambda x: x.bfloat16().softmax(1),
    "bfloat16 and back": lambda x: x.bfloat16().softmax(1).float(),
    "smoothed": lambda x: 0.9 * x.softmax(1) + 0.1 / CLASSES,
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_are_not_normalized_a_second_time(name: str) -> None:
    model, samples = Network(PROBABILITIES[name]), data()
    images, labels = samples.tensors
    with torch.no_grad():
        expected = model(images).double()
    expected /= expected.sum(1, keepdim=True)
    rounding = 5e-3 if "float16" in name else 1e-5
    found = find_misclassified(model, samples, sort_by="index", batch_size=64)
    wrong = (expected.argmax(1) != labels).nonzero()[:, 0]
    assert [sample.index for sample in found] == wrong.tolist()
    assert 0.3 < float(expected.amax(1).mean()) < 0.95  # twice normalized: at most 0.24
    got = torch.stack([sample.probabilities for sample in found])
    assert torch.allclose(got.double(), expected[wrong], atol=rounding)
    losses = [sample.loss for sample in found]
    assert sum(losses) / len(losses) == pytest.approx(
        log_loss(labels[wrong], expected[wrong], labels=range(CLASSES)),
        rel=0.06 if name in ("clamp", "float16") else 1e-3,  # their smallest probabilities differ
    )
    error = multiclass_calibration_error(expected, labels, CLASSES, n_bins=15, norm="l1")
    assert found.calibration.expected_error == pytest.approx(float(error), abs=rounding)


LOG_PROBABILITIES: dict[str, Output] = {
    "log of softmax": lambda x: x.softmax(1).log(),
    "special": lambda x: torch.special.log_softmax(x, 1),
    "by hand": lambda x: x - x.logsumexp(1, keepdim=True),
    "4-D": lambda x: F.log_softmax(x[:, :, None, None], 1).flatten(1),
    "logits": lambda x: x,
    "positive logits": lambda x: x - x.min() + 1,
    "negative logits": lambda x: x - x.max() - 1,
    "logits from 0 to 1": lambda x: (x - x.min()) / (x.max() - x.min()),
}


@pytest.mark.parametrize("name", LOG_PROBABILITIES)
def test_logits_and_log_probabilities_are_normalized(name: str) -> None:
    model, samples = Network(LOG_PROBABILITIES[name]), data()
    with torch.no_grad():
        expected = model(samples.tensors[0]).softmax(1)
    found = find_misclassified(model, samples)
    for sample in found:
        assert torch.allclose(sample.probabilities, expected[sample.index], atol=1e-6)


def test_probabilities_of_zero_have_a_finite_loss() -> None:
    model = Network(lambda x: F.one_hot(x.argmax(1), CLASSES).float())
    found = find_misclassified(model, data())
    assert found[0].confidence == 1
    assert found[0].loss == pytest.approx(-torch.tensor(torch.finfo(torch.float32).tiny).log())
    scores = class_scores(Network(lambda x: (1e3 * x).softmax(1).log()), data().tensors[0])
    assert scores.isfinite().all()  # the logits, although most logarithms are -inf
    scripted = class_scores(Network(lambda x: scripted_softmax(1e3 * x).log()), data().tensors[0])
    assert scripted.isfinite().all()


@pytest.mark.parametrize(
    "output",
    [
        torch.sigmoid,
        lambda x: x.sigmoid().clamp(1e-7, 1 - 1e-7),
        lambda x: torch.special.expit(x[:, :, None, None]).flatten(1),
        lambda x: nn.Sigmoid()(x).view(len(x), -1),
    ],
)
def test_a_sigmoid_changes_nothing(output: Output) -> None:
    plain = find_misclassified(Network(lambda x: x), data(), sort_by="index")
    found = find_misclassified(Network(output), data(), sort_by="index")
    assert [sample.index for sample in found] == [sample.index for sample in plain]
    for ours, other in zip(found, plain, strict=True):
        assert torch.equal(ours.probabilities, other.probabilities)


def test_a_sigmoid_whose_scores_sum_to_one_gives_probabilities() -> None:
    class Binary(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = images.mean((1, 2, 3))
            return torch.stack([score, -score], 1).sigmoid()

    images = torch.full((1, 3, 4, 4), 0.75)
    found = find_misclassified(Binary(), TensorDataset(images, torch.tensor([1])))
    assert found[0].confidence == pytest.approx(float(torch.tensor(0.75).sigmoid()))


@pytest.mark.parametrize(
    "output",
    [
        lambda x: F.softmax(x, dim=0),
        lambda x: F.log_softmax(x, dim=0),
        lambda x: F.softmax(x[:, :, None, None], 0).flatten(1),
        lambda x: x.exp() / x.exp().sum(0),
        lambda x: x - x.logsumexp(0),
        lambda x: torch.softmax(x.t(), -1).t(),
        lambda x: F.softmax(x[:, :, None, None], 2).flatten(1),
    ],
)
def test_a_softmax_over_the_images_is_reported(output: Output) -> None:
    message = r"applies a softmax over dimension \d of scores of shape .*such as .*dim=1"
    with pytest.raises(ValueError, match=message):
        find_misclassified(Network(output), data())


def test_a_softmax_over_a_batch_of_one_image_is_reported() -> None:
    with pytest.raises(ValueError, match=r"softmax over dimension 0 of scores of shape \(1, 10\)"):
        compute_cams(Network(lambda x: F.softmax(x, dim=0)), data().tensors[0][:1])


@pytest.mark.parametrize("constant", [0.0, 0.5, 1.0])
def test_constant_scores_are_logits(constant: float) -> None:
    images = data().tensors[0][:1]
    assert torch.equal(
        class_scores(Network(lambda x: x * 0 + constant), images),
        torch.full((1, CLASSES), constant),
    )


@pytest.mark.parametrize(
    "output",
    [
        lambda x: x.squeeze(),
        lambda x: x.squeeze().softmax(-1),
        lambda x: F.softmax(x.squeeze(), dim=0),
        lambda x: x.squeeze().log_softmax(-1),
    ],
)
def test_the_scores_of_a_single_image_may_be_squeezed(output: Output) -> None:
    images, labels = (part[:1] for part in data().tensors)
    model = Network(output)
    model.output = lambda x: output(x) if len(x) == 1 else x
    found = find_misclassified(model, TensorDataset(images, labels))
    with torch.no_grad():
        assert torch.allclose(found[0].probabilities, model.logits(images)[0].softmax(0))
    whole = find_misclassified(model, data(), batch_size=SAMPLES - 1, sort_by="index")
    plain = find_misclassified(Network(lambda x: x), data(), sort_by="index")
    assert [sample.index for sample in whole] == [sample.index for sample in plain]
    maps = compute_cams(model, images, target_layers="conv")
    assert torch.equal(maps, compute_cams(Network(lambda x: x), images, target_layers="conv"))


@pytest.mark.parametrize(
    "name", ["view", "clamp", "exp of log-softmax", "4-D softmax", "torch.special", "float64"]
)
def test_the_logit_is_explained_where_it_can_be_found(name: str) -> None:
    images = data().tensors[0][:4]
    logits = class_scores(Network(lambda x: x), images)
    assert torch.equal(class_scores(Network(PROBABILITIES[name]), images).float(), logits)


@pytest.mark.parametrize("name", ["scripted", "ensemble", "by hand"])
def test_the_log_probability_is_explained_otherwise(name: str) -> None:
    images = data().tensors[0][:4]
    model = Network(PROBABILITIES[name])
    assert torch.equal(class_scores(model, images), model(images).log())


def test_a_score_that_is_not_a_number_is_reported() -> None:
    def broken(x: Tensor) -> Tensor:
        rows = torch.arange(len(x))[:, None]
        return torch.where(rows == 7, torch.nan, x.softmax(1))

    with pytest.raises(ValueError, match="scores of sample 7 are not finite"):
        find_misclassified(Network(broken), data())
