"""Parts that several figures share: pictures from tensors, the palette, grids of images."""
