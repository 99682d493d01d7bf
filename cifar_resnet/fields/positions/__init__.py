"""Sets of input positions along one axis, and the operations on them.

For one axis of the input, every element of a tensor has a set: the positions along that axis that
the element depends on. The input itself starts it, element i having the set {i}, and every
operation of a network turns the sets of its arguments into those of its result.

Why one axis at a time is enough: each new set is a union of old ones, and a union can be projected
to an axis before or after it is taken. If unit A reads the pixels (0, 0) and (1, 1), and unit B
reads (1, 2), then their sum reads the rows {0, 1} | {1} = {0, 1} and the columns {0, 1} | {2} =
{0, 1, 2}, whether the rows and columns are listed before or after the union. What is lost is how
rows and columns belong together: the diagonal (0, 0), (1, 1) and the full square of 2 by 2 pixels
have the same rows and columns.

For the same reason branches need no special treatment. A pooling of the sum of two branches reads
the union of what the poolings of each branch read:

    >>> from cifar_resnet.fields.positions import taps
    >>> from cifar_resnet.fields.positions.merging import union
    >>> from cifar_resnet.fields.positions.sets import PositionSets
    >>> def read(sets):  # the positions in the set of each unit of a tensor (1, 1, units)
    ...     return [unit.nonzero().flatten().tolist() for unit in sets.terms[0].seen[:, 0, 0].T]
    >>> x = PositionSets.of_input((1, 1, 6), 2)
    >>> conv = x.window(2, taps.windows(6, units=4, kernel=3, stride=1, padding=0))
    >>> skip = x.window(2, taps.sliced(6, start=2, step=1, units=4))  # x[..., 2:]
    >>> read(conv), read(skip)
    ([[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]], [[2], [3], [4], [5]])
    >>> pool = taps.windows(4, units=2, kernel=2, stride=2, padding=0)
    >>> read(union((1, 1, 4), [conv, skip]).window(2, pool))
    [[0, 1, 2, 3], [2, 3, 4, 5]]
    >>> read(conv.window(2, pool)), read(skip.window(2, pool))
    ([[0, 1, 2, 3], [2, 3, 4, 5]], [[2, 3], [4, 5]])

In reading order:

- `taps`: which elements an operation reads along a dimension, for each element that it makes;
- `packing`: finding equal sets, and the limit of memory;
- `terms`: how sets are stored, and how they continue beyond the borders (pitch and period);
- `sliding`: windows along a dimension;
- `reshaping`: sets when dimensions are merged or split;
- `sets`: `PositionSets`, the sets of all elements of a tensor, with one method for each way in
  which an operation can combine them;
- `merging`: one tensor's sets from those of several: union, concatenation, overwriting.
"""
