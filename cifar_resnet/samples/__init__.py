"""The data set as figures: samples, classes, channels, and what augmentation makes of an image."""
