"""Find the strings of a length-prefixed array without making Python objects of them."""

from libc.stdint cimport int64_t, uint8_t, uint64_t


def scan_strings(
    const uint8_t[::1] data, int64_t position, int width, int64_t[::1] starts, int64_t[::1] lengths, int trailer=0
):
    """Write where each of len(starts) strings lies in `data`; return the position after the last one.

    Each string is a little-endian length of `width` bytes (4 or 8), that many bytes, and `trailer` more bytes (0 to 8)
    that are skipped. `starts` and `lengths` (equal length) are written. A string that would leave `data` stops the
    scan: -1 - its index is returned.
    """
    cdef int64_t size = data.shape[0], n = starts.shape[0], i
    cdef uint64_t length
    cdef int k
    if lengths.shape[0] != n or (width != 4 and width != 8) or trailer < 0 or trailer > 8:
        raise ValueError("scan_strings: wanted equal arrays, a width of 4 or 8 and a trailer of 0 to 8")
    if position < 0 or position > size:
        return -1
    with nogil:
        for i in range(n):
            if size - position < width + trailer:
                break
            length = 0
            for k in range(width):
                length |= <uint64_t>data[position + k] << (8 * k)
            position += width
            # Compared unsigned, so that a length beyond 2^63 is too long and not negative.
            if length > <uint64_t>(size - position - trailer):
                break
            starts[i] = position
            lengths[i] = <int64_t>length
            position += <int64_t>length + trailer
        else:
            i = n
    return position if i == n else -1 - i
