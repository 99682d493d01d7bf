"""Training of image classifiers with PyTorch Lightning, and its parts for other training loops.

A `Recipe` holds the hyperparameters of a run. `ImageClassifier` is the `LightningModule` that
trains and evaluates a network with it; `make_optimizer` and `make_scheduler` give a plain PyTorch
loop the same optimizer and schedule. `LastCheckpoint` and `AtomicCheckpointIO` let an interrupted
run resume exactly, and `show_training_curves` plots what it logged.

| module          | content                                                             |
| --------------- | ------------------------------------------------------------------- |
| `recipe`        | hyperparameters, presets, shape of the learning rate schedule       |
| `optimizers`    | optimizer and schedule of a recipe                                  |
| `optimization`  | their use under Lightning                                           |
| `batches`       | images and labels of a batch, checked                               |
| `losses`        | cross-entropy with class weights, or another loss                   |
| `run_state`     | what a resumed run needs; number of steps                           |
| `muon`          | the Muon optimizer                                                  |
| `classifier`    | the `LightningModule`: steps, logging, checks                       |
| `epoch_sums`    | loss and accuracy of an epoch without synchronizing a GPU           |
| `tta`           | test-time augmentation                                              |
| `checkpoints`   | saving and resuming                                                 |
| `compatibility` | comparison of a checkpoint with the network and recipe              |
| `curves`        | reading logs and plotting curves                                    |
"""
