"""Test CIFAR100DataModule with files that are generated in the layout of the official archive.

The archive itself is never downloaded here. Its checksums are those that others publish.
"""

import hashlib
import io
import logging
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import python_2_pickle
from torchvision import datasets

from cifar_resnet import CIFAR100DataModule, DatasetError
from cifar_resnet.cli.main import main
from cifar_resnet.data import cifar100, cifar100_files
from cifar_resnet.data.download import DownloadError

TRAIN, TEST = 400, 200
RNG = np.random.default_rng(0)
IMAGES = {
    name: RNG.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    for name, count in (("train", TRAIN), ("test", TEST))
}
FINE = {name: np.arange(len(images)) % 100 for name, images in IMAGES.items()}


def string(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def sequence(items: Iterable[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def raw(name: str) -> bytes:
    """Return a file of the archive, pickled as Python 2 did for the official ones."""
    if name == "meta":
        content = b"\x80\x02}("
        for key, names in (("fine", cifar100.CLASSES), ("coarse", cifar100.SUPERCLASSES)):
            content += string(f"{key}_label_names".encode())
            content += sequence(string(each.encode()) for each in names)
        return content + b"u."
    fine = FINE[name].astype(np.uint8)
    content = python_2_pickle(np.hstack([fine[:, None], IMAGES[name].reshape(-1, 3072)]))
    assert content.endswith(b"u.")
    for key, labels in ((b"fine_labels", fine), (b"coarse_labels", fine // 5)):
        content = content[:-2] + string(key)
        content += sequence(b"K" + bytes([label]) for label in labels) + b"u."
    return content


FILES = {name: raw(name) for name in ("train", "test", "meta")}


@pytest.fixture(autouse=True)
def _official(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library take the generated files as official."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}
    archive = cifar100.ARCHIVE._replace(
        size=len(ARCHIVE), sha256=hashlib.sha256(ARCHIVE).hexdigest()
    )
    for field, value in (
        ("PICKLE_MD5", sums), ("ARCHIVE", archive), ("TRAIN_SIZE", TRAIN), ("TEST_SIZE", TEST),
    ):  # fmt: skip
        monkeypatch.setattr(cifar100, field, value)
    monkeypatch.setattr(cifar100_files, "_SPACE_NEEDED", 0)


def archived() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        for name, content in FILES.items():
            member = tarfile.TarInfo(f"{cifar100.FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


ARCHIVE = archived()
OFFICIAL = {name: getattr(cifar100, name) for name in ("PICKLE_MD5", "ARCHIVE")}


def unpack(folder: Path) -> Path:
    files = folder / cifar100.FOLDER
    files.mkdir(parents=True)
    for name, content in FILES.items():
        (files / name).write_bytes(content)
    return files


def test_the_checksums_are_torchvisions() -> None:
    kind = datasets.CIFAR100
    expected = dict(kind.train_list + kind.test_list) | {"meta": kind.meta["md5"]}
    assert expected == OFFICIAL["PICKLE_MD5"]
    assert kind.filename == OFFICIAL["ARCHIVE"].name
    assert kind.base_folder == cifar100.FOLDER
    assert sorted(cifar100.CLASSES) == [*cifar100.CLASSES]
    assert (len({*cifar100.CLASSES}), len({*cifar100.SUPERCLASSES})) == (100, 20)


@pytest.mark.parametrize("labels", ["fine", "coarse"])
def test_an_archive_is_unpacked_and_read(tmp_path: Path, labels: str) -> None:
    (tmp_path / cifar100.ARCHIVE.name).write_bytes(ARCHIVE)
    data = CIFAR100DataModule(
        tmp_path, val_split=100, labels=labels, class_subset=(3, 7), download=False
    )
    assert data.num_samples == (6 if labels == "fine" else 30)
    data.prepare_data()
    data.setup()
    assert {p.name for p in (tmp_path / cifar100.FOLDER).iterdir()} == {*FILES}
    assert data.classes == tuple(
        (cifar100.CLASSES if labels == "fine" else cifar100.SUPERCLASSES)[n] for n in (3, 7)
    )
    arrays = data._arrays
    assert (arrays.train_images.transpose(0, 3, 1, 2) == IMAGES["train"]).all()
    expected = FINE["test"] // (1 if labels == "fine" else 5)
    assert (arrays.test_labels == expected).all()
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape[1:] == (3, 32, 32)
    np.testing.assert_allclose(data.mean, IMAGES["train"].mean((0, 2, 3)) / 255)


def test_the_command_verifies_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cifar_resnet")  # as the command does, but restored
    files = unpack(tmp_path)
    command = ["data", "cifar100", "--data-dir", str(tmp_path), "--no-download"]
    assert main(command) == 0
    expected = f"CIFAR-100 in {tmp_path}: 400 training images and 200 test images, verified.\n"
    assert capsys.readouterr().out == expected
    (files / "test").write_bytes(FILES["test"][:-1])
    assert main(command) == 1
    assert "not the official CIFAR-100 file 'test'" in capsys.readouterr().err


def test_modules_share_their_images_and_resume_with_the_same_labels(tmp_path: Path) -> None:
    unpack(tmp_path)
    fine, coarse = (CIFAR100DataModule(tmp_path, 50, 100, labels=n) for n in ("fine", "coarse"))
    other = CIFAR100DataModule(tmp_path)
    for data in (fine, coarse, other):
        data.setup()
    assert fine._arrays.train_images is other._arrays.train_images
    with pytest.raises(ValueError, match=r"dataset is 'CIFAR-100 \(fine labels\)' instead of"):
        coarse.load_state_dict(fine.state_dict())
    assert len(torch.cat([labels for _, labels in fine.train_dataloader()])) == 300


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    files = unpack(tmp_path)
    content = bytearray(FILES["train"])
    content[5000] ^= 1
    (files / "train").write_bytes(content)
    data = CIFAR100DataModule(tmp_path)
    data.prepare_data()
    with pytest.raises(DatasetError, match="not the official CIFAR-100 file 'train' .* Delete"):
        data.setup()
    shutil.rmtree(files)
    (tmp_path / cifar100.ARCHIVE.name).write_bytes(ARCHIVE[:-1])
    with pytest.raises(DatasetError, match="incomplete or another file. Delete .* CIFAR-100 again"):
        data.prepare_data()


def test_what_to_do_without_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand = "put cifar-100-python.tar.gz into .*kriz/cifar-100-python.tar.gz and .*zenodo.org"
    with pytest.raises(DatasetError, match=f"Call prepare_data.. to download it, or {by_hand}"):
        CIFAR100DataModule(tmp_path).setup()
    with pytest.raises(DatasetError, match=f"downloading is switched off; {by_hand}"):
        CIFAR100DataModule(tmp_path, download=False).prepare_data()

    def fail(sources: Any, folder: Path) -> None:
        raise DownloadError("; ".join(f"{source.name}: no connection" for source in sources))

    monkeypatch.setattr(cifar100_files, "download", fail)
    message = (
        "(?s)could not be downloaded.\nthe official site: no connection; Zenodo: no connection"
    )
    with pytest.raises(DatasetError, match=f"{message}.*To place it by hand, {by_hand}"):
        CIFAR100DataModule(tmp_path).prepare_data()
    monkeypatch.setenv("CIFAR100_URL", "/data/x.tar.gz")
    with pytest.raises(DatasetError, match=r"\$CIFAR100_URL must be the address of cifar-100"):
        CIFAR100DataModule(tmp_path).prepare_data()
    monkeypatch.setenv("CIFAR100_DIR", str(tmp_path))
    assert CIFAR100DataModule().data_dir == tmp_path
    (tmp_path / cifar100.FOLDER).touch()
    with pytest.raises(DatasetError, match="is in the way: .* files of CIFAR-100. .*CIFAR100_DIR"):
        CIFAR100DataModule().prepare_data()


def test_a_download_is_verified_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR100_URL", "https://own.example/cifar-100-python.tar.gz")
    offered: list[str] = []

    def serve(sources: Any, folder: Path) -> tuple[Any, Path]:
        offered.extend(source.name for source in sources)
        path = folder / sources[0].archive.name
        path.write_bytes(ARCHIVE)
        return sources[0], path

    monkeypatch.setattr(cifar100_files, "download", serve)
    data = CIFAR100DataModule(tmp_path)
    data.prepare_data()
    data.setup()
    assert offered == ["$CIFAR100_URL", "the official site", "Zenodo"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cifar100.lock", cifar100.FOLDER]


def test_other_class_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = unpack(tmp_path)
    content = FILES["meta"].replace(b"apple", b"apply")
    (files / "meta").write_bytes(content)
    sums = cifar100.PICKLE_MD5 | {"meta": hashlib.md5(content).hexdigest()}
    monkeypatch.setattr(cifar100, "PICKLE_MD5", sums)
    with pytest.raises(DatasetError, match="has other class names than this library"):
        CIFAR100DataModule(tmp_path).setup()
