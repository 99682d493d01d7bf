"""CIFAR-10: `cifar10` (facts), `sources` and `download` (files), `order` (which sample when),
`augment` (uint8 images to batches), `loaders` (iteration), `module` (the composition).
"""
