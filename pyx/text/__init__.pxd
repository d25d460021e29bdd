# The room beside the five, text: bytes and ids. Strings of a file, cutting and merging of text into tokens, choice of the
# next one. Compiled once, not per instruction set.
# Uses: nothing.  Belongs here: what is too slow in Python and has no vectors.  Knows nothing of weights.
