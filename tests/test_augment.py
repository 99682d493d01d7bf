"""Compare batched augmentation with one image at a time, pixel by pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_resnet.data.augment import (
    Augmentation,
    ImageBank,
    Parameters,
    _stacked,
    _unstacked,
)

MEAN, STD = (0.4, 0.5, 0.6, 0.7), (0.2, 0.25, 0.3, 0.35)


def reference(
    image: np.ndarray, parameters: Parameters, at: int, padding: int, cutout: int, mode: str
) -> np.ndarray:
    """Apply crop, flip, cutout and normalization to one image in the obvious way."""
    height, width = image.shape[:2]
    margin = (padding, padding)
    padded = np.pad(image, (margin, margin, (0, 0)), mode)
    y, x = parameters.offset_y[at], parameters.offset_x[at]
    crop = padded[y : y + height, x : x + width]
    if parameters.flip[at]:
        crop = np.fliplr(crop)
    values = (crop / 255 - np.array(MEAN[: image.shape[2]])) / np.array(STD[: image.shape[2]])
    y, x = parameters.cutout_y[at], parameters.cutout_x[at]
    values[y : y + cutout, x : x + cutout] = 0
    return values.transpose(2, 0, 1)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(4, 12),
    width=st.integers(4, 12),
    channels=st.integers(1, 4),
    padding=st.integers(0, 3),
    flip=st.sampled_from(["random", "alternating", "none"]),
    cutout=st.integers(0, 4),
    mode=st.sampled_from(["reflect", "constant"]),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_a_batch_equals_the_images_one_by_one(
    height: int,
    width: int,
    channels: int,
    padding: int,
    flip: str,
    cutout: int,
    mode: str,
    epoch: int,
    seed: int,
) -> None:
    count = 9
    shape = (count, height, width, channels)
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    augmentation = Augmentation(padding, flip, cutout, mode)
    mean, std = MEAN[:channels], STD[:channels]
    bank = ImageBank(images, mean, std, augmentation=augmentation)
    parameters = augmentation.draw(count, (height, width), seed=seed, epoch=epoch)
    rows = np.array([3, 0, 8, 3])
    batch = bank.batch(rows, parameters.take(rows))
    assert batch.shape == (4, channels, height, width)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    expected = np.stack(
        [reference(images[row], parameters, row, padding, cutout, mode) for row in rows]
    )
    np.testing.assert_allclose(batch.numpy(), expected, atol=2e-6, rtol=2e-6)


def test_parameters_moved_together_give_the_same_batches_in_slices() -> None:
    """On a GPU the parameters of an epoch are one tensor, and torch gathers the pixels."""
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    augmentation = Augmentation(2, "random", 3)
    bank = ImageBank(images, MEAN[:3], STD[:3], augmentation=augmentation)
    rows = np.random.default_rng(1).permutation(20)
    parameters = augmentation.draw(20, (8, 8), seed=1, epoch=0).take(rows)
    whole = bank.batch(rows, parameters)
    assert all(
        a is b for a, b in zip(bank.place(rows, parameters), (rows, parameters), strict=True)
    )
    for placed_rows, placed in (
        bank.place(rows, parameters),
        _unstacked(_stacked(rows, parameters)),
    ):
        assert placed is not None
        parts = [slice(0, 7), slice(7, 14), slice(14, 20)]
        batches = [bank.batch(placed_rows[part], placed.take(part)) for part in parts]
        assert torch.equal(torch.cat(batches), whole)
    placed_rows, placed = _unstacked(_stacked(rows, None))
    assert placed is None
    assert torch.equal(bank.batch(placed_rows), bank.batch(rows))
    elsewhere = ImageBank(images, MEAN[:3], STD[:3], augmentation=augmentation, device="meta")
    placed_rows, placed = elsewhere.place(rows, parameters)
    assert placed is not None
    assert all(values.is_meta for values in (placed_rows, *placed.arrays()))
    for arguments in ((rows, parameters), (placed_rows, placed), (rows, None)):
        batch = elsewhere.batch(*arguments)  # moved to the device first, if necessary
        assert (batch.device.type, batch.shape) == ("meta", whole.shape)


def test_no_parameters_means_the_image_itself() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    bank = ImageBank(images, MEAN[:3], STD[:3], augmentation=Augmentation(3, "random", 2))
    expected = (images / 255 - np.array(MEAN[:3])) / np.array(STD[:3])
    np.testing.assert_allclose(bank.batch(np.arange(3)).permute(0, 2, 3, 1), expected, atol=2e-6)


def test_a_batch_is_a_copy() -> None:
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    bank = ImageBank(images, MEAN[:3], STD[:3])
    first = bank.batch(np.arange(2))
    expected = first.clone()
    first.add_(5)
    assert torch.equal(bank.batch(np.arange(2)), expected)


def test_parameters_are_a_function_of_seed_and_epoch() -> None:
    augmentation = Augmentation(4, "random", 8)

    def drawn(seed: int, epoch: int) -> np.ndarray:
        p = augmentation.draw(1000, (32, 32), seed=seed, epoch=epoch)
        return np.stack([p.offset_y, p.offset_x, p.flip, p.cutout_y, p.cutout_x])

    assert (drawn(3, 7) == drawn(3, 7)).all()
    for other in (drawn(3, 8), drawn(4, 7)):
        assert (drawn(3, 7) != other).any(axis=1).all()


def test_crop_flip_and_cutout_have_their_own_random_streams() -> None:
    """A seed gives the same images in every version of the library."""
    p = Augmentation(4, "random", 8).draw(100, (32, 32), seed=3, epoch=7)
    crop, flip, cutout = (np.random.default_rng([3, stream, 7]) for stream in (1, 2, 3))
    offsets, corners = crop.integers(0, 9, (2, 100)), cutout.integers(0, 25, (2, 100))
    assert np.array_equal([p.offset_y, p.offset_x], offsets)
    assert np.array_equal([p.cutout_y, p.cutout_x], corners)
    assert np.array_equal(p.flip, flip.random(100) < 0.5)
    first = np.random.default_rng([3, 2, 0]).random(100) < 0.5
    for epoch in range(4):
        p = Augmentation(4, "alternating").draw(100, (32, 32), seed=3, epoch=epoch)
        assert np.array_equal(p.flip, ~first if epoch in (1, 3) else first)
    assert Augmentation(4, "none").draw(100, (32, 32), seed=3, epoch=0).flip.dtype == np.bool_


def test_every_offset_and_corner_occurs_equally_often() -> None:
    count = 81_000
    p = Augmentation(4, "random", 8).draw(count, (32, 32), seed=0, epoch=0)
    for values, choices in (
        (p.offset_y, 9),
        (p.offset_x, 9),
        (p.cutout_y, 25),
        (p.cutout_x, 25),
        (p.flip, 2),
    ):
        seen = np.bincount(values, minlength=choices)
        assert len(seen) == choices
        # five standard deviations of a binomial count
        assert abs(seen - count / choices).max() < 5 * (count / choices * (1 - 1 / choices)) ** 0.5


def test_alternating_flip_mirrors_every_other_epoch() -> None:
    augmentation = Augmentation(0, "alternating")
    flips = [augmentation.draw(1000, (32, 32), seed=0, epoch=epoch).flip for epoch in range(4)]
    assert (flips[0] != flips[1]).all()
    assert (flips[0] == flips[2]).all()
    assert (flips[1] == flips[3]).all()
    assert 400 < flips[0].sum() < 600
    assert not Augmentation(0, "none").draw(1000, (32, 32), seed=0, epoch=1).flip.any()


def test_by_default_images_are_cropped_and_flipped() -> None:
    assert Augmentation() == Augmentation(4, "random", 0, "reflect")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("crop_padding", -1, ValueError),
        ("crop_padding", True, TypeError),
        ("cutout", -1, ValueError),
        ("cutout", 1.5, TypeError),
        ("flip", "often", ValueError),
        ("padding_mode", "wrap", ValueError),
    ],
)
def test_an_error_names_the_argument(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must be .*, but got {value!r}"):
        Augmentation(**{name: value})


def test_mirror_images_are_stored_only_if_they_are_used() -> None:
    images = np.zeros((5, 8, 8, 3), np.uint8)
    for flip, copies in (("random", 2), ("alternating", 2), ("none", 1)):
        bank = ImageBank(images, MEAN[:3], STD[:3], augmentation=Augmentation(0, flip))
        assert len(bank) == 5
        assert bank._runs.untyped_storage().nbytes() == copies * images.nbytes


def test_the_largest_augmentation_that_fits_an_image() -> None:
    largest = Augmentation(7, cutout=8)  # padding of 7 reflects all 8 pixels of a side
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    bank = ImageBank(images, MEAN[:3], STD[:3], augmentation=largest)
    parameters = largest.draw(2, (8, 8), seed=0, epoch=0)
    assert not bank.batch(np.arange(2), parameters).any()  # everything is cut out


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (Augmentation(0, cutout=9), r"cutout must be at most 8 pixels .*, but got 9"),
        (Augmentation(8), "crop_padding must be less than 8 pixels .*, but got 8"),
    ],
)
def test_augmentation_larger_than_the_image(augmentation: Augmentation, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageBank(np.zeros((1, 8, 8, 3), np.uint8), MEAN, STD, augmentation=augmentation)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_same_batches() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    augmentation = Augmentation(4, "alternating", 8)
    rows = np.random.default_rng(1).permutation(50)
    parameters = augmentation.draw(50, (32, 32), seed=1, epoch=1).take(rows)
    cpu, gpu = (
        ImageBank(images, MEAN[:3], STD[:3], augmentation=augmentation, device=device)
        for device in ("cpu", "cuda")
    )
    for chosen in (parameters, None):
        batch = gpu.batch(*gpu.place(rows, chosen))
        assert batch.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(batch.cpu(), cpu.batch(rows, chosen), atol=1e-6, rtol=1e-6)
