"""Test that every kind of data is read completely, with indices that are right or None.

The images encode their position in the dataset, which is the oracle for every index.
"""

import math
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
)
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms import v2

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    find_misclassified,
    label_suspects,
    show_misclassified,
    show_samples,
)
from cifar_resnet.data import cifar10
from cifar_resnet.data.formats import Arrays
from cifar_resnet.misclassified import progress

COUNT = 23
IMAGES = (torch.arange(COUNT) / 100).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()
LABELS = torch.arange(COUNT) % 3


class Always(nn.Module):
    """Predict class 3 for all images, so that each is an error, and count them."""

    def __init__(self, classes: int = 4, answer: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.scores = nn.functional.one_hot(torch.tensor(answer), classes).float()
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return self.scores.expand(len(images), -1) + 0 * self.weight


def position(image: Tensor) -> int:
    return round(float(image.mean()) * 100)


def read(data: Any, **options: Any) -> dict[int, int | None]:
    """Return the index of each sample by its true position; each must occur once."""
    found = find_misclassified(Always(), data, sort_by="index", **options)
    result = {position(sample.image): sample.index for sample in found}
    assert len(result) == len(found) == found.total
    assert all(int(LABELS[position(sample.image)]) == sample.true for sample in found)
    return result


def right(*positions: int) -> dict[int, int]:
    return {each: each for each in positions or range(COUNT)}


def unknown(*positions: int) -> dict[int, None]:
    return dict.fromkeys(positions or range(COUNT))


def samples() -> TensorDataset:
    return TensorDataset(IMAGES, LABELS)


class Batched(Dataset[Any]):
    """Return whole batches for a list of indices."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        return IMAGES[rows], LABELS[rows]


class Blocks(Dataset[Any]):
    """Return a block of samples for an index."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rows = slice(5 * index, 5 * index + 5)
        return IMAGES[rows], LABELS[rows]


class Stream(IterableDataset[Any]):
    def __init__(self, endless: bool = False) -> None:
        self.endless = endless
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            for image, label in zip(IMAGES, LABELS.tolist(), strict=True):
                self.read += 1
                yield image, label
            if not self.endless:
                return


class Yields(Sampler[Any]):
    """Yield any keys."""

    def __init__(self, *keys: Any) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys)


