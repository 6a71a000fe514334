# cython: language_level=3
"""The zygote's loop, which runs no Python.

A child shares its parent's pages until either of them writes. CPython writes to whatever it looks at (reference
counts), so a zygote that ran bytecode between two forks would leave each child with half a megabyte of pages that
nobody else shares any more. This loop touches its own stack and a few arrays.

It also ends what is left behind: the process group of a child that exited (before the leader is reaped, so that its
number can't be anybody else's yet), any process that was orphaned to it (it is a child subreaper), and everything at
once when the kernel is gone.
"""

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, ENOMEM, ENOTCONN, EPIPE, errno
from libc.signal cimport SIGKILL
from libc.stdlib cimport realloc, strtol

from solo_fast._ext.pages cimport populate

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/signalfd.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <sys/wait.h>
    #include <unistd.h>

    #define FDS_MAX 3

    /* One packet with the descriptors that came beside it; -1: no packet (errno), 0: the kernel is gone. */
    static ssize_t solo_receive(int sock, void *data, size_t size, int *fds, int *count) {
        char room[CMSG_SPACE(sizeof(int) * FDS_MAX)];
        struct iovec io = {data, size};
        struct msghdr message = {0};
        message.msg_iov = &io;
        message.msg_iovlen = 1;
        message.msg_control = room;
        message.msg_controllen = sizeof room;
        ssize_t got = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
        *count = 0;
        struct cmsghdr *head = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
        if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
            *count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds, CMSG_DATA(head), sizeof(int) * (size_t)*count);
        }
        return got;
    }

    /* One packet, with a descriptor beside it unless that is -1. */
    static ssize_t solo_send(int sock, const void *data, size_t size, int fd) {
        char room[CMSG_SPACE(sizeof(int))] = {0};
        struct iovec io = {(void *)data, size};
        struct msghdr message = {0};
        message.msg_iov = &io;
        message.msg_iovlen = 1;
        if (fd >= 0) {
            message.msg_control = room;
            message.msg_controllen = sizeof room;
            struct cmsghdr *head = CMSG_FIRSTHDR(&message);
            head->cmsg_level = SOL_SOCKET;
            head->cmsg_type = SCM_RIGHTS;
            head->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(head), &fd, sizeof(int));
        }
        ssize_t sent;
        do { sent = sendmsg(sock, &message, MSG_NOSIGNAL); } while (sent < 0 && errno == EINTR);
        return sent;
    }

    static int solo_pidfd_open(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }
    static int solo_pidfd_kill(int pidfd) { return (int)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0); }

    static int solo_child_signals(void) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGCHLD);
        return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    }

    /* The next child that has exited, left unreaped; 0: none has. */
    static pid_t solo_next_exited(void) {
        siginfo_t info;
        info.si_pid = 0;
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0) return 0;
        return info.si_pid;
    }
    """
    int O_RDONLY
    int O_CLOEXEC
    short POLLIN
    struct pollfd:
        int fd
        short events
        short revents
    ctypedef int pid_t
    ctypedef unsigned int uint32_t
    ctypedef int int32_t
    ssize_t solo_receive(int sock, void *data, size_t size, int *fds, int *count)
    ssize_t solo_send(int sock, const void *data, size_t size, int fd)
    int solo_pidfd_open(pid_t pid)
    int solo_pidfd_kill(int pidfd)
    int solo_child_signals()
    pid_t solo_next_exited()
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    ssize_t read(int fd, void *data, size_t size)
    int open(const char *path, int flags)
    int close(int fd)
    pid_t fork()
    pid_t getpid()
    pid_t waitpid(pid_t pid, int *status, int options)
    int kill(pid_t pid, int number)
    int killpg(pid_t group, int number)
    int usleep(unsigned int us)
    void _exit(int code)

ORDER = "=II"
ANSWER = "=IIii"
FORK, ADOPT, FORGET = 1, 2, 3
READY, FORKED, FAILED, EXITED = 1, 2, 3, 4

cdef struct Order:
    uint32_t what
    uint32_t number

cdef struct Answer:
    uint32_t what
    uint32_t number
    int32_t pid
    int32_t status

cdef struct Ward:
    pid_t pid
    int pidfd  # -1: our own child

cdef Ward *wards = NULL  # services that were forked here, or adopted from a former zygote
cdef size_t ward_count = 0
cdef size_t ward_room = 0


cdef int remember(pid_t pid, int pidfd) noexcept nogil:
    global wards, ward_count, ward_room
    cdef Ward *larger
    if ward_count == ward_room:
        larger = <Ward *>realloc(wards, (ward_room * 2 + 64) * sizeof(Ward))
        if larger == NULL:
            return -1
        wards = larger
        ward_room = ward_room * 2 + 64
    wards[ward_count].pid = pid
    wards[ward_count].pidfd = pidfd
    ward_count += 1
    return 0


cdef bint is_ward(pid_t pid) noexcept nogil:
    cdef size_t i
    for i in range(ward_count):
        if wards[i].pid == pid:
            return True
    return False


cdef void forget(pid_t pid) noexcept nogil:
    global ward_count
    cdef size_t i
    for i in range(ward_count):
        if wards[i].pid == pid:
            if wards[i].pidfd >= 0:
                close(wards[i].pidfd)
            ward_count -= 1
            wards[i] = wards[ward_count]
            return


cdef int try_to_tell(int control, uint32_t what, uint32_t number, pid_t pid, int status, int fd) noexcept nogil:
    """0, or the errno of what kept the answer back. Only a kernel that is gone is a reason to end everything: Linux may
    be short of memory, and it refuses descriptors beside a packet while its user has too many under way, which any
    service of that user can bring about."""
    cdef Answer answer
    answer.what = what
    answer.number = number
    answer.pid = pid
    answer.status = status
    if solo_send(control, &answer, sizeof(Answer), fd) >= 0:
        return 0
    if errno == EPIPE or errno == ECONNRESET or errno == ENOTCONN:
        end_everything()
    return errno


cdef void tell(int control, uint32_t what, uint32_t number, pid_t pid, int status) noexcept nogil:
    """An answer without a descriptor: all that it takes is a little memory, and somebody waits for it."""
    while try_to_tell(control, what, number, pid, status, -1) != 0:
        usleep(1000)


cdef int kill_children(bint strays_only) noexcept nogil:
    """SIGKILL this process's children (all, or only those that are nobody's); how many there were."""
    cdef char text[65536]
    cdef char *place
    cdef char *after
    cdef ssize_t size
    cdef int found = 0
    cdef long pid
    cdef int fd = open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return 0
    size = read(fd, text, sizeof(text) - 1)
    close(fd)
    if size <= 0:
        return 0
    text[size] = 0
    place = text
    while True:
        pid = strtol(place, &after, 10)
        if after == place or pid <= 0:
            return found
        place = after
        if after[0] == 0 and size == sizeof(text) - 1:
            return found + 1  # a number cut off by the buffer's end: the next round reads it
        if strays_only and is_ward(<pid_t>pid):
            continue
        found += 1
        if not strays_only:
            killpg(<pid_t>pid, SIGKILL)
        kill(<pid_t>pid, SIGKILL)


cdef void end_everything() noexcept nogil:
    """The kernel is gone: nothing that it started may outlive it."""
    cdef size_t i
    cdef int status
    for i in range(ward_count):
        if wards[i].pidfd >= 0:
            solo_pidfd_kill(wards[i].pidfd)
    while kill_children(False) > 0:
        while waitpid(-1, &status, 0) > 0:  # what a dead child leaves behind becomes ours, and the next round's
            pass
    _exit(0)


cdef void reap(int control) noexcept nogil:
    cdef pid_t pid
    cdef int status
    cdef bint ours
    cdef bint ended = False
    while True:
        pid = solo_next_exited()
        if pid <= 0:
            break
        ours = is_ward(pid)
        if ours:
            killpg(pid, SIGKILL)
        waitpid(pid, &status, 0)
        if ours:
            forget(pid)
            ended = True
            tell(control, 4, 0, pid, status)
    if ended:
        kill_children(True)


cdef int announce(int control, uint32_t number, pid_t pid) noexcept nogil:
    """Tell the kernel of a new child. 0, or the errno of what went wrong: then the child is killed, since nobody has
    what it takes to end it, and reaped like any other."""
    cdef int error
    cdef int pidfd = solo_pidfd_open(pid)
    if pidfd < 0:
        error = errno
    else:
        error = ENOMEM if remember(pid, -1) < 0 else try_to_tell(control, 2, number, pid, 0, pidfd)
        close(pidfd)
    if error:
        kill(pid, SIGKILL)
    return error


def serve(int control_fd):
    cdef pollfd watched[2]
    cdef Order order
    cdef int fds[3]
    cdef int count, i, error
    cdef char drain[4096]
    cdef pid_t pid
    cdef ssize_t got
    watched[0].fd = control_fd
    watched[0].events = POLLIN
    watched[1].fd = solo_child_signals()
    watched[1].events = POLLIN
    if watched[1].fd < 0 or remember(0, -1) < 0:
        raise OSError(errno, "the zygote's loop can't be set up")
    forget(0)
    tell(control_fd, 1, 0, getpid(), 0)
    while True:
        watched[0].revents = watched[1].revents = 0
        if poll(watched, 2, -1) < 0:
            if errno == EINTR:
                continue
            end_everything()
        if watched[1].revents:
            while read(watched[1].fd, drain, sizeof(drain)) > 0:
                pass
            reap(control_fd)
        if not watched[0].revents:
            continue
        got = solo_receive(control_fd, &order, sizeof(order), fds, &count)
        if got < 0 and (errno == EINTR or errno == EAGAIN):
            continue
        if got <= 0:
            end_everything()
        if order.what == 1 and count == 3:
            PyOS_BeforeFork()
            pid = fork()
            if pid == 0:
                populate()
                PyOS_AfterFork_Child()
                close(watched[1].fd)
                return fds[0], fds[1], fds[2]
            error = errno if pid < 0 else 0
            PyOS_AfterFork_Parent()
            for i in range(count):
                close(fds[i])
            if pid > 0:
                error = announce(control_fd, order.number, pid)
            if error:
                tell(control_fd, 3, order.number, 0, error)
        elif order.what == 2 and count == 1:
            if remember(<pid_t>order.number, fds[0]) < 0:
                close(fds[0])
        elif order.what == 3:
            forget(<pid_t>order.number)
