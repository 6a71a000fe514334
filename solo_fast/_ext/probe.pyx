# cython: language_level=3, boundscheck=False, wraparound=False
"""Looking at services, cheaply: one system call tells whether a process has run, three more how it stands."""

cdef extern from * nogil:
    """
    #include <stdlib.h>
    #include <time.h>
    #include <unistd.h>

    #define SOLO_TEXT 4096

    /* The text of a file of /proc or of a group, NUL behind it; its length, or -1. */
    static ssize_t solo_text(int fd, char *text) {
        ssize_t got = fd < 0 ? -1 : pread(fd, text, SOLO_TEXT - 1, 0);
        text[got < 0 ? 0 : got] = 0;
        return got;
    }

    static long long solo_cpu_ns(int clock_id) {
        struct timespec time;
        if (clock_gettime(clock_id, &time) != 0) return -1;
        return time.tv_sec * 1000000000LL + time.tv_nsec;
    }
    """
    ssize_t solo_text(int fd, char *text)
    long long solo_cpu_ns(int clock_id)
    long strtol(const char *text, char **after, int base)
    void *realloc(void *old, size_t size)
    void free(void *old)
    enum: SOLO_TEXT


def cpu_ns(int clock_id):
    return solo_cpu_ns(clock_id)


def look(int statm_fd, int children_fd, int tasks_fd, int events_fd, int alarms_fd):
    cdef char text[SOLO_TEXT]
    cdef char *at = text
    cdef char *after = NULL
    cdef long pages = 0, tasks = 0, refused = 0, alarms = 0, pid
    cdef ssize_t size
    cdef list children = []
    if solo_text(statm_fd, text) > 0:
        strtol(text, &after, 10)
        pages = strtol(after, NULL, 10)
    size = solo_text(children_fd, text)
    if size > 0:
        while True:
            pid = strtol(at, &after, 10)
            if after == at or (size == SOLO_TEXT - 1 and after[0] == 0):  # the last number may have been cut off
                break
            children.append(pid)
            at = after
    if solo_text(tasks_fd, text) > 0:
        tasks = strtol(text, NULL, 10)
    if solo_text(events_fd, text) > 4:  # "max 3"
        refused = strtol(text + 4, NULL, 10)
    size = solo_text(alarms_fd, text)
    at = text
    while at < text + size:
        if b"0" <= at[0] <= b"9":
            alarms += strtol(at, &after, 10)
            at = after
        else:
            at += 1
    return pages, children, tasks, refused, alarms


cdef class Watchlist:
    cdef int *_clocks
    cdef long long *_seen
    cdef Py_ssize_t _room
    cdef list _entries
    cdef dict _places

    def __cinit__(self):
        self._entries = []
        self._places = {}

    def __dealloc__(self):
        free(self._clocks)
        free(self._seen)

    def add(self, entry, int clock_id):
        cdef Py_ssize_t place = len(self._entries)
        cdef void *clocks
        cdef void *seen
        if entry in self._places:
            return
        if place == self._room:
            clocks = realloc(self._clocks, (2 * self._room + 64) * sizeof(int))
            if clocks == NULL:
                raise MemoryError
            self._clocks = <int *>clocks
            seen = realloc(self._seen, (2 * self._room + 64) * sizeof(long long))
            if seen == NULL:
                raise MemoryError
            self._seen = <long long *>seen
            self._room = 2 * self._room + 64
        self._clocks[place] = clock_id
        self._seen[place] = 0
        self._entries.append(entry)
        self._places[entry] = place

    def remove(self, entry):
        cdef Py_ssize_t place, last = len(self._entries) - 1
        found = self._places.pop(entry, None)
        if found is None:
            return
        place = found
        moved = self._entries.pop()
        if place != last:
            self._entries[place] = moved
            self._places[moved] = place
            self._clocks[place] = self._clocks[last]
            self._seen[place] = self._seen[last]

    def moved(self):
        cdef Py_ssize_t place
        cdef long long now_ns
        cdef list found = []
        for place in range(len(self._entries)):
            now_ns = solo_cpu_ns(self._clocks[place])
            if now_ns >= 0 and now_ns != self._seen[place]:
                self._seen[place] = now_ns
                found.append(self._entries[place])
        return found
