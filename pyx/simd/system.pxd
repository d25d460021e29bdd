# What the operating system is asked for: a thread put to sleep until another wakes it, memory on huge pages. Where it is not
# Linux, or with -DLLAMACY_PORTABLE, a sleeper gives its core away and looks again, and pages are what they are.

cdef extern from *:
    """
    #include <stdlib.h>
    #if defined(__linux__) && !defined(LLAMACY_PORTABLE)
    #include <limits.h>
    #include <linux/futex.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #define thread_sleep(at, value) ((void)syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0))
    #define threads_wake(at) ((void)syscall(SYS_futex, at, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0))
    #define advise_huge(p, size) ((void)madvise(p, size, MADV_HUGEPAGE))
    #elif defined(_WIN32)
    #include <windows.h>
    #define thread_sleep(at, value) ((void)SwitchToThread())
    #define threads_wake(at) ((void)0)
    #define advise_huge(p, size) ((void)0)
    #else
    #include <sched.h>
    #define thread_sleep(at, value) ((void)sched_yield())
    #define threads_wake(at) ((void)0)
    #define advise_huge(p, size) ((void)0)
    #endif

    #if defined(_WIN32)
    #define aligned_memory(size, alignment) _aligned_malloc(size, alignment)
    #define aligned_free(p) _aligned_free(p)
    #else
    static inline void* aligned_memory(size_t size, size_t alignment) {
        void* p = NULL;
        return posix_memalign(&p, alignment, size) == 0 ? p : NULL;
    }
    #define aligned_free(p) free(p)
    #endif
    """
    void thread_sleep(int* at, int value) noexcept nogil    # until woken, or at once if *at is not value; may end early
    void threads_wake(int* at) noexcept nogil
    void advise_huge(void* p, size_t size) noexcept nogil
    void* aligned_memory(size_t size, size_t alignment) noexcept nogil  # NULL where there is none; freed by aligned_free
    void aligned_free(void* p) noexcept nogil
