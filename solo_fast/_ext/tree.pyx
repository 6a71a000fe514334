# cython: language_level=3
"""How much disk a folder takes: a bounded walk that runs without the GIL, for a thread of its own."""

import os

cdef extern from * nogil:
    """
    #include <dirent.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/stat.h>
    #include <unistd.h>

    #define SOLO_DEPTH_MAX 64
    #define SOLO_ENTRY_BYTES 4096

    typedef struct { int64_t bytes; int64_t entries; int64_t stop_at; dev_t device; } solo_usage;

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

    /* Adds the files of that device which a process holds open and which no folder names any more. */
    static void solo_unlinked(const char *descriptors, solo_usage *usage) {
        DIR *folder = opendir(descriptors);
        struct dirent *entry;
        struct stat found;
        if (!folder) return;
        while (usage->bytes < usage->stop_at && (entry = readdir(folder))) {
            if (entry->d_name[0] == '.') continue;
            if (fstatat(dirfd(folder), entry->d_name, &found, 0) != 0) continue;
            if (!S_ISREG(found.st_mode) || found.st_nlink || found.st_dev != usage->device) continue;
            usage->entries++;
            usage->bytes += solo_size(&found);
        }
        closedir(folder);
    }
    """
    ctypedef long long int64_t
    ctypedef struct solo_usage:
        int64_t bytes
        int64_t entries
        int64_t stop_at
    int solo_folder_usage(const char *path, solo_usage *usage)
    void solo_unlinked(const char *descriptors, solo_usage *usage)

ENTRY_BYTES = 4096
DEPTH_MAX = 64


def disk_usage(str path, list pids, int64_t stop_at):
    cdef solo_usage usage
    cdef bytes name = os.fsencode(path)
    cdef const char *c_name = name
    cdef const char *c_descriptors
    cdef bytes descriptors
    cdef int failed
    usage.bytes = usage.entries = 0
    usage.stop_at = stop_at
    with nogil:
        failed = solo_folder_usage(c_name, &usage)
    if failed:
        return 0, 0
    for pid in pids:
        descriptors = b"/proc/%d/fd" % pid
        c_descriptors = descriptors
        with nogil:
            solo_unlinked(c_descriptors, &usage)
    return usage.bytes, usage.entries
