"""The command `cifar-resnet`, which combines the parts of the library.

`main` parses the arguments and runs one of the subcommands `train`, `compare`, `data`,
`misclassified`, `predict` and `app`, each in the module of its name. `options` holds what their
arguments share;
`datasets`, `hardware`, `run_folder`, `loggers`, `progress` and `report` are parts of `train`;
`networks` and `images` read the network and the images that a user names; `demo` is the page of
`app`.
"""
