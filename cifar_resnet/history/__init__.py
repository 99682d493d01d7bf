"""The history of every training image: what a network made of it in each epoch.

`TrainingHistory` records loss, margin and prediction of each image from the batches that the
training computes anyway. The resulting `ImageHistory` shows which images are easy, which are
forgotten, and which may have a wrong label.

| module     | content                                                         |
| ---------- | --------------------------------------------------------------- |
| `recorder` | the callback                                                    |
| `batches`  | which images are in a batch, and their scores                   |
| `store`    | values of the current run, over batches, epochs and processes   |
| `history`  | the recorded values; saving and loading                         |
| `scores`   | dataset map, forgetting events, area under the margin           |
| `issues`   | images with doubtful labels                                     |
"""
