"""Rules: what the result of an operation depends on, given what its arguments depend on.

A rule is a function of an `Operation`. It is called once for each axis of the input and returns the
`PositionSets` of the result along that axis: a sequence of them if the operation has several
outputs, and None if a result does not depend on the input. The rule of a softmax, for example,
gives each element the union over the dimension that is normalized:

    def softmax(op: Operation) -> PositionSets:
        ref, sets = op.first  # shape of the first argument, and what its elements depend on
        return sets.blend([op["dim"]])

Rules know the operation's shapes and options, but neither the network around it nor the values of
its tensors (except indices, which decide what is read).

In reading order:

- `operation`: what a rule is given, and what it returns;
- `addresses`: views of any kind, by the addresses of their elements;
- `windows`: convolution, pooling, interpolation, padding, unfolding;
- `movement`: views, slices, concatenation and other operations that only move elements;
- `indexing`: operations that read or write the elements named by an index tensor;
- `masks`, `scattering`, `deformable`: masks, elements that are placed one by one, moved taps;
- `algebra`: products, linear algebra, losses, comparisons with a list;
- `registry`: all other operations, and the table in which the rule of an operation is looked up.

An operation without a rule raises an error. `tests/test_receptive_field_rules.py` runs every rule.
"""
