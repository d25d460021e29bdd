# Room 3 of 5, products: y = W x and dx = W^T dy. Weights repacked in tiles (tiles, a file for each layout, weight_types), inputs
# quantised (inputs, outliers), products of few tokens as tiles stream by (weight_types, superblocks) and of many by unpacked
# panels (panels, four_tokens), gemm over both; `matmul` is their Python side and the memory of packed matrices.
# Uses: simd, types.  Belongs here: a tile layout, a way to multiply.  Knows nothing of layers, attention, training.
