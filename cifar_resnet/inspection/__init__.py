"""Look into a network: features, nearest images, channel maps and filters.

- `heads`: find the layer before which the features of a classifier are taken
- `features`: `compute_features` returns the vector before the head for each image
- `nearest`: `find_nearest` finds the training images whose features are most similar
- `nearest_figure`: `show_nearest` draws them
- `activations`: `show_features` draws the channels of layers for one image
- `filters`: `show_filters` draws the weights of a convolution
"""
