# Room 1 of 5, simd: the machine. One file per instruction set, each defining the same verbs over 16 lanes; the one that is
# being compiled for is staged as `verbs`. immintrin, x86 and arm_neon declare the compiler's instructions for them;
# system what the operating system is asked for.
# Uses: nothing.  Belongs here: an instruction set, a verb.  Knows nothing of blocks, tiles, tokens.
