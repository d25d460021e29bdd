"""Are a matrix's scales numbers? Infinity and NaN are how a damaged file shows: no block of any type needs them.

A float is infinite or none where all bits of its exponent are set. So a row of the table says which bits of which four
bytes of a block must not all be set: those of one f16, of two neighbours (scale and minimum), of an f32.
"""

from cython.parallel cimport prange
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from llamacy.kernels.threads import check_threads

cdef enum:
    LOW = 0x7c00                # f16 in the first two of the four bytes
    HIGH = 0x7c000000           # f16 in the last two
    BOTH = 0x7f800000           # f32

cdef ScaleField[26] FIELDS
FIELDS[0] = ScaleField(0, 4, 0, BOTH, BOTH)                     # F32
FIELDS[1] = ScaleField(1, 4, 0, LOW, HIGH)                      # F16, two at once
FIELDS[2] = ScaleField(30, 4, 0, 0x7f80, BOTH)                  # BF16, two at once
FIELDS[3] = ScaleField(2, 18, 0, LOW, LOW)                      # Q4_0
FIELDS[4] = ScaleField(3, 20, 0, LOW, HIGH)                     # Q4_1: d, m
FIELDS[5] = ScaleField(6, 22, 0, LOW, LOW)                      # Q5_0
FIELDS[6] = ScaleField(7, 24, 0, LOW, HIGH)                     # Q5_1: d, m
FIELDS[7] = ScaleField(8, 34, 0, LOW, LOW)                      # Q8_0
FIELDS[8] = ScaleField(10, 84, 80, LOW, HIGH)                   # Q2_K: d, dmin
FIELDS[9] = ScaleField(11, 110, 106, HIGH, HIGH)                # Q3_K
FIELDS[10] = ScaleField(12, 144, 0, LOW, HIGH)                  # Q4_K: d, dmin
FIELDS[11] = ScaleField(13, 176, 0, LOW, HIGH)                  # Q5_K: d, dmin
FIELDS[12] = ScaleField(14, 210, 206, HIGH, HIGH)               # Q6_K
FIELDS[13] = ScaleField(15, 292, 0, HIGH, HIGH)                 # Q8_K: f32 d of 2^121 and more: d q is infinite
FIELDS[14] = ScaleField(20, 18, 0, LOW, LOW)                    # IQ4_NL
FIELDS[15] = ScaleField(23, 136, 0, LOW, LOW)                   # IQ4_XS
# MXFP4: the exponent, one byte; 255 is none, with 254 and 253 the largest code, 12 * 2^(e - 128), is above any f32
FIELDS[16] = ScaleField(39, 17, 0, 0xfe, 0xfd)
FIELDS[17] = ScaleField(34, 54, 50, HIGH, HIGH)                 # TQ1_0
FIELDS[18] = ScaleField(35, 66, 62, HIGH, HIGH)                 # TQ2_0
FIELDS[19] = ScaleField(16, 66, 0, LOW, LOW)                    # IQ2_XXS
FIELDS[20] = ScaleField(17, 74, 0, LOW, LOW)                    # IQ2_XS
FIELDS[21] = ScaleField(22, 82, 0, LOW, LOW)                    # IQ2_S
FIELDS[22] = ScaleField(18, 98, 0, LOW, LOW)                    # IQ3_XXS
FIELDS[23] = ScaleField(21, 110, 0, LOW, LOW)                   # IQ3_S
FIELDS[24] = ScaleField(19, 50, 0, LOW, LOW)                    # IQ1_S
# IQ1_M: the top nibbles of four u16 are the f16's, lowest first: its exponent is in the third and the fourth
FIELDS[25] = ScaleField(29, 56, 52, 0x7000c000, 0x7000c000)


cdef const ScaleField* scale_field(int number) noexcept nogil:
    """The table's row for GGUF type `number`, or NULL."""
    cdef int i
    for i in range(<int>(sizeof(FIELDS) // sizeof(ScaleField))):
        if FIELDS[i].number == number:
            return &FIELDS[i]
    return NULL


cdef bint scales_finite(const ScaleField* field, const uint8_t* rows, size_t n_bytes) noexcept nogil:
    """Are all scales in n_bytes of whole blocks numbers?"""
    cdef uint32_t four, first = field.first, second = field.second, found = 0
    cdef size_t i, n = n_bytes // field.step, step = field.step
    cdef const uint8_t* p = rows + field.at
    for i in range(n):
        memcpy(&four, p + i * step, 4)
        found |= ((four & first) == first) | ((four & second) == second)
    if n * step < n_bytes:      # an odd number of 16-bit floats
        four = 0
        memcpy(&four, rows + n * step, n_bytes - n * step)
        found |= (four & first) == first
    return not found


def finite(const uint8_t[:, ::1] rows, int number, int n_threads=1):
    """Are all scales of rows of blocks, uint8 (n, row bytes), of GGUF type `number`, numbers?"""
    cdef const ScaleField* field = scale_field(number)
    cdef size_t row_bytes = rows.shape[1]
    cdef Py_ssize_t r
    cdef int bad = 0
    if field == NULL:
        raise ValueError(f"type {number} is not known here")
    check_threads(n_threads)
    if rows.shape[0] and row_bytes:
        for r in prange(rows.shape[0], num_threads=n_threads, schedule="static", nogil=True):
            bad += not scales_finite(field, &rows[r, 0], row_bytes)
    return bad == 0
