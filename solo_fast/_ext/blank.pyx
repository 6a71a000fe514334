# cython: language_level=3
"""Sets a freshly forked child up: its session, its descriptors, its tie to the kernel. Runs no Python.

Each line of Python that a child runs writes to a dozen pages that it shared with the zygote until then (see
forker.pyx). The same plumbing in Python cost every service half a megabyte.
"""

from libc.errno cimport errno

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <signal.h>
    #include <stdio.h>
    #include <string.h>
    #include <stdlib.h>
    #include <sys/prctl.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #define STDIO_LAST 2
    #define LINK_FD 3
    #define LIFELINE_FD 4
    #define SOLO_SYS_close_range 436
    #define SCRATCH_FD 200  /* above every descriptor of the zygote, so that placing one never overwrites another */

    #define PLACES 6

    /* Put the descriptors into places 1 to 6 (-1: nothing there) and close every other but stdin; 0, or -1 with errno. */
    static int solo_place(const int *given) {
        int held[PLACES];
        for (int i = 0; i < PLACES; i++)
            if ((held[i] = given[i] < 0 ? -1 : fcntl(given[i], F_DUPFD_CLOEXEC, SCRATCH_FD)) < -1) return -1;
        for (int i = 0; i < PLACES; i++) {
            int place = i + 1;
            if (held[i] < 0) close(place);
            else if (dup3(held[i], place, place <= STDIO_LAST ? 0 : O_CLOEXEC) < 0) return -1;
        }
        if (syscall(SOLO_SYS_close_range, PLACES + 1, ~0U, 0) == 0) return 0;
        for (int fd = PLACES + 1; fd < SCRATCH_FD + 64; fd++) close(fd);  /* before Linux 5.9 */
        return 0;
    }

    /* Arm the lifeline: Linux sends SIGKILL to this process group when the pipe's last writer is gone. The pipe is
       opened anew because the owner belongs to the open file description, which all children of the zygote share.
       0; 1 when the writer is gone already; -1 with errno. */
    static int solo_arm(void) {
        char path[32], byte;
        snprintf(path, sizeof path, "/proc/self/fd/%d", LIFELINE_FD);
        int own = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (own < 0 || dup3(own, LIFELINE_FD, O_CLOEXEC) < 0) return -1;
        close(own);
        if (fcntl(LIFELINE_FD, F_SETOWN, -getpid()) < 0 || fcntl(LIFELINE_FD, F_SETSIG, SIGKILL) < 0) return -1;
        int flags = fcntl(LIFELINE_FD, F_GETFL);
        if (flags < 0 || fcntl(LIFELINE_FD, F_SETFL, flags | O_ASYNC) < 0) return -1;
        ssize_t got = read(LIFELINE_FD, &byte, 1);  /* it may have died before the signal was armed */
        return got == 0 ? 1 : got < 0 && errno != EAGAIN ? -1 : 0;
    }

    static int solo_unblock_signals(void) {
        sigset_t none;
        sigemptyset(&none);
        return sigprocmask(SIG_SETMASK, &none, NULL);
    }

    static int solo_take_name(const char *title, const char *home, const char *service_id, const char *tenant) {
        prctl(PR_SET_NAME, title, 0, 0, 0);
        return setenv("HOME", home, 1) || setenv("TMPDIR", home, 1) || setenv("SOLO_SERVICE_ID", service_id, 1)
            || setenv("SOLO_TENANT", tenant, 1) ? -1 : 0;
    }

    static int solo_keep_lifeline(void) { return fcntl(LIFELINE_FD, F_SETFD, 0); }
    """
    int setsid()
    void _exit(int code)
    int solo_place(const int *given)
    int solo_arm()
    int solo_unblock_signals()
    int solo_keep_lifeline()
    int solo_take_name(const char *title, const char *home, const char *service_id, const char *tenant)


def settle(int link_fd, int stdout_fd, int stderr_fd, int lifeline_fd, int ruleset_fd, int network_fd):
    cdef int armed
    cdef int *places = [stdout_fd, stderr_fd, link_fd, lifeline_fd, ruleset_fd, network_fd]
    setsid()
    if solo_place(places) != 0:
        raise OSError(errno, "a child's descriptors can't be placed")
    armed = solo_arm()
    if armed > 0:
        _exit(0)
    if armed < 0 or solo_unblock_signals() != 0:
        raise OSError(errno, "a child can't be tied to the kernel")


def keep_lifeline():
    if solo_keep_lifeline() != 0:
        raise OSError(errno, "the lifeline can't be kept")


def take_name(bytes title, bytes home, bytes service_id, bytes tenant):
    if solo_take_name(title, home, service_id, tenant) != 0:
        raise OSError(errno, "the environment can't be set")