class Forever(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        generator = random.Random(0)
        while True:
            yield generator.randrange(COUNT)


class Halved(DataLoader[Any]):
    """A loader that changes its batches."""

    def __iter__(self) -> Any:
        for images, labels in super().__iter__():
            yield images / 2, labels


class Wrapper:
    """A loader of another library, around one of PyTorch."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader, self.dataset = loader, loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        return iter(self.loader)


# -- indices ----------------------------------------------------------------------------------


def drop_even(batch: list[Any]) -> Any:
    return default_collate([sample for sample in batch if position(sample[0]) % 2])


def reverse(batch: list[Any]) -> Any:
    return default_collate(batch[::-1])


def sort_by_label(batch: list[Any]) -> Any:
    return default_collate(sorted(batch, key=lambda sample: int(sample[1])))


def rescale(batch: list[Any]) -> Any:
    images, labels = default_collate(batch)
    return (images * 2 / 2).double().float() + 1e-6, labels


def rescale_and_drop(batch: list[Any]) -> Any:
    images, labels = drop_even(batch)
    return images + 1e-6, labels


def add_noise(batch: list[Any]) -> Any:
    images, labels = default_collate(batch)
    return (images + 1e-4 * torch.rand(images.shape)).flip(0), labels.flip(0)


def shift_labels(batch: list[Any]) -> Any:
    images, labels = default_collate([(image, label + 1) for image, label in batch])
    return images, labels - 1


def as_dictionary(batch: list[Any]) -> Any:
    return {"image": [image for image, _ in batch], "label": [label for _, label in batch]}


ODD = tuple(range(1, COUNT, 2))


@pytest.mark.parametrize(
    ("collate", "expected"),
    [
        (drop_even, right(*ODD)),
        (reverse, right()),
        (sort_by_label, right()),
        (rescale, right()),
        (rescale_and_drop, right(*ODD)),
        (add_noise, unknown()),
        (shift_labels, right()),
        (as_dictionary, right()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_collate_function_may_drop_reorder_and_change_samples(
    collate: Any, expected: dict[int, int | None], stream: bool
) -> None:
    data = Stream() if stream else samples()
    loader = DataLoader(data, batch_size=6, shuffle=None if stream else True, collate_fn=collate)
    assert read(loader) == expected


def test_equal_samples_that_are_dropped_have_no_index() -> None:
    data = [(IMAGES[number], 0) for number in (0, 1, 1, 2)]
    loader = DataLoader(data, batch_size=4, collate_fn=lambda batch: default_collate(batch[1:]))
    found = find_misclassified(Always(), loader, sort_by="index")
    assert [(position(sample.image), sample.index) for sample in found] == [
        (2, 3),
        (1, None),
        (1, None),
    ]
    assert found.to_records()[1]["index"] is None


def items(dataset: Any, *keys: Any, **options: Any) -> DataLoader[Any]:
    """Return a loader without batching."""
    return DataLoader(dataset, None, sampler=Yields(*keys), **options)


def batches(*keys: Any) -> DataLoader[Any]:
    return DataLoader(samples(), batch_sampler=Yields(*keys))


def fours(*keys: Any) -> DataLoader[Any]:
    return DataLoader(samples(), batch_size=4, sampler=Yields(*keys))


def sampled(sampler: Any) -> DataLoader[Any]:
    return DataLoader(Batched(), None, sampler=sampler)


def flipped(batch: Any) -> Any:
    return batch[0].flip(0), batch[1].flip(0)


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (sampled(BatchSampler(RandomSampler(samples()), 4, False)), right()),
        (sampled(BatchSampler(range(22, 3, -2), 4, True)), right(*range(4, 23, 2))),
        (items(Batched(), [5, 3], [4], [3, 0]), right(0, 3, 4, 5)),
        (items(Batched(), np.array([5, 3]), np.array([1])), right(1, 3, 5)),
        (items(Batched(), torch.tensor([5, 3])), right(3, 5)),
        (items(Batched(), [5, 3], collate_fn=flipped), right(3, 5)),
        (items(samples(), 5, 3), right(3, 5)),
        (items(Blocks(), 3, 1), unknown(*range(5, 10), *range(15, 20))),
        (DataLoader(samples(), None, shuffle=True), right()),
        (DataLoader(Blocks(), None), right()),
        (batches(np.array([6, 0]), np.array([3])), right(0, 3, 6)),
        (batches(torch.tensor([6, 0]), torch.tensor([3])), right(0, 3, 6)),
        (batches((6, 0), range(4, 2, -1)), right(0, 3, 4, 6)),
        (fours(*torch.tensor([9, 2, 9])), right(2, 9)),
        (fours(-1, -2, 22), right(21, 22)),
        (DataLoader(samples(), 4, sampler=SequentialSampler(range(5))), right(*range(5))),
        (DataLoader(samples(), 4, sampler=Forever()), right()),
        (DataLoader(Stream(), 4, drop_last=True), right()),
        (DataLoader(Stream(), None), right()),
        (Wrapper(DataLoader(samples(), 4, shuffle=True)), unknown()),
        (iter(DataLoader(samples(), 4, shuffle=True)), unknown()),
        (Stream(), right()),
        ((pair for pair in samples()), right()),
    ],
)
def test_samplers_of_every_kind(loader: Any, expected: dict[int, int | None]) -> None:
    assert read(loader) == expected


def test_a_loader_that_changes_its_batches_is_believed() -> None:
    loader = Halved(samples(), batch_size=4, shuffle=True)
    found = find_misclassified(Always(), loader)
    assert found.total == COUNT
    assert {sample.index for sample in found} == {None}
    assert {round(float(sample.inputs.mean()) * 200) for sample in found} == set(range(COUNT))


class KeyedByName(Dataset[Any]):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, key: str) -> tuple[Tensor, Tensor]:
        return IMAGES[ord(key) - 97], LABELS[ord(key) - 97]


def test_keys_that_are_not_numbers() -> None:
    loader = DataLoader(KeyedByName(), batch_size=2, sampler=Yields("c", "a", "d"))
    assert read(loader) == unknown(0, 2, 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_has_indices_if_one_process_reads_it(workers: int) -> None:
    found = find_misclassified(
        Always(), DataLoader(Stream(), batch_size=4, num_workers=workers), sort_by="index"
    )
    indices = [sample.index for sample in found]
    assert found.total == COUNT * workers  # each worker yields all samples
    assert indices == (list(range(COUNT)) if workers == 1 else [None] * 2 * COUNT)


def test_batches_of_a_batch_sampler_are_kept() -> None:
    model = Always()
    find_misclassified(model, DataLoader(samples(), batch_sampler=[[6, 0, 1], [4, 3], [0, 4]]))
    assert model.batches == [3, 2]


# -- label suspects ---------------------------------------------------------------------------


class Derived(CIFAR10):
    """As in many tutorials: torchvision's dataset with another way to transform images."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return torch.from_numpy(self.data[index]).permute(2, 0, 1) / 255, self.targets[index]


class Hundred(CIFAR100, Derived):
    pass


def cifar(arrays: Arrays, kind: type[CIFAR10] = Derived, train: bool = False) -> Any:
    dataset = kind.__new__(kind)
    dataset.train, dataset.data, dataset.transform = train, arrays.test_images, None
    dataset.targets = arrays.test_labels.tolist()
    return dataset


def test_label_suspects_follow_the_index(arrays: Arrays) -> None:
    derived = cifar(arrays)
    suspects = sorted(label_suspects())
    # all errors, whatever a model predicts
    rows = [0, suspects[0], 1, suspects[1], 2]
    part = Subset(derived, rows)
    joined = ConcatDataset([Subset(derived, range(4)), part])
    split = random_split(part, [3, 2], torch.Generator().manual_seed(0))[0]
    expected = {
        part: {1, 3},
        joined: {5, 7},
        split: {split.indices.index(row) for row in (1, 3) if row in split.indices},
    }
    answer = min(set(range(10)) - {int(arrays.test_labels[row]) for row in rows})
    model = Always(10, answer)
    for data, positions in expected.items():
        loader = DataLoader(data, batch_sampler=[[row] for row in reversed(range(len(data)))])
        found = find_misclassified(model, loader)
        assert {sample.index for sample in found if sample.suspect} == positions
        assert positions
    for other in (cifar(arrays, train=True), cifar(arrays, Hundred), cifar(arrays)):
        if type(other) is Derived and not other.train:
            other.targets = other.targets[::-1]  # sorted in another way
        if type(other) is Hundred:
            other.targets = [label % 7 for label in other.targets]
        found = find_misclassified(model, Subset(other, rows))
        assert not any(sample.suspect for sample in found)


# -- our own loaders --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_module(data_dir: Any) -> CIFAR10DataModule:
    data = CIFAR10DataModule(data_dir, batch_size=500, val_split=200)
    data.setup()
    return data


@pytest.mark.parametrize("per_sample", [False, True])
def test_our_loaders_carry_names_statistics_and_suspects(
    small_module: CIFAR10DataModule, arrays: Arrays, per_sample: bool
) -> None:
    transform = CIFAR10DataModule.default_transforms() if per_sample else None
    small_module.val_transforms = small_module.test_transforms = transform
    model = Always(10)
    found = find_misclassified(model, small_module.test_dataloader(), max_samples=1500)
    assert found.class_names == cifar10.CLASSES
    expected = {index for index in label_suspects() if index < 1500}
    wrong = {index for index in expected if arrays.test_labels[index] != 3}
    assert {sample.index for sample in found if sample.suspect} == wrong
    assert len(wrong) > 1
    pixels = torch.from_numpy(arrays.test_images[found[7].index]).permute(2, 0, 1)
    assert torch.allclose(found[7].image * 255, pixels.float(), atol=1e-2)

    found = find_misclassified(model, small_module.val_dataloader())
    assert (found.total, found.class_names) == (200, cifar10.CLASSES)
    assert not any(sample.suspect for sample in found)
    for sample in found[:9]:
        assert arrays.train_labels[sample.index] == sample.true
        pixels = torch.from_numpy(arrays.train_images[sample.index]).permute(2, 0, 1)
        assert torch.allclose(sample.image * 255, pixels.float(), atol=1e-2)


# -- forms of data ----------------------------------------------------------------------------


class Records:
    """Imitate a Hugging Face dataset."""

    def __init__(self, transform: Any = None, names: Any = ("zero", "one", "two", "three")) -> None:
        label = type("ClassLabel", (), {"names": names, "int2str": None})()
        self.features = {"img": "Image", "fine_label": label, "coarse_label": label}
        self.transform_of_records = transform

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = Image.new("RGB", (4, 4), (round(255 * index / 100),) * 3)
        record = {"img": picture, "fine_label": index % 3, "coarse_label": 0, "id": None}
        if self.transform_of_records:
            record["pixel_values"] = self.transform_of_records(picture)
        return record

    def set_transform(self, transform: Any) -> None: ...


AS_LISTS = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS.view(-1, 1)],
        (IMAGES.numpy(), LABELS.numpy()),
        (IMAGES.numpy(), LABELS.tolist()),
        (np.broadcast_to(IMAGES.numpy(), IMAGES.shape), LABELS.numpy()),  # read-only
        (IMAGES.numpy()[..., ::-1], LABELS.numpy()),
        [(np.broadcast_to(image.numpy(), image.shape), label) for image, label in AS_LISTS],
        {"image": IMAGES, "label": LABELS},
        AS_LISTS,
        tuple(AS_LISTS),
        [[image.numpy(), np.int64(label)] for image, label in AS_LISTS],
        [(image, torch.tensor([label]), None, "name") for image, label in AS_LISTS],
        [{"pixel_values": image, "image": None, "labels": label} for image, label in AS_LISTS],
        iter([{"image": image, "label": label} for image, label in AS_LISTS]),
        list(DataLoader(samples(), batch_size=5)),
        DataLoader(AS_LISTS, batch_size=5),
        iter([{"image": list(IMAGES), "label": LABELS.tolist()}]),
    ],
)
def test_forms_of_data(data: Any) -> None:
    assert read(data) == right()


