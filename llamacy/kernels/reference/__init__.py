"""Every kernel's plain NumPy twin in float64: the specification that the compiled kernels are tested against.

`quants` holds the rows of every block type, `layers` the layers with their gradients, `model` a whole llama.
Written to be read and to be right, never to be fast; nothing at run time depends on it.
"""
