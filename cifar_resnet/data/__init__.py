"""CIFAR-10, one piece a file: `cifar10` (facts), `formats` (files and their proof), `sources` and
`download` (where they come from), `order` (which sample when), `augment` (uint8 images to batches),
`loaders` (iteration), `module` (the composition).
"""