def test_hugging_face_datasets() -> None:
    with pytest.raises(TypeError, match=r"PIL images.*with_transform or set_transform"):
        find_misclassified(Always(), Records())
    parts = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    for names, expected in ((("zero", "one", "two", "three"), "one"), (None, "1")):
        found = find_misclassified(Always(), Records(v2.Compose(parts), names), sort_by="index")
        assert [sample.index for sample in found] == list(range(5))
        assert found[1].true_name == expected


def test_a_pair_of_arrays_can_be_drawn() -> None:
    assert len(show_samples((IMAGES, LABELS), n=4).axes) == 4
    assert "23" in show_samples((IMAGES, LABELS), n=4).axes[0].figure.texts[0].get_text()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([IMAGES[0], IMAGES[1]], r"must be \(images, labels\), but is a Tensor of 3"),
        ([None, None], r"must be \(images, labels\), but is None"),
        ([(IMAGES[0], "cat")], "must be tensors or arrays of numbers"),
        ([(IMAGES[0], None)] * 2, "must be tensors or arrays of numbers"),
    ],
)
def test_what_is_not_data(data: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        find_misclassified(Always(), data)


class Ending(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 2:
            raise StopIteration
        return IMAGES[index], 0


@pytest.mark.parametrize("loader", [False, True])
def test_a_dataset_that_ends_early_is_an_error(loader: bool) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        find_misclassified(Always(), DataLoader(Ending(), 1) if loader else Ending())


@pytest.mark.parametrize("loader", [False, True])
def test_images_of_different_sizes(loader: bool) -> None:
    sizes = [(4, 4), (4, 6), (4, 4), (5, 4), (4, 6)]
    data = [
        (IMAGES[row, :, :1, :1].expand(3, *size), int(LABELS[row]))
        for row, size in enumerate(sizes)
    ]
    model = Always()
    found = find_misclassified(model, DataLoader(data, 5) if loader else data, sort_by="index")
    assert [(sample.index, position(sample.image)) for sample in found] == [
        (i, i) for i in range(5)
    ]
    assert [tuple(sample.inputs.shape[1:]) for sample in found] == sizes
    assert model.batches == [2, 2, 1]


# -- class names ------------------------------------------------------------------------------


class Named(TensorDataset):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(IMAGES, LABELS)
        vars(self).update(attributes)


class Failing(TensorDataset):
    @property
    def classes(self) -> Any:
        raise RuntimeError("not loaded")

    class_to_idx = {"a": 0, "b": 1, "c": 2, "d": 3}  # noqa: RUF012


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (Named(classes=np.array(["a", "b", "c", "d"])), "abcd"),
        (Named(classes=torch.arange(4)), "0123"),
        (Named(classes={0: "a", 1: "b", 2: "c", 3: "d"}), "abcd"),
        (Named(classes={"d": 3, "c": 2, "b": 1, "a": 0}), "abcd"),
        (Named(classes=4, class_to_idx={"d": 3, "c": 2, "b": 1, "a": 0}), "abcd"),
        (Named(class_names=["a", "b", "c", "d"]), "abcd"),
        (Failing(IMAGES, LABELS), "abcd"),
        (Named(classes=lambda: "abcd"), "0123"),
        (Named(classes="abcd"), "0123"),
        (Named(classes={1, 2}), "0123"),
        (Named(classes=[]), "0123"),
        (Named(class_to_idx={"a": 0, "b": 7}), "0123"),
    ],
)
def test_class_names_of_the_data(data: Any, expected: str) -> None:
    assert find_misclassified(Always(), data).class_names == tuple(expected)


