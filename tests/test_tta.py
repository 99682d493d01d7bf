"""Test-time augmentation against images that are shifted and mirrored one by one with NumPy."""

import numpy as np
import torch
from torch import nn

from cifar_resnet.training.tta import mirror_scores, six_view_scores


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5), nn.LogSoftmax(dim=1)).eval()


def shifted(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Move an image down by `rows` and right by `columns`, with a reflected border."""
    side = image.shape[-1]
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    return padded[:, 1 - rows : 1 - rows + side, 1 - columns : 1 - columns + side]


def test_views_against_single_images() -> None:
    model, images = network(), torch.randn(3, 3, 8, 8)

    def score(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(image.copy())[None])[0].numpy()

    def mirrored(image: np.ndarray) -> np.ndarray:
        return (score(image) + score(image[:, :, ::-1])) / 2

    pictures = images.numpy()
    expected = np.stack([mirrored(image) for image in pictures])
    with torch.no_grad():
        np.testing.assert_allclose(mirror_scores(model, images), expected, atol=1e-5)
        np.testing.assert_allclose(mirror_scores(model, images, model(images)), expected, atol=1e-5)
    six = np.stack(
        [
            (2 * mirrored(i) + mirrored(shifted(i, -1, -1)) + mirrored(shifted(i, 1, 1))) / 4
            for i in pictures
        ]
    )
    with torch.no_grad():
        scores = six_view_scores(model, images)
        np.testing.assert_allclose(scores, six, atol=1e-5)
        known = six_view_scores(model, images, mirror_scores(model, images))
        torch.testing.assert_close(known, scores)


def test_views_of_a_mirrored_image_are_the_same_mean() -> None:
    model, images = network(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        there, back = mirror_scores(model, images), mirror_scores(model, images.flip(-1))
    torch.testing.assert_close(there, back)


def test_scores_of_low_precision_are_averaged_in_float32() -> None:
    model, images = network().bfloat16(), torch.randn(2, 3, 8, 8).bfloat16()
    with torch.no_grad():
        assert mirror_scores(model, images).dtype == torch.float32
        assert six_view_scores(model, images).dtype == torch.float32
