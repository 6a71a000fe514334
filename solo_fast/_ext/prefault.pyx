# cython: language_level=3
"""Gives a freshly forked child at once the pages that it is going to write to.

A child shares the zygote's pages until it writes to one, and CPython writes to whatever it looks at. Each first write
is a page fault, some 5 us in a virtual machine, and a service comes up in hundreds of them. All children do the same
at the same addresses: so one of them shows which pages these are, and Linux copies them for each of the others in one
go (madvise(2), MADV_POPULATE_WRITE; Linux 5.14), at a fifth of the price, while the child is blank and nobody waits.
"""

from libc.errno cimport errno
from libc.stdint cimport uintptr_t

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <sys/time.h>
    #include <sys/wait.h>
    #include <unistd.h>

    #define SOLO_POPULATE_WRITE 23  /* MADV_POPULATE_WRITE, which older headers do not know */
    #define RANGES_MAX 4096
    #define ANSWER_SECONDS_MAX 10
    #define SETTLE_US 2000  /* from the answer until the child waits for its next order */

    /* Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst of Linux). */
    #define PRESENT (1ULL << 63)
    #define OF_A_FILE (1ULL << 61)
    #define EXCLUSIVE (1ULL << 56)

    static struct { uintptr_t start, end; } solo_ranges[RANGES_MAX];
    static int solo_range_count = 0;

    static void solo_note(uintptr_t page, uintptr_t size) {
        int last = solo_range_count - 1;
        if (last >= 0 && solo_ranges[last].end == page) solo_ranges[last].end += size;
        else if (solo_range_count < RANGES_MAX) {
            solo_ranges[solo_range_count].start = page;
            solo_ranges[solo_range_count++].end = page + size;
        }
    }

    /* Note the pages that only `pid` has, of what it may write to and nobody else sees. */
    static void solo_note_pages(pid_t pid) {
        static uint64_t entries[512];
        char path[64], line[512], access[5];
        uintptr_t start, end, size = (uintptr_t)sysconf(_SC_PAGESIZE);
        snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
        int pagemap = open(path, O_RDONLY | O_CLOEXEC);
        snprintf(path, sizeof path, "/proc/%d/maps", pid);
        FILE *maps = fopen(path, "re");
        while (maps && pagemap >= 0 && fgets(line, sizeof line, maps)) {
            if (sscanf(line, "%lx-%lx %4s", &start, &end, access) != 3 || strcmp(access, "rw-p") != 0) continue;
            while (start < end) {
                uintptr_t pages = (end - start) / size < 512 ? (end - start) / size : 512;
                if (pread(pagemap, entries, pages * 8, (off_t)(start / size * 8)) != (ssize_t)(pages * 8)) break;
                for (uintptr_t i = 0; i < pages; i++)
                    if ((entries[i] & (PRESENT | EXCLUSIVE | OF_A_FILE)) == (PRESENT | EXCLUSIVE))
                        solo_note(start + i * size, size);
                start += pages * size;
            }
        }
        if (maps) fclose(maps);
        if (pagemap >= 0) close(pagemap);
    }

    /* Whether what comes on `link` ends with `words` at last. */
    static int solo_hear(int link, const char *words, size_t length) {
        static char heard[65536];
        struct timeval patience = {ANSWER_SECONDS_MAX, 0};
        size_t size = 0;
        setsockopt(link, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        while (size < length || memcmp(heard + size - length, words, length) != 0) {
            ssize_t got = recv(link, heard + size, sizeof heard - size, 0);
            if (got <= 0) return 0;
            size += (size_t)got;
        }
        return 1;
    }

    static void solo_learn(pid_t pid, int link, const char *words, size_t length) {
        if (solo_hear(link, words, length)) {
            usleep(SETTLE_US);
            solo_note_pages(pid);
        }
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }

    static void solo_populate(void) {
        for (int i = 0; i < solo_range_count; i++) {
            char *start = (char *)solo_ranges[i].start;
            if (madvise(start, solo_ranges[i].end - solo_ranges[i].start, SOLO_POPULATE_WRITE) != 0 && errno == EINVAL)
                return;  /* Linux is older: the faults come when they come */
        }
    }
    """
    ctypedef int pid_t
    void solo_learn(pid_t pid, int link, const char *words, size_t length)
    void solo_populate()
    pid_t fork()

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()


def learn(int link_fd, bytes last_words not None):
    cdef const char *words = last_words
    cdef size_t length = len(last_words)
    cdef pid_t pid
    PyOS_BeforeFork()
    pid = fork()
    if pid == 0:
        PyOS_AfterFork_Child()
        return True
    if pid > 0:  # before anything else here: what this process writes to would look like the child's own
        solo_learn(pid, link_fd, words, length)
    PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(errno, "the zygote can't fork")
    return False


cdef void populate() noexcept nogil:
    solo_populate()
