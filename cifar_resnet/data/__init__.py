"""CIFAR-10: from verified files to batches.

Facts and files:

- `cifar10`: class names, statistics, file layout and checksums.
- `download`: download one file over HTTP, with resume.
- `formats`: read each file format and verify it.
- `sources`: find the files in a folder, or fetch them.

Batches:

- `selection`: which images to train on and to hold out.
- `corruption`: label noise and long-tailed classes.
- `splits`: the images, indices and labels of each split.
- `order`: which samples are in which batch, and the validation split.
- `sampling`: batches with each class equally often.
- `augment`: uint8 images to augmented, normalized batches.
- `mixing`: MixUp and CutMix of batches.
- `loaders`: loaders for device-resident images and for per-sample transforms.
- `module`: the `CIFAR10DataModule`, which combines all of the above.

What other code needs to know about data:

- `reading`: read any dataset, loader or data module in order, with indices.
- `class_names`: convert class names and class numbers.
- `label_suspects`: test images whose given label is doubtful.
"""
