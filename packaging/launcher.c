/* The launcher: what runs first when somebody starts the single file `solo`.
 *
 * The file is this program, statically linked, with a payload behind it that pack.py made. The launcher unpacks the
 * payload into a cache directory, once per content, and replaces itself by the program that it unpacked there. There
 * is no second process: signals and exit codes are the program's own.
 *
 *     file      launcher | payload (zstd) | manifest (zstd) | struct footer
 *     payload   the contents of all files, one after the other
 *     manifest  for each directory and file, parents first but the main program at the very first:
 *               u16 length of the name, name, NUL, u32 mode, u64 size; little-endian
 *     cache     CACHE/<id>/...        one unpacked version; id is a hash of manifest and payload
 *               CACHE/.tmp-*          being unpacked;  CACHE/.old-*  being removed
 *
 * What holds:
 * - An unpacked version appears by one rename, so that it is there whole or not at all. A crash leaves a .tmp-*
 *   behind; the next one that unpacks removes it.
 * - flock on CACHE itself orders all who unpack, repair and prune: of many first starts one unpacks, the rest wait.
 * - A running program holds a shared flock on the directory of its version, through a descriptor that it inherits. The
 *   pruning takes an exclusive one, and so leaves alone what somebody runs.
 * - Each start compares every file with the manifest: type, mode, size, and a modification time that is the same fixed
 *   one for all, which any write changes. That costs about a microsecond a file. What differs is replaced, one file at
 *   a time and each by a rename, so that programs that run from there already go on.
 * - No cache directory is used that another user owns, root apart, or may write: see open_cache.
 *
 * Power loss: unpacking does not fsync. File systems that lose the contents then have the size wrong too, and the file
 * is replaced at the next start.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <locale.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

#define MAGIC "SOLOPK02"
#define ID_LENGTH 32
#define EXIT_CANNOT_RUN 126
#define UNPACKED_MTIME 1577836800 /* seconds; even, for file systems that count in twos */
#define PATIENCE_MS 60000         /* how long to wait for another start that unpacks */
#define POLL_MS 2
#define CANDIDATES_MAX 6

struct footer { /* the last bytes of the file, little-endian like the machines it runs on */
    uint64_t payload_at, payload_packed, payload_size, manifest_packed, manifest_size;
    char id[ID_LENGTH], magic[8];
};

struct entry {
    const char *name; /* relative; its parents are entries before it */
    mode_t mode;      /* type and permissions */
    uint64_t size;
};

struct candidate {
    char path[PATH_MAX];
    bool shared_parent;  /* anybody may make this name: never follow a link there */
    const char *refused; /* why it does not serve */
};

/* The one function that Nuitka's trimmed copy of the zstd sources uses and lacks. */
unsigned __attribute__((weak)) FSE_isError(size_t code) { return ZSTD_isError(code); }

static int self_fd;
static char self_path[PATH_MAX];
static struct footer footer;
static char id[ID_LENGTH + 1];
static struct entry *entries; /* entries[0] is the main program */
static size_t entry_count;

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("solo: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(EXIT_CANNOT_RUN);
}

static void __attribute__((noreturn)) die_damaged(const char *what) {
    die("%s is damaged (%s): copy or download it again, and do not strip or edit it", self_path, what);
}

static void *allocate(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) die("no memory for %zu bytes: %s", size, strerror(errno));
    return memory;
}

/* ---- this file: footer, manifest, payload ---- */

/* The bytes of one zstd frame in this file, unpacked. zstd verifies the checksum that pack.py put into each frame. */
static unsigned char *unpacked(uint64_t at, uint64_t packed, uint64_t size, const char *what) {
    long page = sysconf(_SC_PAGESIZE);
    uint64_t before = at % page;
    unsigned char *source = mmap(NULL, packed + before, PROT_READ, MAP_PRIVATE, self_fd, at - before);
    if (source == MAP_FAILED) die("reading %s: %s", self_path, strerror(errno));
    unsigned char *target = allocate(size + 1);
    size_t got = ZSTD_decompress(target, size, source + before, packed);
    if (ZSTD_isError(got) || got != size) die_damaged(what);
    munmap(source, packed + before);
    return target;
}

