# cython: language_level=3
"""The guard of a service: a small process beside it that decides on addresses, and watches its lifeline.

A system-call filter sees registers, not what they point to, and Landlock knows ports, not addresses. So the filter has
connect, bind and listen of such a service wait for the guard. It copies the address, decides on the copy, and makes the
call itself, on a duplicate of the service's socket: what the service does to its memory meanwhile changes nothing
(seccomp_unotify(2) tells why letting the call go on would not do).

Who may send descriptors can send itself its lifeline, and disarm it by the number it comes back by: F_SETFL without
O_ASYNC is a call that honest code makes, and no filter knows what its descriptor is. So a service that has sendmsg has
a guard which looks for the end of the kernel itself. That is all it does where no calls wait for it.

The guard is forked by the service's own process before it is confined, and runs none of the service's code. It is in
the service's process group and ends with it; without it, the waiting calls fail.
"""

from libc.errno cimport errno

from solo_fast._ext.pages cimport forget

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <arpa/inet.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/seccomp.h>
    #include <netinet/in.h>
    #include <poll.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/ioctl.h>
    #include <sys/prctl.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <unistd.h>

    #define SOLO_SYS_pidfd_open 434
    #define SOLO_SYS_close_range 436
    #define SOLO_SYS_pidfd_getfd 438
    #define LIFELINE_FD 4
    #define PORTS_MAX 16

    struct guard_ports { int count; uint16_t closed[PORTS_MAX]; };

    static int is_loopback_v4(uint32_t address) { return (ntohl(address) >> 24) == 127; }

    /* Whether an address is of this host's loopback; its port, or -1. */
    static int loopback_port(const struct sockaddr_storage *at, socklen_t size) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)at;
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)at;
        if (at->ss_family == AF_INET && size >= sizeof *v4 && is_loopback_v4(v4->sin_addr.s_addr))
            return ntohs(v4->sin_port);
        if (at->ss_family != AF_INET6 || size < sizeof *v6) return -1;
        if (IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr)) return ntohs(v6->sin6_port);
        uint32_t mapped;
        memcpy(&mapped, v6->sin6_addr.s6_addr + 12, 4);
        if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr) && is_loopback_v4(mapped)) return ntohs(v6->sin6_port);
        return -1;
    }

    /* The process of a thread; pidfd_getfd wants the process. 0: it is gone. */
    static pid_t process_of(pid_t thread) {
        char path[64], text[1024], *found;
        snprintf(path, sizeof path, "/proc/%d/status", (int)thread);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) return 0;
        ssize_t size = read(fd, text, sizeof text - 1);
        close(fd);
        if (size <= 0) return 0;
        text[size] = 0;
        found = strstr(text, "\\nTgid:");
        return found ? (pid_t)strtol(found + 6, NULL, 10) : 0;
    }

    static int is_closed(int port, const struct guard_ports *ports) {
        for (int i = 0; i < ports->count; i++)
            if (ports->closed[i] == port) return 1;
        return 0;
    }

    /* A closed port is no more to be listened at than to be connected to: at another address of loopback, it would be
       called in the kernel's place. It is looked at again by listen, as Linux chooses the port of who binds to 0. */
    static int may_use(int call, int sock, const struct sockaddr_storage *at, socklen_t size,
                       const struct guard_ports *ports) {
        struct sockaddr_storage own;
        socklen_t own_size = sizeof own;
        if (call == SYS_connect && at->ss_family == AF_UNSPEC) return 1; /* takes a connection back */
        if (call == SYS_listen) { /* an unbound socket would listen on every address */
            memset(&own, 0, sizeof own);
            if (getsockname(sock, (struct sockaddr *)&own, &own_size) != 0) return 0;
            at = &own;
            size = own_size;
        }
        int port = loopback_port(at, size);
        return port >= 0 && !is_closed(port, ports);
    }

    /* Make the call on behalf of a thread of the service: 0, or an errno. */
    static int decide(int listener, const struct seccomp_notif *asked, const struct guard_ports *ports) {
        struct sockaddr_storage at;
        socklen_t size = 0;
        int call = asked->data.nr, result = EACCES;
        pid_t process = process_of((pid_t)asked->pid);
        if (process <= 0) return ESRCH;
        memset(&at, 0, sizeof at);
        if (call != SYS_listen) {
            size = (socklen_t)asked->data.args[2];
            if (size < sizeof(sa_family_t) || size > sizeof at) return EINVAL;
            struct iovec here = {&at, size}, there = {(void *)(uintptr_t)asked->data.args[1], size};
            if (process_vm_readv(process, &here, 1, &there, 1, 0) != (ssize_t)size) return EFAULT;
        }
        int pidfd = (int)syscall(SOLO_SYS_pidfd_open, process, 0);
        if (pidfd < 0) return EACCES;
        int sock = (int)syscall(SOLO_SYS_pidfd_getfd, pidfd, (int)asked->data.args[0], 0);
        if (sock < 0) result = errno == EBADF ? EBADF : EACCES;
        /* Still the thread that asked, and not a later one with its number? */
        if (sock >= 0 && ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &asked->id) == 0
            && may_use(call, sock, &at, size, ports)) {
            int done = call == SYS_listen ? listen(sock, (int)asked->data.args[1])
                     : call == SYS_bind ? bind(sock, (struct sockaddr *)&at, size)
                     : connect(sock, (struct sockaddr *)&at, size);
            result = done == 0 ? 0 : errno;
        }
        if (sock >= 0) close(sock);
        close(pidfd);
        return result;
    }

    /* Sleep until `fd` has something, and end the group when the kernel is gone; the events, 0 for none. */
    static int guard_wait(int fd, int lifeline) {
        struct pollfd watched[2] = {{fd, POLLIN, 0}, {lifeline, 0, 0}};
        if (poll(watched, 2, -1) < 0) return errno == EINTR ? 0 : POLLERR;
        if (watched[1].revents & POLLHUP) kill(0, SIGKILL);
        return watched[0].revents;
    }

    static void guard_serve(int listener, int lifeline, const struct guard_ports *ports) {
        struct seccomp_notif asked;
        struct seccomp_notif_resp answer;
        for (;;) {
            int events = guard_wait(listener, lifeline);
            if (events & (POLLHUP | POLLERR | POLLNVAL)) return; /* the last of the service is gone */
            if (!events) continue;
            memset(&asked, 0, sizeof asked);
            if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked) != 0) {
                if (errno == EINTR || errno == ENOENT) continue;
                return;
            }
            memset(&answer, 0, sizeof answer);
            answer.id = asked.id;
            answer.error = -decide(listener, &asked, ports);
            ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
        }
    }

    static void guard_settle(void) {
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
        prctl(PR_SET_NAME, "solo-guard", 0, 0, 0);
    }

    /* In the guard: keep `fd` as 0 and the lifeline as 1, and nothing else. */
    static void guard_keep(int fd) {
        if (dup2(fd, 0) != 0 || dup2(LIFELINE_FD, 1) != 1) _exit(1);
        syscall(SOLO_SYS_close_range, 2, ~0U, 0);
    }

    /* In a guard that watches the lifeline alone, until the service's leader ends. */
    static void guard_watch(int leader) {
        guard_settle();
        guard_keep(leader);
        while (!guard_wait(0, 1)) continue;
        _exit(0);
    }

    /* In the guard: wait for the number of the service's listener, take a duplicate, say how that went, and serve. */
    static void guard_main(int order, int answer, const struct guard_ports *ports) {
        int number = -1, failed = 0, listener = -1;
        guard_settle();
        pid_t service = getppid();
        if (read(order, &number, sizeof number) != sizeof number) _exit(0);
        int pidfd = (int)syscall(SOLO_SYS_pidfd_open, service, 0);
        if (pidfd >= 0) listener = (int)syscall(SOLO_SYS_pidfd_getfd, pidfd, number, 0);
        if (listener < 0) failed = errno ? errno : EPERM;
        if (write(answer, &failed, sizeof failed) != sizeof failed || failed) _exit(1);
        guard_keep(listener);
        guard_serve(0, 1, ports);
        _exit(0);
    }

    /* A child that a plain wait() does not see: it has no exit signal. */
    static pid_t fork_unseen(void) { return (pid_t)syscall(SYS_clone, 0, 0, 0, 0, 0); }

    static int open_self(void) { return (int)syscall(SOLO_SYS_pidfd_open, getpid(), 0); }

    static void let_trace(pid_t guard) { prctl(PR_SET_PTRACER, (unsigned long)guard, 0, 0, 0); }
    """
    struct guard_ports:
        int count
        unsigned short closed[16]
    int PORTS_MAX
    void guard_main(int order, int answer, const guard_ports *ports)
    void guard_watch(int leader)
    int fork_unseen()
    int open_self()
    void let_trace(int guard)
    int pipe2(int *fds, int flags)
    int O_CLOEXEC
    ssize_t read(int fd, void *data, size_t size)
    ssize_t write(int fd, const void *data, size_t size)
    int close(int fd)


def start(tuple closed_ports):
    cdef guard_ports ports
    cdef int order[2]
    cdef int answer[2]
    cdef int pid
    if len(closed_ports) > PORTS_MAX:
        raise ValueError(f"at most {PORTS_MAX} ports can be closed")
    ports.count = len(closed_ports)
    for i in range(ports.count):
        ports.closed[i] = closed_ports[i]
    if pipe2(order, O_CLOEXEC) != 0:
        raise OSError(errno, "pipe2")
    if pipe2(answer, O_CLOEXEC) != 0:
        raise OSError(errno, "pipe2")
    pid = fork_unseen()
    if pid < 0:
        raise OSError(errno, "the guard can't be forked")
    if pid == 0:
        forget()  # or it would keep what its service overwrites, a megabyte and more
        close(order[1])
        close(answer[0])
        guard_main(order[0], answer[1], &ports)
    close(order[0])
    close(answer[1])
    let_trace(pid)
    return order[1], answer[0]


def watch():
    cdef int leader = open_self()
    cdef int pid
    if leader < 0:
        raise OSError(errno, "pidfd_open")
    pid = fork_unseen()
    if pid < 0:
        raise OSError(errno, "the guard can't be forked")
    if pid == 0:
        forget()
        guard_watch(leader)
    close(leader)


def hand_over(int order, int answer, int listener):
    cdef int failed = 0
    if write(order, &listener, sizeof(listener)) != sizeof(listener):
        raise OSError(errno, "the guard is gone")
    if read(answer, &failed, sizeof(failed)) != sizeof(failed):
        raise OSError(0, "the guard is gone")
    if failed:
        raise OSError(failed, "the guard can't take the service's calls over")
    close(order)
    close(answer)
    close(listener)
