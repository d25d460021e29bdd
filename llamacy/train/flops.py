"""How much arithmetic a step is, and how much this machine can do: for the log's flop_utilisation."""

import time

import numpy as np

from llamacy import kernels

Q4_0, SIZE, TOKENS = 2, 1024, 256


class Flops:
    """flops(tokens, trained tokens) of a step: 2 per multiply-add of the products with the model's weights.

    Forward through every layer, gradients (W^T dy) back through those from `first_layer` on, and the output head both
    ways for trained tokens. Attention, adapters and whatever is computed again are left out, and nothing is taken off
    for what a step saves: it is the work that is worth doing, as in PaLM's model FLOPs, without gradients of W.
    """

    def __init__(self, config, first_layer):
        layers = [
            sum(_products(config, shape) for shape in config.layer_shapes(i).values()) for i in range(config.n_layer)
        ]
        self.first_layer = first_layer
        self.per_token = 2 * (sum(layers) + sum(layers[first_layer:]))
        self.per_trained = 4 * config.n_rows * config.n_embd

    def __call__(self, tokens, trained_tokens):
        return self.per_token * tokens + self.per_trained * trained_tokens


def _products(config, shape):
    """Return the multiply-adds of a token with a part of a layer: of experts only those that it is given to."""
    n = config.experts.n_used if len(shape) == 3 else 1
    return n * shape[-2] * shape[-1]


def peak_flops(threads):
    """Return the operations per second of a product in training's precision, the best of a few: 4 bits, 256 tokens."""
    rows = np.zeros((SIZE, SIZE // 32 * 18), np.uint8)
    matrix = kernels.matmul.PackedMatrix(rows, Q4_0, SIZE)
    x, best = np.ones((TOKENS, SIZE), np.float32), np.inf
    for _ in range(8):
        began = time.perf_counter()
        kernels.matmul.matmul(matrix, x, "int16", threads)
        best = min(best, time.perf_counter() - began)
    return 2 * SIZE * SIZE * TOKENS / best