def test_too_few_class_names_of_the_data_are_not_used() -> None:
    with pytest.warns(UserWarning, match=r"4 classes, but the data have 2 class names: a, b\."):
        found = find_misclassified(Always(), Named(classes=["a", "b"]))
    assert found.class_names == tuple("0123")


# -- models that change or convert their input ------------------------------------------------


class InPlace(Always):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(0.5).div_(0.25))


class Converting(Always):
    def forward(self, images: Tensor) -> Tensor:
        images = images.float().div_(255).sub_(0.5)
        return super().forward(images)


def test_models_that_change_their_input() -> None:
    images, labels = IMAGES.clone(), LABELS.clone()
    batches = [(images[:9], labels[:9]), (images[9:], labels[9:])]
    for data in (TensorDataset(images, labels), iter(batches), DataLoader(batches, None)):
        found = find_misclassified(InPlace(), data, sort_by="index")
        for number, sample in enumerate(found):
            assert torch.equal(sample.image, IMAGES[number])
            assert torch.equal(sample.inputs, IMAGES[number])
        assert torch.equal(images, IMAGES)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.bool])
def test_models_that_convert_integer_images(dtype: torch.dtype) -> None:
    high = 1 if dtype == torch.bool else 255
    images = (torch.rand(6, 3, 4, 4) * high).round().to(dtype)
    found = find_misclassified(Converting(), (images, LABELS[:6]), sort_by="index")
    for number, sample in enumerate(found):
        assert sample.inputs.dtype == dtype
        assert torch.equal(sample.inputs, images[number])
        assert torch.equal(sample.image, images[number].float() / high)


