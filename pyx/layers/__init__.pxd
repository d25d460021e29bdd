# Room 4 of 5, layers: what happens to one row, or one head, of activations: norms, rope, attention and its KV cache, the MLP,
# low-rank pairs and their dropout, loss, the optimiser. Forward and backward side by side.
# Uses: simd, types, products.  Belongs here: arithmetic of a layer.  Knows nothing of threads, steps, whole models.
