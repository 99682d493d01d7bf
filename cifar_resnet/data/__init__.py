"""Small images: from arrays, folders and verified files to batches.

Facts and files of CIFAR-10 and CIFAR-100:

- `cifar10`, `cifar100`: class names, file layout and checksums.
- `download`: download one file over HTTP, with resume.
- `formats`: read each file format and verify it.
- `sources`, `cifar100_files`: find the files in a folder, or fetch them.
- `evaluation_sets`: read further evaluation sets.

Any images:

- `inputs`: convert images and labels of any kind to arrays.
- `folders`, `libraries`: read folders of files, and the datasets of torchvision and Hugging Face.
- `sets`: what is known about images before they are read.
- `statistics`: compute mean and standard deviation, and normalize.

Batches:

- `selection`: which images to train on and to hold out.
- `corruption`: label noise and long-tailed classes.
- `splits`: the images, indices and labels of each split.
- `order`: which samples are in which batch, and the validation split.
- `image_indices`: validate indices and weights of images.
- `sampling`: batches with each class equally often, or by weights.
- `augment`: uint8 images to augmented, normalized batches.
- `mixing`: MixUp and CutMix of batches.
- `loaders`: loaders for device-resident images and for per-sample transforms.
- `origin`: what the images of a loader depend on, for a record of the training.
- `loading`: the loaders of a data module.
- `module`: the `ImageDataModule`, which combines all of the above.
- `cifar_modules`: the `CIFAR10DataModule` and `CIFAR100DataModule`, which add the download.

What other code needs to know about data:

- `reading`: read any dataset, loader or data module in order, with indices.
- `class_names`: convert class names and class numbers.
- `label_suspects`: test images whose given label is doubtful.
"""