def test_images_from_0_to_255_are_explained() -> None:
    with pytest.raises(ValueError, match=r"Pass .* such as mean=0, std=1 / 255\."):
        find_misclassified(Always(), (IMAGES * 255 + 20, LABELS))
    found = find_misclassified(Always(), (IMAGES * 255, LABELS), mean=0, std=1 / 255)
    assert sorted(position(sample.image) for sample in found) == list(range(COUNT))


def test_images_that_cannot_be_displayed_are_refused_before_the_model_runs() -> None:
    for images in (IMAGES * 4 - 2, (IMAGES * 10_000).short()):
        model = Always()
        with pytest.raises(ValueError, match="to be displayed"):
            find_misclassified(model, (images, LABELS), batch_size=7)
        assert model.batches == []


# -- limits -----------------------------------------------------------------------------------


def test_endless_data() -> None:
    stream = Stream(endless=True)
    found = find_misclassified(Always(), stream, max_samples=30)
    assert (found.total, stream.read) == (30, 30)
    stream = Stream(endless=True)
    found = find_misclassified(Always(), stream, n=5, sort_by="index", batch_size=4)
    assert [sample.index for sample in found] == [0, 1, 2, 3, 4]
    assert stream.read == 8
    loader = DataLoader(Stream(endless=True), batch_size=4)
    assert find_misclassified(Always(), loader, max_samples=30, n=2).total == 30
    assert find_misclassified(Always(), loader, n=5, sort_by="index").total == 8


def test_the_number_of_samples_can_be_limited() -> None:
    for data in (samples(), DataLoader(samples(), batch_size=4, shuffle=True), iter(samples())):
        assert read(data, max_samples=6) == right(*range(6))
    batches = DataLoader(samples(), batch_sampler=[[5, 4], [3, 2], [1, 0]])
    assert read(batches, max_samples=3) == right(3, 4, 5)
    fig = show_misclassified(Always(), samples(), max_samples=6, cam=None)
    assert "6 of 6 errors in 6 images" in fig.texts[0].get_text()


