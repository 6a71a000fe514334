# cython: language_level=3
"""The system calls that a sandbox is made of, as plain functions; each raises OSError that names the call.

What is allowed and what is not is decided in solo_fast/runtime: this module only knows how to ask Linux. It is compiled
so that a child which confines itself touches no ctypes, and few pages that it would then have to itself.
"""

from libc.errno cimport errno
from libc.string cimport strerror

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <grp.h>
    #include <linux/types.h>
    #include <sched.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/mount.h>
    #include <sys/prctl.h>
    #include <sys/resource.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* Numbers and structures of kernels that may be newer than the headers this is compiled with. */
    #define SOLO_SYS_close_range 436
    #define SOLO_SYS_mount_setattr 442
    #define SOLO_SYS_landlock_create_ruleset 444
    #define SOLO_SYS_landlock_add_rule 445
    #define SOLO_SYS_landlock_restrict_self 446
    #ifndef SYS_seccomp
    #define SYS_seccomp -1
    #endif

    struct solo_ruleset { uint64_t fs, net, scoped; };
    struct solo_path_rule { uint64_t access; int32_t parent_fd; } __attribute__((packed));
    struct solo_filter { unsigned short count; const void *code; };
    struct solo_mount_attr { uint64_t set, clear, propagation, userns_fd; };

    static int solo_landlock_abi(void) {
        return (int)syscall(SOLO_SYS_landlock_create_ruleset, NULL, 0, 1);
    }

    /* The size says which fields there are: a kernel refuses those that it does not know. */
    static int solo_landlock_create(int abi, uint64_t fs, uint64_t net, uint64_t scoped) {
        struct solo_ruleset set = {fs, net, scoped};
        size_t size = abi >= 6 ? 24 : abi >= 4 ? 16 : 8;
        return (int)syscall(SOLO_SYS_landlock_create_ruleset, &set, size, 0);
    }

    static int solo_landlock_allow(int ruleset, int fd, uint64_t access) {
        struct solo_path_rule rule = {access, fd};
        return (int)syscall(SOLO_SYS_landlock_add_rule, ruleset, 1, &rule, 0);
    }

    static int solo_landlock_restrict(int ruleset) {
        return (int)syscall(SOLO_SYS_landlock_restrict_self, ruleset, 0);
    }

    static int solo_seccomp(const void *code, size_t size, unsigned flags) {
        struct solo_filter filter = {(unsigned short)(size / 8), code};
        return (int)syscall(SYS_seccomp, 1, flags, &filter);
    }

    static int solo_close_range(unsigned first, unsigned last) {
        if (syscall(SOLO_SYS_close_range, first, last, 0) == 0) return 0;
        struct rlimit most;
        if (getrlimit(RLIMIT_NOFILE, &most) != 0) return -1;
        for (unsigned fd = first; fd <= last && fd < most.rlim_cur; fd++) close((int)fd);
        return 0;
    }

    static int solo_limit(int what, uint64_t value) {
        struct rlimit limit = {value, value}, now;
        if (getrlimit(what, &now) != 0) return -1;
        if (limit.rlim_cur > now.rlim_max) limit.rlim_cur = limit.rlim_max = now.rlim_max;
        return setrlimit(what, &limit);
    }

    static int solo_limit_softly(int what, uint64_t value) {
        struct rlimit limit;
        if (getrlimit(what, &limit) != 0) return -1;
        limit.rlim_cur = value < limit.rlim_max ? value : limit.rlim_max;
        return setrlimit(what, &limit);
    }

    /* Nobody else, for good: the real, effective and saved ids, and at most one group beside. Capabilities go with it.
       The plain calls: glibc's would tell other threads, of which there are none. */
    static int solo_become(uid_t uid, gid_t gid, gid_t group) {
        if (setgroups(group ? 1 : 0, &group) != 0) return -1;
        if (syscall(SYS_setresgid, gid, gid, gid) != 0) return -1;
        return (int)syscall(SYS_setresuid, uid, uid, uid);
    }

    static int solo_drop_capabilities(void) {
        struct { uint32_t version; int pid; } head = {0x20080522, 0};
        struct { uint32_t effective, permitted, inheritable; } none[2] = {{0, 0, 0}, {0, 0, 0}};
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        return (int)syscall(SYS_capset, &head, none);
    }

    static int solo_mount_flags(const char *path, uint64_t set) {
        struct solo_mount_attr attr = {set, 0, 0, 0};
        return (int)syscall(SOLO_SYS_mount_setattr, AT_FDCWD, path, AT_RECURSIVE, &attr, sizeof attr);
    }

    static int solo_mount_flags_here(const char *path, uint64_t set) {
        struct solo_mount_attr attr = {set, 0, 0, 0};
        return (int)syscall(SOLO_SYS_mount_setattr, AT_FDCWD, path, 0, &attr, sizeof attr);
    }

    static int solo_bind_fd(int fd, const char *target) {
        char source[32];
        snprintf(source, sizeof source, "/proc/self/fd/%d", fd);
        return mount(source, target, NULL, MS_BIND, NULL);
    }

    /* Both are opened before they are covered, and in the new namespace: another one's mounts can't be bound. The room is
       mounted on its own name, so that it goes by its new one when somebody outside renames it. */
    static int solo_see_only(const char *rooms, const char *house, const char *room) {
        int as_folder = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, house_fd = -1, room_fd = -1, failed = -1;
        if (unshare(CLONE_NEWNS) != 0) return -1;
        if (house[0] && ((house_fd = open(house, as_folder)) < 0 || (room_fd = open(room, as_folder)) < 0)) goto done;
        if (mount("solo", rooms, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=711,size=4k,nr_inodes=4") != 0) goto done;
        if (house[0] && (mkdir(house, 0711) != 0 || solo_bind_fd(house_fd, house) != 0
            || solo_bind_fd(room_fd, room) != 0 || solo_mount_flags_here(house, MS_RDONLY) != 0)) goto done;
        if (solo_mount_flags_here(rooms, MS_RDONLY) == 0) failed = chdir(house[0] ? room : "/");
    done:;
        int problem = errno;
        if (house_fd >= 0) close(house_fd);
        if (room_fd >= 0) close(room_fd);
        errno = problem;
        return failed;
    }

    static int solo_pivot(const char *root, const char *old) { return (int)syscall(SYS_pivot_root, root, old); }
    static int solo_setns(int fd) { return setns(fd, CLONE_NEWNET); }
    static int solo_prctl(int option, unsigned long value) { return prctl(option, value, 0, 0, 0); }
    static int solo_name(const char *name) { return prctl(PR_SET_NAME, name, 0, 0, 0); }
    """
    ctypedef unsigned long long uint64_t
    int PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_GET_NO_NEW_PRIVS, PR_SET_NO_NEW_PRIVS
    int RLIMIT_AS, RLIMIT_CORE, RLIMIT_CPU, RLIMIT_DATA, RLIMIT_FSIZE, RLIMIT_NOFILE, RLIMIT_NPROC
    int MS_BIND, MS_REC, MS_SLAVE, MS_NOSUID, MS_NODEV, MS_MOVE, MNT_DETACH
    int solo_landlock_abi()
    int solo_landlock_create(int abi, uint64_t fs, uint64_t net, uint64_t scoped)
    int solo_landlock_allow(int ruleset, int fd, uint64_t access)
    int solo_landlock_restrict(int ruleset)
    int solo_seccomp(const void *code, size_t size, unsigned flags)
    int solo_close_range(unsigned first, unsigned last)
    int solo_limit(int what, uint64_t value)
    int solo_limit_softly(int what, uint64_t value)
    int solo_become(unsigned uid, unsigned gid, unsigned group)
    int solo_drop_capabilities()
    int solo_mount_flags(const char *path, uint64_t set)
    int solo_mount_flags_here(const char *path, uint64_t set)
    int solo_see_only(const char *rooms, const char *house, const char *room)
    int solo_pivot(const char *root, const char *old)
    int solo_setns(int fd)
    int solo_prctl(int option, unsigned long value)
    int solo_name(const char *name)
    int c_unshare "unshare"(int flags)
    int c_mount "mount"(const char *source, const char *target, const char *kind, unsigned long flags, const char *data)
    int c_umount2 "umount2"(const char *target, int flags)

NEW_MOUNTS, NEW_USER, NEW_IPC, NEW_NET = 0x00020000, 0x10000000, 0x08000000, 0x40000000
READ_ONLY, NO_SUID, NO_DEVICES, NO_PROGRAMS = 1, 2, 4, 8  # MOUNT_ATTR_*


cdef int checked(int result, str call) except -1:
    if result < 0:
        number = errno
        raise OSError(number, f"{call}: {strerror(number).decode()}")
    return result


# -- privileges --------------------------------------------------------------------------------------------------

def no_new_privileges():
    checked(solo_prctl(PR_SET_NO_NEW_PRIVS, 1), "prctl(PR_SET_NO_NEW_PRIVS)")


def has_no_new_privileges():
    return solo_prctl(PR_GET_NO_NEW_PRIVS, 0) == 1


def set_dumpable(bint dumpable):
    checked(solo_prctl(PR_SET_DUMPABLE, dumpable), "prctl(PR_SET_DUMPABLE)")


def is_dumpable():
    return solo_prctl(PR_GET_DUMPABLE, 0) == 1


def become(unsigned int uid, unsigned int gid, unsigned int group):
    checked(solo_become(uid, gid, group), "setresuid")


def drop_capabilities():
    checked(solo_drop_capabilities(), "capset")


def name_process(bytes name):
    checked(solo_name(name), "prctl(PR_SET_NAME)")


# -- descriptors and limits --------------------------------------------------------------------------------------

def close_from(unsigned int first):
    checked(solo_close_range(first, 0xFFFFFFFF), "close_range")


def limit(*, uint64_t data, uint64_t address_space, uint64_t processes, uint64_t files, uint64_t file_bytes,
          uint64_t cpu_s):
    checked(solo_limit(RLIMIT_CORE, 0), "setrlimit(RLIMIT_CORE)")
    checked(solo_limit(RLIMIT_DATA, data), "setrlimit(RLIMIT_DATA)")
    checked(solo_limit(RLIMIT_AS, address_space), "setrlimit(RLIMIT_AS)")
    checked(solo_limit(RLIMIT_NOFILE, files), "setrlimit(RLIMIT_NOFILE)")
    checked(solo_limit(RLIMIT_FSIZE, file_bytes), "setrlimit(RLIMIT_FSIZE)")
    if processes:
        checked(solo_limit(RLIMIT_NPROC, processes), "setrlimit(RLIMIT_NPROC)")
    if cpu_s:
        checked(solo_limit(RLIMIT_CPU, cpu_s), "setrlimit(RLIMIT_CPU)")


def limit_files_softly(uint64_t files):
    checked(solo_limit_softly(RLIMIT_NOFILE, files), "setrlimit(RLIMIT_NOFILE)")


# -- Landlock and seccomp ----------------------------------------------------------------------------------------

def landlock_abi():
    return max(0, solo_landlock_abi())


def landlock_create(int abi, uint64_t fs, uint64_t net, uint64_t scoped):
    return checked(solo_landlock_create(abi, fs, net, scoped), "landlock_create_ruleset")


def landlock_allow(int ruleset, int fd, uint64_t access):
    checked(solo_landlock_allow(ruleset, fd, access), "landlock_add_rule")


def landlock_restrict(int ruleset):
    checked(solo_landlock_restrict(ruleset), "landlock_restrict_self")


def filter_calls(bytes program):
    checked(solo_seccomp(<const char *>program, len(program), 0), "seccomp")


def filter_calls_with_listener(bytes program):
    return checked(solo_seccomp(<const char *>program, len(program), 1 << 3), "seccomp(NEW_LISTENER)")


# -- namespaces and mounts ---------------------------------------------------------------------------------------

def unshare(int flags):
    checked(c_unshare(flags), "unshare")


def enter_network(int fd):
    checked(solo_setns(fd), "setns")


def mount_private():
    """From here on nothing that is mounted here shows elsewhere; what is mounted elsewhere still shows here."""
    checked(c_mount(b"none", b"/", NULL, MS_REC | MS_SLAVE, NULL), "mount(/, MS_SLAVE)")


def mount_tmpfs(bytes target, bytes options):
    checked(c_mount(b"solo", target, b"tmpfs", MS_NOSUID | MS_NODEV, options), f"mount({target!r}, tmpfs)")


def mount_tmpfs_read_only(bytes target):
    checked(solo_mount_flags_here(target, 1), f"mount_setattr({target!r})")


def mount_bind(bytes source, bytes target, *, bint recursive):
    checked(c_mount(source, target, NULL, MS_BIND | (MS_REC if recursive else 0), NULL), f"mount({target!r}, MS_BIND)")


def mount_flags(bytes target, uint64_t flags):
    checked(solo_mount_flags(target, flags), f"mount_setattr({target!r})")


def mount_over_root():
    checked(c_mount(b".", b"/", NULL, MS_MOVE, NULL), "mount(/, MS_MOVE)")


def pivot_root_here():
    """The working directory becomes the root, and the former root is gone. The trick of stacking both in one place is
    of pivot_root(2)."""
    checked(solo_pivot(b".", b"."), "pivot_root")
    checked(c_umount2(b".", MNT_DETACH), "umount2")


def see_only(bytes rooms, bytes house, bytes room):
    checked(solo_see_only(rooms, house, room), "a mount namespace with one work directory")