static void read_manifest(uint64_t at) {
    unsigned char *next = unpacked(at, footer.manifest_packed, footer.manifest_size, "manifest");
    unsigned char *end = next + footer.manifest_size;
    entries = allocate(footer.manifest_size / 15 * sizeof *entries + sizeof *entries); /* 15 bytes: the shortest entry */
    while (next < end) {
        struct entry *entry = &entries[entry_count++];
        uint16_t length;
        uint32_t mode;
        memcpy(&length, next, 2);
        entry->name = (char *)next + 2;
        next += 2 + length + 1;
        memcpy(&mode, next, 4);
        memcpy(&entry->size, next + 4, 8);
        entry->mode = mode;
        next += 12;
    }
}

static void read_self(void) {
    ssize_t length = readlink("/proc/self/exe", self_path, sizeof self_path - 1);
    self_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (length < 0 || self_fd < 0) die("/proc/self/exe: %s (is /proc mounted?)", strerror(errno));
    self_path[length] = 0;
    struct stat st;
    if (fstat(self_fd, &st) || st.st_size < (off_t)sizeof footer ||
        pread(self_fd, &footer, sizeof footer, st.st_size - sizeof footer) != sizeof footer ||
        memcmp(footer.magic, MAGIC, sizeof footer.magic))
        die_damaged("its end is missing");
    if (footer.payload_at + footer.payload_packed + footer.manifest_packed + sizeof footer != (uint64_t)st.st_size)
        die_damaged("its size is wrong");
    memcpy(id, footer.id, ID_LENGTH);
    read_manifest(footer.payload_at + footer.payload_packed);
}

/* ---- files below a directory descriptor ---- */

