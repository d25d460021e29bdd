"""Has a step gone astray? What a step found says so: a loss or gradient that is no number, a gradient of zero."""

import math

# Below this loss a gradient of zero means that nothing is left to learn; above it, that nothing reaches the pairs.
LEARNT = 1e-6
# An adapter is worth keeping while its loss on a batch is at most this many times that of the run's first step: what
# a learning rate that is far too high leaves after a step is finite, and useless.
WORSE = 1.25
# A step that goes astray is skipped; so many in a row end the run.
IN_A_ROW = 3


def astray(loss, grad_norm):
    """Return in words why a step of this loss and gradient norm must not be taken; None where it may."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        return f"the loss is {loss} and the gradient's norm {grad_norm}"
    if grad_norm == 0 and loss > LEARNT:
        return f"the gradient is exactly zero at a loss of {loss:.4f}"
    return None
