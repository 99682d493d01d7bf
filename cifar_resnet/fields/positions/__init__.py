"""Sets of input positions along one axis, and the operations on them."""