static int open_directory(int parent, const char *name) {
    return openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Remove a file, or a directory with all that is in it; what can't be removed stays. */
static void discard(int parent, const char *name) {
    int fd = open_directory(parent, name);
    if (fd < 0) {
        unlinkat(parent, name, 0);
        return;
    }
    DIR *listing = fdopendir(fd);
    if (!listing) die("no memory");
    for (struct dirent *found; (found = readdir(listing));)
        if (strcmp(found->d_name, ".") && strcmp(found->d_name, "..")) discard(fd, found->d_name);
    closedir(listing);
    unlinkat(parent, name, AT_REMOVEDIR);
}

static bool intact(int version, const struct entry *entry) {
    struct stat st;
    if (fstatat(version, entry->name, &st, AT_SYMLINK_NOFOLLOW)) return false;
    if ((st.st_mode & (S_IFMT | 0777)) != entry->mode) return false;
    return S_ISDIR(entry->mode) || ((uint64_t)st.st_size == entry->size && st.st_mtim.tv_sec == UNPACKED_MTIME);
}

static bool all_intact(int version) {
    for (size_t i = 0; i < entry_count; i++)
        if (!intact(version, &entries[i])) return false;
    return true;
}

static int write_file(int fd, const unsigned char *data, uint64_t size, mode_t mode) {
    static const struct timespec times[2] = {{UNPACKED_MTIME, 0}, {UNPACKED_MTIME, 0}};
    while (size) {
        ssize_t written = write(fd, data, size);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return -1;
        data += written;
        size -= written;
    }
    return fchmod(fd, mode & 0777) || futimens(fd, times) ? -1 : 0; /* fchmod: whatever the umask is */
}

/* Write everything into an empty directory; -1 and errno when it can't be written. */
static int write_tree(int directory, const unsigned char *data) {
    for (size_t i = 0; i < entry_count; i++) {
        const struct entry *entry = &entries[i];
        if (S_ISDIR(entry->mode)) {
            if (mkdirat(directory, entry->name, 0700) || fchmodat(directory, entry->name, entry->mode & 0777, 0))
                return -1;
            continue;
        }
        int fd = openat(directory, entry->name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0) return -1;
        int failed = write_file(fd, data, entry->size, entry->mode), error = errno;
        if (close(fd) && !failed) failed = -1, error = errno;
        if (failed) {
            errno = error;
            return -1;
        }
        data += entry->size;
    }
    return 0;
}

/* Replace in `version` what is damaged, by the same entry of a whole tree. */
static int repair(int version, int tree) {
    for (size_t i = 0; i < entry_count; i++) {
        const struct entry *entry = &entries[i];
        if (intact(version, entry)) continue;
        struct stat st;
        bool there = !fstatat(version, entry->name, &st, AT_SYMLINK_NOFOLLOW);
        if (there && S_ISDIR(entry->mode) && S_ISDIR(st.st_mode)) {
            if (fchmodat(version, entry->name, entry->mode & 0777, 0)) return -1;
            continue;
        }
        if (there && S_ISDIR(entry->mode) != S_ISDIR(st.st_mode)) discard(version, entry->name);
        if (renameat(tree, entry->name, version, entry->name)) return -1; /* a directory comes with its contents */
    }
    return 0;
}

/* ---- locks ---- */

enum lock { LOCK_GOT, LOCK_BUSY, LOCK_NONE /* this file system has none */ };

static enum lock lock(int fd, int kind, int patience_ms) {
    for (int waited = 0;; waited += POLL_MS) {
        if (!flock(fd, kind | LOCK_NB)) return LOCK_GOT;
        if (errno != EWOULDBLOCK && errno != EINTR) return LOCK_NONE;
        if (waited >= patience_ms) return LOCK_BUSY;
        nanosleep(&(struct timespec){0, POLL_MS * 1000000}, NULL);
    }
}

/* Open this program's version in a cache directory and keep it from being pruned; -1 and errno when it isn't there.
 * Between the opening and the lock it may have been moved away: then the name is looked up again. */
static int hold_version(int cache, int patience_ms) {
    for (;;) {
        struct stat held, named;
        int fd = open_directory(cache, id);
        if (fd < 0) return -1;
        if (lock(fd, LOCK_SH, patience_ms) == LOCK_BUSY) {
            close(fd);
            errno = EBUSY;
            return -1;
        }
        if (!fstat(fd, &held) && !fstatat(cache, id, &named, AT_SYMLINK_NOFOLLOW) && held.st_ino == named.st_ino &&
            held.st_dev == named.st_dev)
            return fd;
        close(fd);
    }
}

/* ---- cache directories ---- */

static int make_directories(const char *path) {
    char part[PATH_MAX];
    strcpy(part, path);
    for (char *slash = part; (slash = strchr(slash + 1, '/'));) {
        *slash = 0;
        if (mkdir(part, 0755) && errno != EEXIST && access(part, F_OK)) return -1;
        *slash = '/';
    }
    if (mkdir(path, 0755)) return errno == EEXIST ? 0 : -1;
    return chmod(path, 0755); /* a service that runs as another user loads modules from here */
}

/* Open a cache directory: one on which programs can run, and which nobody can write but its owner, who is this user
 * or root. Returns -1, and says why, where it is not. */
static int open_cache(struct candidate *candidate, bool make) {
    struct stat st;
    struct statvfs fs;
    if (make && make_directories(candidate->path)) {
        candidate->refused = strerror(errno);
        return -1;
    }
    int fd = open(candidate->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (candidate->shared_parent ? O_NOFOLLOW : 0));
    if (fd < 0 || fstat(fd, &st) || fstatvfs(fd, &fs))
        candidate->refused = strerror(errno);
    else if (st.st_uid != geteuid() && st.st_uid != 0)
        candidate->refused = "it belongs to another user";
    else if (st.st_mode & 022)
        candidate->refused = "others may write to it (chmod go-w)";
    else if (fs.f_flag & ST_NOEXEC)
        candidate->refused = "it is on a file system mounted noexec";
    else
        return fd;
    if (fd >= 0) close(fd);
    return -1;
}

/* With the cache locked: remove what crashed starts left, and the versions that nobody runs. */
static void prune(int cache) {
    int fd = open_directory(cache, ".");
    DIR *listing = fd < 0 ? NULL : fdopendir(fd);
    if (!listing) return;
    for (struct dirent *found; (found = readdir(listing));) {
        const char *name = found->d_name;
        if (!strncmp(name, ".tmp-", 5) || !strncmp(name, ".old-", 5)) {
            discard(cache, name);
        } else if (strlen(name) == ID_LENGTH && strspn(name, "0123456789abcdef") == ID_LENGTH && strcmp(name, id)) {
            int version = open_directory(cache, name);
            char old[ID_LENGTH + 8];
            sprintf(old, ".old-%s", name);
            if (version >= 0 && !flock(version, LOCK_EX | LOCK_NB) && !renameat(cache, name, cache, old))
                discard(cache, old);
            if (version >= 0) close(version);
        }
    }
    closedir(listing);
}

/* Unpack into a directory beside the versions and open it; -1 and errno when that fails, and nothing is left. */
static int unpack_aside(int cache, char *name) {
    static const unsigned char *payload; /* verified before anything is written */
    if (!payload) payload = unpacked(footer.payload_at, footer.payload_packed, footer.payload_size, "payload");
    sprintf(name, ".tmp-%ld-%ld", (long)getpid(), (long)time(NULL));
    if (mkdirat(cache, name, 0700)) return -1;
    int fd = open_directory(cache, name);
    if (fd >= 0 && !write_tree(fd, payload) && !fchmod(fd, 0755)) return fd;
    int error = errno;
    if (fd >= 0) close(fd);
    discard(cache, name);
    errno = error;
    return -1;
}

/* With the cache locked: make this program's version whole and hold it; -1 and errno when that fails. */
static int install(int cache) {
    char aside[64];
    int version = hold_version(cache, PATIENCE_MS);
    if (version < 0 && errno == EBUSY) return -1;
    if (version >= 0 && all_intact(version)) return version; /* another start was quicker */
    int tree = unpack_aside(cache, aside);
    if (tree < 0) return -1;
    int failed, error;
    if (version >= 0) {
        failed = repair(version, tree), error = errno;
    } else {
        unlinkat(cache, id, 0); /* should something be there that is no directory */
        failed = renameat(cache, aside, cache, id), error = errno;
        if (!failed) version = hold_version(cache, PATIENCE_MS);
    }
    discard(cache, aside);
    close(tree);
    if (!failed && version >= 0 && all_intact(version)) return version;
    if (version >= 0) close(version);
    errno = failed ? error : EIO;
    return -1;
}

/* ---- starting the program ---- */

static void add_candidate(struct candidate *list, int *count, const char *base, const char *below, bool shared_parent) {
    struct candidate *next = &list[*count];
    char absolute[PATH_MAX];
    if (!base || !*base || !realpath(".", absolute)) return;
    const char *prefix = *base == '/' ? "" : absolute, *slash = *base == '/' ? "" : "/";
    int length = snprintf(next->path, sizeof next->path, "%s%s%s%s", prefix, slash, base, below);
    if (length >= PATH_MAX - 2 * ID_LENGTH) return; /* room for the version and the main program */
    next->shared_parent = shared_parent;
    ++*count;
}

/* Where to unpack, best first. Root's come from /var/cache, because services may run as users that can't look into
 * root's home. */
static int find_candidates(struct candidate *list) {
    int count = 0;
    char shared[64];
    const char *xdg = secure_getenv("XDG_CACHE_HOME");
    add_candidate(list, &count, secure_getenv("SOLO_CACHE_DIR"), "", false);
    if (xdg && *xdg == '/') add_candidate(list, &count, xdg, "/solo", false);
    if (!geteuid()) add_candidate(list, &count, "/var/cache", "/solo", false);
    if (!xdg || *xdg != '/') add_candidate(list, &count, secure_getenv("HOME"), "/.cache/solo", false);
    sprintf(shared, "/solo-%lu", (unsigned long)geteuid());
    add_candidate(list, &count, "/tmp", shared, true);
    add_candidate(list, &count, "/dev/shm", shared, true);
    return count;
}

/* Become the program; returns only when that fails. The descriptor of the version stays open in it, for its lock.
 * `named` is what the user asked for and did not get, if so. */
static void run(const struct candidate *candidate, int version, char **arguments, const struct candidate *named) {
    char program[PATH_MAX + ID_LENGTH + 2 + NAME_MAX];
    snprintf(program, sizeof program, "%s/%s/%s", candidate->path, id, entries[0].name);
    if (setenv("SOLO_EXE", self_path, 1)) die("no memory");
    /* A program of Nuitka's aborts where LANG or LC_* name a locale that is not installed. Under C it reads UTF-8. */
    if (!newlocale(LC_CTYPE_MASK, "", NULL) && setenv("LC_ALL", "C", 1)) die("no memory");
    if (named)
        fprintf(stderr, "solo: SOLO_CACHE_DIR=%s does not serve: %s; using %s\n", named->path, named->refused, candidate->path);
    fcntl(version, F_SETFD, 0);
    execv(program, arguments);
    fcntl(version, F_SETFD, FD_CLOEXEC);
}

static const char *why_not_run(void) {
    return errno == ENOENT ? "this system lacks the dynamic loader of glibc, which solo needs" : strerror(errno);
}

/* The quick way: run what is unpacked already, and touch nothing. */
static void run_ready(struct candidate *candidate, char **arguments, const struct candidate *named) {
    int cache = open_cache(candidate, false);
    if (cache < 0) return;
    int version = hold_version(cache, 0);
    close(cache);
    if (version < 0) return;
    if (all_intact(version)) run(candidate, version, arguments, named);
    close(version);
}

/* The slow way: unpack, or repair, then run. Returns when this directory does not serve. */
static void unpack_and_run(struct candidate *candidate, char **arguments, const struct candidate *named) {
    int cache = open_cache(candidate, true);
    if (cache < 0) return;
    enum lock got = lock(cache, LOCK_EX, PATIENCE_MS);
    int version = -1;
    if (got == LOCK_BUSY) {
        candidate->refused = "another start of solo holds it";
    } else {
        if (got == LOCK_GOT) prune(cache);
        version = install(cache);
        if (version < 0) candidate->refused = errno == EIO ? "what was written there can't be read back" : strerror(errno);
    }
    close(cache); /* and unlock */
    if (version < 0) return;
    run(candidate, version, arguments, named);
    candidate->refused = why_not_run();
    close(version);
}

int main(int argc, char **argv) {
    static struct candidate candidates[CANDIDATES_MAX];
    (void)argc;
    read_self();
    int count = find_candidates(candidates), first = 0;
    const char *asked = secure_getenv("SOLO_CACHE_DIR");
    struct candidate *named = asked && *asked ? candidates : NULL;
    if (named) { /* what the user asks for comes before what would be quicker */
        run_ready(named, argv, NULL);
        unpack_and_run(named, argv, NULL);
        first = 1;
    }
    for (int i = first; i < count; i++) run_ready(&candidates[i], argv, named);
    for (int i = first; i < count; i++) unpack_and_run(&candidates[i], argv, named);

    fprintf(stderr, "solo: no directory serves to unpack the program into:\n");
    for (int i = 0; i < count; i++) fprintf(stderr, "  %s: %s\n", candidates[i].path, candidates[i].refused);
    die("name one that you own, with %lu MB free and not mounted noexec: SOLO_CACHE_DIR=/path/to/it",
        (unsigned long)(footer.payload_size / 1000000 + 1));
}
