"""Receptive fields: exact ones from a trace of the network, effective ones from its gradients.

The exact receptive field of a unit is the set of input pixels that it depends on. It is found in
four steps:

1. The network is run once, and every operation that PyTorch carries out is recorded. The list of
   these steps is the **trace**.
2. Each pixel of the input starts with a **position set** along each axis that contains itself:
   pixel (3, 5) has the row {3} and the column {5}.
3. Along the trace, the **rule** of each operation computes the position sets of its result from
   those of its arguments. For a convolution, the set of a unit is the union of the sets in its
   window.
4. When a layer returns, its position sets become a **record**: size, jump, center, padding, and the
   pixels that each unit reads.

A small example with one axis of 6 pixels. A convolution with kernel 3 makes 4 units, and a pooling
by 2 after it makes 2:

    input      {0}   {1}   {2}   {3}   {4}   {5}
    conv       {0,1,2}   {1,2,3}   {2,3,4}   {3,4,5}
    pool       {0,1,2,3}   {2,3,4,5}                     size 4, jump 2, center of unit 0 at 1.5

    >>> from torch import nn
    >>> from cifar_resnet import receptive_field
    >>> fields = receptive_field(nn.Sequential(nn.Conv1d(1, 1, 3), nn.MaxPool1d(2)), (1, 1, 6))
    >>> [fields["1"].region((unit,)) for unit in (0, 1)]
    [((0, 3),), ((2, 5),)]
    >>> fields["1"].size, fields["1"].jump, fields["1"].start
    ((4,), (Fraction(2, 1),), (1.5,))

In reading order:

- `steps`: what a trace consists of;
- `trace`: runs a network and records its trace;
- `recorder`, `names`: the recorder of operations, and the names under which they are listed;
- `numbering`, `memory`: which tensors of a run are the same, or share memory;
- `escapes`: functions that turn values of tensors into numbers;
- `positions`: position sets along one axis, and how they are combined and stored;
- `rules`: the rules of all operations;
- `aliases`: the position sets of each tensor, although views share memory;
- `records`: what is known about one layer call;
- `budget`, `refusals`: the limit of memory, and messages for what cannot be followed;
- `propagation`: applies the rules along the trace and makes the records;
- `tables`, `figures`: how records are printed and drawn;
- `result`: the mapping from names to records that the user gets;
- `arguments`, `analysis`: the public function `receptive_field`;
- `probe`: the public function `check_receptive_field`, an independent experiment;
- `effective`: the public function `effective_receptive_field`, which uses gradients. Of the modules
  above, it uses only two helpers for drawing.
"""
