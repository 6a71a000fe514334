# cython: language_level=3
"""How much disk a folder takes: a bounded walk that runs without the GIL, for a thread of its own."""

import os

cdef extern from * nogil:
    """
    #include <dirent.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/stat.h>
    #include <unistd.h>

    #define SOLO_DEPTH_MAX 64
    #define SOLO_ENTRY_BYTES 4096
    #define SOLO_LOOKS_MAX (1 << 17)
    #define SOLO_MAPPINGS_MAX (1 << 19)
    #define SOLO_DELETED " (deleted)\\n"

    /* `looks`: at files that somebody holds; `mappings` read. `seen`: inodes, open addressed, 0 for an empty place. */
    typedef struct {
        int64_t bytes, entries, stop_at, looks, mappings;
        dev_t device;
        ino_t *seen;
        size_t seen_room, seen_count;
    } solo_usage;

    static int64_t solo_size(const struct stat *found) {
        int64_t bytes = (int64_t)found->st_blocks * 512;
        return bytes > SOLO_ENTRY_BYTES ? bytes : SOLO_ENTRY_BYTES;
    }

    /* Adds what is below the folder that `fd` has open, and closes it. Nothing is followed: each folder is opened
       below its parent's descriptor, so that renaming things meanwhile leads the walk nowhere else. */
    static void solo_walk(int fd, int depth, solo_usage *usage) {
        DIR *folder = fdopendir(fd);
        struct dirent *entry;
        struct stat found;
        if (!folder) { close(fd); return; }
        while (usage->bytes < usage->stop_at && (entry = readdir(folder))) {
            if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
            if (fstatat(dirfd(folder), entry->d_name, &found, AT_SYMLINK_NOFOLLOW) != 0) continue;
            usage->entries++;
            usage->bytes += solo_size(&found);
            if (!S_ISDIR(found.st_mode)) continue;
            if (depth == SOLO_DEPTH_MAX) { usage->bytes = usage->stop_at; break; }
            int below = openat(dirfd(folder), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (below >= 0) solo_walk(below, depth + 1, usage);
            else if (errno == EACCES) usage->bytes = usage->stop_at;
        }
        closedir(folder);
    }

    static int solo_folder_usage(const char *path, solo_usage *usage) {
        struct stat found;
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0) return -1;
        if (fstat(fd, &found) != 0) { close(fd); return -1; }
        usage->device = found.st_dev;
        solo_walk(fd, 0, usage);
        return 0;
    }

    /* Where an inode is, or belongs: the multiplier is Knuth's. */
    static size_t solo_place(const ino_t *seen, size_t room, ino_t inode) {
        size_t place = (size_t)((uint64_t)inode * 0x9E3779B97F4A7C15u >> 32) & (room - 1);
        while (seen[place] && seen[place] != inode) place = (place + 1) & (room - 1);
        return place;
    }

    static int solo_widen(solo_usage *usage) {
        size_t room = usage->seen_room ? usage->seen_room * 2 : 64;
        ino_t *wider = calloc(room, sizeof *wider);
        if (!wider) return -1;
        for (size_t i = 0; i < usage->seen_room; i++)
            if (usage->seen[i]) wider[solo_place(wider, room, usage->seen[i])] = usage->seen[i];
        free(usage->seen);
        usage->seen = wider;
        usage->seen_room = room;
        return 0;
    }

    /* Whether it is the first time. Without memory for that it always is: a file may count twice then. */
    static int solo_is_new(solo_usage *usage, ino_t inode) {
        if (usage->seen_count * 2 >= usage->seen_room && solo_widen(usage) != 0) return 1;
        size_t place = solo_place(usage->seen, usage->seen_room, inode);
        if (usage->seen[place]) return 0;
        usage->seen[place] = inode;
        usage->seen_count++;
        return 1;
    }

    /* Adds a file that somebody holds, if no folder of its device names it any more. It counts once, whoever holds it.
       Descriptors and mappings are what a service can have by the hundred thousand, to keep who looks at them busy: so
       many that something could hide behind them are too much. */
    static void solo_held(int folder, const char *name, solo_usage *usage) {
        struct stat found;
        if (++usage->looks > SOLO_LOOKS_MAX) { usage->bytes = usage->stop_at; return; }
        if (fstatat(folder, name, &found, 0) != 0) return;
        if (!S_ISREG(found.st_mode) || found.st_nlink || found.st_dev != usage->device) return;
        if (!solo_is_new(usage, found.st_ino)) return;
        usage->entries++;
        usage->bytes += solo_size(&found);
    }

    /* Adds what a process holds by descriptors: the folder fd of /proc. */
    static void solo_open_files(const char *path, solo_usage *usage) {
        DIR *folder = opendir(path);
        struct dirent *entry;
        if (!folder) return;
        while (usage->bytes < usage->stop_at && (entry = readdir(folder)))
            if (entry->d_name[0] != '.') solo_held(dirfd(folder), entry->d_name, usage);
        closedir(folder);
    }

    /* Adds what a process holds by mappings alone, which Linux shows to root in the folder map_files. To look at each
       there takes twenty times as long as to read the list, which says of which the name is gone. */
    static void solo_mapped_files(const char *path, const char *list_path, solo_usage *usage) {
        const size_t tail = sizeof SOLO_DELETED - 1;
        char *line = NULL, *after, name[48];
        size_t room = 0;
        ssize_t size;
        int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        FILE *list = folder < 0 ? NULL : fopen(list_path, "re");
        while (list && usage->bytes < usage->stop_at && (size = getline(&line, &room, list)) > 0) {
            if (++usage->mappings > SOLO_MAPPINGS_MAX) { usage->bytes = usage->stop_at; break; }
            if ((size_t)size < tail || memcmp(line + size - tail, SOLO_DELETED, tail) != 0) continue;
            unsigned long start = strtoul(line, &after, 16);
            if (*after != '-') continue;
            snprintf(name, sizeof name, "%lx-%lx", start, strtoul(after + 1, NULL, 16));
            solo_held(folder, name, usage);
        }
        free(line);
        if (list) fclose(list);
        if (folder >= 0) close(folder);
    }

    static void solo_forget_seen(solo_usage *usage) { free(usage->seen); }
    """
    ctypedef long long int64_t
    ctypedef struct solo_usage:
        int64_t bytes
        int64_t entries
        int64_t stop_at
    int solo_folder_usage(const char *path, solo_usage *usage)
    void solo_open_files(const char *path, solo_usage *usage)
    void solo_mapped_files(const char *path, const char *list_path, solo_usage *usage)
    void solo_forget_seen(solo_usage *usage)
    void *memset(void *place, int value, size_t size)

ENTRY_BYTES = 4096
DEPTH_MAX = 64


cdef void add_unlinked(int pid, solo_usage *usage) except *:
    cdef bytes folder = b"/proc/%d/" % pid
    cdef bytes opened = folder + b"fd", mapped = folder + b"map_files", listed = folder + b"maps"
    cdef const char *c_opened = opened
    cdef const char *c_mapped = mapped
    cdef const char *c_listed = listed
    with nogil:
        solo_open_files(c_opened, usage)
        solo_mapped_files(c_mapped, c_listed, usage)


def disk_usage(str path, list pids, int64_t stop_at):
    cdef solo_usage usage
    cdef bytes name = os.fsencode(path)
    cdef const char *c_name = name
    cdef int failed
    memset(&usage, 0, sizeof(usage))
    usage.stop_at = stop_at
    with nogil:
        failed = solo_folder_usage(c_name, &usage)
    if failed:
        return 0, 0
    try:
        for pid in pids:
            add_unlinked(pid, &usage)
        return usage.bytes, usage.entries
    finally:
        solo_forget_seen(&usage)
