"""Train a custom ResNet on CIFAR-10 in 24 epochs, or use the parts separately.

Importing this package is cheap: each name, and the libraries it needs, is loaded on first use. The
public names and their modules are listed in `__init__.pyi`, which type checkers read as well.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
