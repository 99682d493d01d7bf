"""Figures of a data set: random samples, samples by class, color channels and augmentation.

- `collection`: read samples of any data, at random or by index
- `figures`: `show_samples`, `show_class_samples` and `show_rgb_channels`
- `augmentations`: `show_augmentations`
"""