@pytest.mark.parametrize(
    ("side", "expected"), [(4, 500), (32, 500), (64, 125), (224, 10), (1000, 1)]
)
def test_the_default_batch_size_depends_on_the_size_of_the_images(side: int, expected: int) -> None:
    class Large(Dataset[Any]):
        def __len__(self) -> int:
            return expected + 1

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.zeros(1, 1, 1).expand(1, side, side), 0

    model = Always()
    find_misclassified(model, Large(), n=1)
    assert model.batches == [expected, 1]
    model = Always()
    find_misclassified(model, DataLoader(Large(), batch_size=max(expected // 2, 1)), n=1)
    assert model.batches[0] == max(expected // 2, 1)


# -- the results ------------------------------------------------------------------------------


class ByValue(nn.Module):
    """Predict the class that a pixel value encodes."""

    def forward(self, images: Tensor) -> Tensor:
        values = (images.mean((1, 2, 3)) * 100).round().long()
        return nn.functional.one_hot(values % 4, 4).float()


def test_results_can_be_filtered() -> None:
    # predicted: position modulo 4; label: position modulo 3
    names = ["a", "b", "c", "d"]
    found = find_misclassified(ByValue(), samples(), class_names=names, sort_by="index")
    wrong = [row for row in range(COUNT) if row % 3 != row % 4]
    assert [sample.index for sample in found] == wrong
    for part, true, predicted in (
        (found.where(true_class="b"), "b", None),
        (found.where(true_class=1), "b", None),
        (found.where(pred_class="d"), None, "d"),
        (found.where(true_class="b", pred_class=3), "b", "d"),
        (found.where(true_class="b").where(pred_class="d"), "b", "d"),
        (found.where(), None, None),
    ):
        rows = [
            row
            for row in wrong
            if true in (None, names[row % 3]) and predicted in (None, names[row % 4])
        ]
        assert [sample.index for sample in part] == rows
        assert (part.matching, part.true_class, part.pred_class) == (len(rows), true, predicted)
        assert (part.total, part.errors, part.sort_by) == (COUNT, len(wrong), "index")
    few = find_misclassified(ByValue(), samples(), n=2, class_names=names, sort_by="index")
    assert (len(few.where(true_class="a")), few.where(true_class="a").matching) == (
        sum(row % 3 == 0 for row in wrong[:2]),
        sum(row % 3 == 0 for row in wrong),
    )
    for options, message in (
        ({"true_class": "e"}, "one of a, b, c, d, but got 'e'"),
        ({"true_class": 1, "pred_class": "b"}, "both 'b'"),
        ({"pred_class": "a"}, "only errors of 'd' were kept"),
    ):
        with pytest.raises(ValueError, match=message):
            found.where(pred_class="d" if "only" in message else None).where(**options)


# -- surroundings -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_draws_no_random_numbers(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from cifar_resnet.data.reading import as_source

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for loader in (
        DataLoader(samples(), batch_size=9, shuffle=True, num_workers=workers),
        DataLoader(Stream(), batch_size=9, num_workers=workers),
        samples(),
    ):
        assert sum(len(labels) for _, _, labels in as_source(loader).batches()) == COUNT
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_another_default_device_and_dtype(workers: int, small_module: CIFAR10DataModule) -> None:
    model = CustomResNet(width=2)
    images, labels = torch.rand(12, 3, 32, 32), torch.arange(12) % 10
    listed = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
    kinds = [
        (images, labels),
        listed,
        DataLoader(listed, batch_size=5, shuffle=True, num_workers=workers),
        DataLoader(listed, batch_size=5, sampler=[3, 4], num_workers=workers),
        DataLoader(listed, batch_size=5, collate_fn=lambda batch: default_collate(batch)),
        small_module.test_dataloader(),
    ]
    plain = [find_misclassified(model, data, max_samples=12) for data in kinds]
    try:
        for dtype, device in ((torch.float64, "cpu"), (torch.float32, "meta")):
            torch.set_default_dtype(dtype)
            torch.set_default_device(device)
            for data, expected in zip(kinds[: 4 if device == "meta" else 6], plain, strict=False):
                found = find_misclassified(model, data, max_samples=12)
                assert [sample.index for sample in found] == [s.index for s in expected]
                assert found.confusion.equal(expected.confusion)
                for ours, other in zip(found, expected, strict=True):
                    assert ours.probabilities.equal(other.probabilities)
                    assert ours.image.equal(other.image)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


class Terminal:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("delay", "shown"), [(0.0, True), (2.0, False)])
def test_a_long_scan_has_a_progress_bar(
    delay: float, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_DELAY", delay)
    find_misclassified(Always(), samples(), batch_size=5)
    assert ("/23" in terminal.text) == shown
    terminal.isatty = lambda: False
    terminal.text = ""
    find_misclassified(Always(), samples(), batch_size=5)
    assert terminal.text == ""
    assert math.isclose(progress._DELAY, delay)
