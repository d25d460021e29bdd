# Room 2 of 5, types: the weights as files hold them. Blocks of every quantised type byte for byte, rows of them to f32 and
# back, the search for scales, whether scales are numbers.
# Uses: simd.  Belongs here: how a type's bytes are read and written.  Knows nothing of how weights are multiplied.
