# cython: language_level=3
"""The pages that a service shares with the zygote, and those that it has to itself.

A child shares its parent's pages until it writes to one, and CPython writes to whatever it looks at: reference counts.
A service comes up in hundreds of such first writes. That costs it time, a page fault each, some 5 us in a virtual
machine; and it costs it memory, though most counts are back where they were once it waits for its first call.

The time: all children do the same at the same addresses, so one of them shows which pages these are (`learn`), and Linux
copies them for each of the others in one go, at a fifth of the price, while the child is blank and nobody waits
(`populate`: madvise(2), MADV_POPULATE_WRITE; Linux 5.14).

The memory: the zygote puts what it may write to behind a file in memory, sealed, and mapped privately where it was
(`seal`). A copy that has become equal to its page of the file can then be dropped, and the page is shared again
(`give_back`). That is what kernel samepage merging does for a whole host, without its daemon, and without telling one
tenant what is in another's memory: nothing is compared but with the zygote.
"""

from libc.errno cimport errno

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
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
    #define PAGE 4096UL  /* of the file; a Linux with larger pages does without it */
    #define RANGES_MAX 4096
    #define SEGMENTS_MAX 64
    #define SEGMENT_BYTES_MIN 65536  /* what is smaller is not worth a mapping */
    #define ANSWER_SECONDS_MAX 10
    #define SETTLE_US 2000  /* from the answer until the child waits for its next order */

    /* Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst of Linux). */
    #define PRESENT (1ULL << 63)
    #define OF_A_FILE (1ULL << 61)
    #define EXCLUSIVE (1ULL << 56)

    static struct { uintptr_t start, end; int at_once; } solo_ranges[RANGES_MAX];  /* that services write to */
    static int solo_range_count = 0;
    static struct { uintptr_t start, end, offset; } solo_segments[SEGMENTS_MAX];  /* that the file stands behind */
    static int solo_segment_count = 0;
    static char *solo_view = NULL;  /* of the file, read-only */
    static size_t solo_view_bytes = 0;

    /* What `pid` may write to and nobody else sees, a mapping at a time; a raw read each, so that it allocates nothing. */
    struct solo_maps { int fd; size_t used, size; char text[65536]; };

    static int solo_next_mapping(struct solo_maps *maps, uintptr_t *start, uintptr_t *end, int *is_stack) {
        for (;;) {
            char *line = maps->text + maps->used, *stop = memchr(line, '\\n', maps->size - maps->used);
            if (stop == NULL) {
                maps->size -= maps->used;
                memmove(maps->text, line, maps->size);
                maps->used = 0;
                ssize_t got = read(maps->fd, maps->text + maps->size, sizeof maps->text - 1 - maps->size);
                if (got <= 0) return 0;
                maps->size += (size_t)got;
                continue;
            }
            *stop = 0;
            maps->used = (size_t)(stop - maps->text) + 1;
            char access[5];
            if (sscanf(line, "%lx-%lx %4s", start, end, access) == 3 && strcmp(access, "rw-p") == 0) {
                *is_stack = strstr(line, "[stack]") != NULL;
                return 1;
            }
        }
    }

    static void solo_note(uintptr_t page, int at_once) {
        int last = solo_range_count - 1;
        for (int i = 0; i <= last; i++)
            if (solo_ranges[i].start <= page && page < solo_ranges[i].end) return;
        if (last >= 0 && solo_ranges[last].end == page && solo_ranges[last].at_once == at_once) solo_ranges[last].end += PAGE;
        else if (solo_range_count < RANGES_MAX) {
            solo_ranges[solo_range_count].start = page;
            solo_ranges[solo_range_count].at_once = at_once;
            solo_ranges[solo_range_count++].end = page + PAGE;
        }
    }

    /* Note the pages that only `pid` has. */
    static void solo_note_pages(pid_t pid, int at_once) {
        static uint64_t entries[512];
        static struct solo_maps maps;
        char path[64];
        uintptr_t start, end;
        int is_stack;
        snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
        int pagemap = open(path, O_RDONLY | O_CLOEXEC);
        snprintf(path, sizeof path, "/proc/%d/maps", pid);
        maps.fd = open(path, O_RDONLY | O_CLOEXEC);
        while (pagemap >= 0 && maps.fd >= 0 && solo_next_mapping(&maps, &start, &end, &is_stack)) {
            while (start < end) {
                uintptr_t pages = (end - start) / PAGE < 512 ? (end - start) / PAGE : 512;
                if (pread(pagemap, entries, pages * 8, (off_t)(start / PAGE * 8)) != (ssize_t)(pages * 8)) break;
                for (uintptr_t i = 0; i < pages; i++)
                    if ((entries[i] & (PRESENT | EXCLUSIVE | OF_A_FILE)) == (PRESENT | EXCLUSIVE))
                        solo_note(start + i * PAGE, at_once);
                start += pages * PAGE;
            }
        }
        if (maps.fd >= 0) close(maps.fd);
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

    static void solo_learn(pid_t pid, int link, const char *words, size_t length, int at_once) {
        if (sysconf(_SC_PAGESIZE) == (long)PAGE && solo_hear(link, words, length)) {
            usleep(SETTLE_US);
            solo_note_pages(pid, at_once);
        }
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }

    static void solo_populate(void) {
        for (int i = 0; i < solo_range_count; i++) {
            char *start = (char *)solo_ranges[i].start;
            if (!solo_ranges[i].at_once) continue;
            if (madvise(start, solo_ranges[i].end - solo_ranges[i].start, SOLO_POPULATE_WRITE) != 0 && errno == EINVAL)
                return;  /* Linux is older: the faults come when they come */
        }
    }

    /* The mappings that the file will stand behind: all but the stack, the thread's own area, to which Linux writes
       (rseq), and what is small. */
    static size_t solo_choose_segments(void) {
        static struct solo_maps maps;
        uintptr_t start, end, own = (uintptr_t)pthread_self();
        size_t total = 0;
        int is_stack;
        maps.fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
        if (maps.fd < 0) return 0;
        while (solo_segment_count < SEGMENTS_MAX && solo_next_mapping(&maps, &start, &end, &is_stack)) {
            if (is_stack || (start <= own && own < end) || end - start < SEGMENT_BYTES_MIN) continue;
            solo_segments[solo_segment_count].start = start;
            solo_segments[solo_segment_count].end = end;
            solo_segments[solo_segment_count++].offset = total;
            total += end - start;
        }
        close(maps.fd);
        return total;
    }

    /* The pages of a segment that are there; the others are holes, in the file too. */
    static int solo_open_file(void) { return memfd_create("solo-zygote", MFD_CLOEXEC | MFD_ALLOW_SEALING); }

    static int solo_write_segment(int fd, int pagemap, uintptr_t start, uintptr_t end, uintptr_t offset) {
        for (uintptr_t page = start; page < end; page += PAGE) {
            uint64_t entry;
            if (pread(pagemap, &entry, 8, (off_t)(page / PAGE * 8)) != 8) return -1;
            if (!(entry & (PRESENT | PRESENT >> 1))) continue;  /* present, or swapped out */
            if (pwrite(fd, (void *)page, PAGE, (off_t)(offset + page - start)) != (ssize_t)PAGE) return -1;
        }
        return 0;
    }

    /* Nothing may be written to memory, but to the stack, from the first copy to the last mapping. */
    static size_t solo_seal(int fd) {
        size_t total = sysconf(_SC_PAGESIZE) == (long)PAGE ? solo_choose_segments() : 0;
        int failed = 0, mapped = 0;
        int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        if (total == 0 || pagemap < 0 || ftruncate(fd, (off_t)total) != 0) failed = 1;
        for (int i = 0; i < solo_segment_count && !failed; i++)
            failed = solo_write_segment(fd, pagemap, solo_segments[i].start, solo_segments[i].end, solo_segments[i].offset);
        if (!failed) failed = fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
        char *view = failed ? MAP_FAILED : mmap(NULL, total, PROT_READ, MAP_PRIVATE, fd, 0);
        for (; view != MAP_FAILED && mapped < solo_segment_count; mapped++) {
            size_t size = solo_segments[mapped].end - solo_segments[mapped].start;
            if (mmap((void *)solo_segments[mapped].start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd,
                     (off_t)solo_segments[mapped].offset) == MAP_FAILED) break;
        }
        if (pagemap >= 0) close(pagemap);
        close(fd);
        solo_segment_count = mapped;
        if (mapped == 0) return 0;
        solo_view = view;
        solo_view_bytes = total;
        return total;
    }

    /* Drop the copies from `start` to `end` that equal their pages of the file; how many bytes. */
    static size_t solo_drop_equal(uintptr_t start, uintptr_t end, const char *original) {
        size_t given = 0;
        uintptr_t from = start;  /* of a run of equal pages */
        for (uintptr_t page = start; page <= end; page += PAGE) {
            if (page < end && memcmp((void *)page, original + (page - start), PAGE) == 0) continue;
            if (from < page && madvise((void *)from, page - from, MADV_DONTNEED) == 0) given += page - from;
            from = page + PAGE;
        }
        return given;
    }

    /* Drop every copy, in a process that runs no Python any more. Its stack and its thread's own area are not among
       them; all else is as the zygote had it. */
    static void solo_forget(void) {
        for (int k = 0; k < solo_segment_count; k++)
            madvise((void *)solo_segments[k].start, solo_segments[k].end - solo_segments[k].start, MADV_DONTNEED);
    }

    static size_t solo_give_back(void) {
        sigset_t all, before;
        size_t given = 0;
        if (solo_view == NULL) return 0;
        sigfillset(&all);  /* a handler might write to a page between its comparison and its end */
        sigprocmask(SIG_SETMASK, &all, &before);
        for (int i = 0; i < solo_range_count; i++)
            for (int k = 0; k < solo_segment_count; k++) {
                uintptr_t start = solo_ranges[i].start, end = solo_ranges[i].end;
                if (start < solo_segments[k].start) start = solo_segments[k].start;
                if (end > solo_segments[k].end) end = solo_segments[k].end;
                if (start < end)
                    given += solo_drop_equal(
                        start, end, solo_view + solo_segments[k].offset + (start - solo_segments[k].start));
            }
        madvise(solo_view, solo_view_bytes, MADV_DONTNEED);  /* nor does it hold on to what it has compared with */
        sigprocmask(SIG_SETMASK, &before, NULL);
        return given;
    }
    """
    ctypedef int pid_t
    void solo_learn(pid_t pid, int link, const char *words, size_t length, int at_once)
    void solo_populate()
    int solo_open_file()
    size_t solo_seal(int fd)
    size_t solo_give_back()
    void solo_forget()
    pid_t fork()

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()


def open_file():
    return solo_open_file()


def seal(int fd):
    return solo_seal(fd) if fd >= 0 else 0


def learn(int link_fd, bytes last_words not None, *, bint at_once):
    cdef const char *words = last_words
    cdef size_t length = len(last_words)
    cdef pid_t pid
    PyOS_BeforeFork()
    pid = fork()
    if pid == 0:
        PyOS_AfterFork_Child()
        return True
    if pid > 0:  # before anything else here: what this process writes to would look like the child's own
        solo_learn(pid, link_fd, words, length, at_once)
    PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(errno, "the zygote can't fork")
    return False


cdef void populate() noexcept nogil:
    solo_populate()


cdef void forget() noexcept nogil:
    solo_forget()


def give_back():
    return solo_give_back()
