"""Find the errors of a classifier, explain them with class activation maps, and draw them.

- `scan`: `find_misclassified` runs a model over a data set and collects its errors
- `records`: the collected errors and counts
- `scores`: class scores of a model, before any softmax
- `cams`: `compute_cams` computes class activation maps
- `layers`: choose the layers that the maps are computed from
- `execution`: run a model on another device or in another precision
- `maps`: class activation maps of errors, which may differ in size
- `figures`: `show_misclassified` draws errors with their maps
- `cells`: one error in that figure
- `diagrams`: `show_confusion_matrix` and `show_calibration`
- `tested`: the samples that a Lightning trainer tests
- `callback`: `LogMisclassified` logs the figures at the end of a Lightning test
"""
