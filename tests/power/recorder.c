/*
 * Records the changes to the database files of one folder, in their order, across all threads and
 * processes that were started with this library in LD_PRELOAD.
 *
 *   POWER_FOLDER  the folder, without symbolic links in its path
 *   POWER_LOG     the file that records are appended to
 *   POWER_SYNC    how long a sync takes at most, in microseconds; each takes a random part of it
 *
 * Files with ".db" in their name are recorded, except the shared memory (-shm), which does not
 * survive a power cut. A change and its record are made under one lock, so that the log has the
 * order in which the kernel saw the changes.
 *
 * A sync is recorded twice: when it begins and when it returns. It only pauses: the simulator
 * decides which data a disk holds, and the time of a real sync would depend on the machine's disk.
 *
 * Operations that the simulator does not model (a writable shared map, a rename) are recorded as
 * such, and the simulator refuses the recording.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* log.rs reads these numbers. */
enum kind {
    CREATED = 1,    /* inode; payload: name */
    WROTE = 2,      /* inode, number: offset; payload: data */
    RESIZED = 3,    /* inode, number: length */
    SYNCING = 4,    /* inode */
    SYNCED = 5,     /* inode, number: position of SYNCING */
    UNLINKED = 6,   /* payload: name */
    FOLDER_SYNCING = 7,
    FOLDER_SYNCED = 8, /* number: position of FOLDER_SYNCING */
    NOT_MODELLED = 9,  /* payload: name of the operation */
};

struct header {
    uint32_t magic;
    uint32_t kind;
    uint64_t inode;
    uint64_t number;
    uint32_t payload;
    uint32_t process;
};

#define MAGIC 0x52574f50u /* "POWR" */

static int log_file = -1;
static char folder[PATH_MAX];
static size_t folder_length;
static uint64_t longest_sync = 0;
static pthread_mutex_t threads = PTHREAD_MUTEX_INITIALIZER;

static void fail(const char *why) {
    dprintf(2, "recorder: %s: %s\n", why, strerror(errno));
    _exit(97);
}

__attribute__((constructor)) static void begin(void) {
    const char *log = getenv("POWER_LOG");
    const char *where = getenv("POWER_FOLDER");
    const char *sync = getenv("POWER_SYNC");
    if (!log || !where) return;
    folder_length = strlen(where);
    if (folder_length >= sizeof folder) fail("POWER_FOLDER is too long");
    memcpy(folder, where, folder_length + 1);
    if (sync) longest_sync = strtoull(sync, NULL, 10);
    log_file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log_file < 0) fail("POWER_LOG cannot be opened");
}

/* `flock` excludes other processes. The kernel releases it when a process is killed. */
static void lock(void) {
    pthread_mutex_lock(&threads);
    while (flock(log_file, LOCK_EX) != 0)
        if (errno != EINTR) fail("flock");
}

static void unlock(void) {
    int kept = errno;
    flock(log_file, LOCK_UN);
    pthread_mutex_unlock(&threads);
    errno = kept;
}

/* Appends a record and returns its position. The caller holds the lock. */
static uint64_t record(enum kind kind, uint64_t inode, uint64_t number, const void *payload,
                       size_t length) {
    int kept = errno;
    struct stat log;
    if (fstat(log_file, &log) != 0) fail("fstat of the log");
    struct header header = {MAGIC, kind, inode, number, (uint32_t)length, (uint32_t)getpid()};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)payload, length}};
    ssize_t done = syscall(SYS_writev, log_file, parts, length ? 2 : 1);
    if (done != (ssize_t)(sizeof header + length)) fail("the log cannot be written");
    errno = kept;
    return (uint64_t)log.st_size;
}

/* Returns the name of the recorded file at this path, or NULL if it is not recorded. */
static const char *name_of(const char *path) {
    if (log_file < 0 || strncmp(path, folder, folder_length) != 0 || path[folder_length] != '/')
        return NULL;
    const char *name = path + folder_length + 1;
    size_t length = strlen(name);
    if (strchr(name, '/') || !strstr(name, ".db")) return NULL;
    if (length > 4 && strcmp(name + length - 4, "-shm") == 0) return NULL;
    return name;
}

/* The inode and the current size of a recorded file. */
struct known {
    uint64_t inode;
    uint64_t size;
};

static int path_of(int fd, char *path) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    char *deleted = strstr(path, " (deleted)");
    if (deleted) *deleted = 0;
    return 1;
}

static int is_known(int fd, struct known *known) {
    if (log_file < 0 || fd <= 2 || fd == log_file) return 0;
    int kept = errno;
    struct stat it;
    char path[PATH_MAX];
    int yes = fstat(fd, &it) == 0 && S_ISREG(it.st_mode) && path_of(fd, path) && name_of(path);
    if (yes) *known = (struct known){it.st_ino, it.st_size};
    errno = kept;
    return yes;
}

static int is_folder(int fd) {
    if (log_file < 0 || fd <= 2) return 0;
    int kept = errno;
    struct stat it;
    char path[PATH_MAX];
    int yes = fstat(fd, &it) == 0 && S_ISDIR(it.st_mode) && path_of(fd, path) &&
              strcmp(path, folder) == 0;
    errno = kept;
    return yes;
}

#define REAL(result, name, ...)                                    \
    static result (*real)(__VA_ARGS__);                            \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* ---------------------------------------------------------------- opening */

static int opened(int at, const char *path, int flags, mode_t mode) {
    const char *name = (flags & (O_CREAT | O_TRUNC)) ? name_of(path) : NULL;
    if (!name) return syscall(SYS_openat, at, path, flags, mode);
    lock();
    struct stat before, after;
    int was_there = lstat(path, &before) == 0;
    int fd = syscall(SYS_openat, at, path, flags, mode);
    if (fd >= 0) {
        if (fstat(fd, &after) != 0) fail("fstat of a new file");
        if (!was_there)
            record(CREATED, after.st_ino, 0, name, strlen(name));
        else if (flags & O_TRUNC)
            record(RESIZED, after.st_ino, 0, NULL, 0);
    }
    unlock();
    return fd;
}

static mode_t mode_in(int flags, va_list arguments) {
    return (flags & (O_CREAT | O_TMPFILE)) ? va_arg(arguments, mode_t) : 0;
}

#define OPEN(function)                                     \
    int function(const char *path, int flags, ...) {       \
        va_list arguments;                                 \
        va_start(arguments, flags);                        \
        mode_t mode = mode_in(flags, arguments);           \
        va_end(arguments);                                 \
        return opened(AT_FDCWD, path, flags, mode);        \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function)                                          \
    int function(int at, const char *path, int flags, ...) {      \
        va_list arguments;                                        \
        va_start(arguments, flags);                               \
        mode_t mode = mode_in(flags, arguments);                  \
        va_end(arguments);                                        \
        return opened(at, path, flags, mode);                     \
    }
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) {
    return opened(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode) {
    return opened(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

/* ---------------------------------------------------------------- writing */

#define WRITE_AT(function)                                                     \
    ssize_t function(int fd, const void *data, size_t length, off_t offset) {  \
        REAL(ssize_t, #function, int, const void *, size_t, off_t);            \
        struct known it;                                                       \
        if (!is_known(fd, &it)) return real(fd, data, length, offset);         \
        lock();                                                                \
        ssize_t done = real(fd, data, length, offset);                         \
        if (done > 0) record(WROTE, it.inode, offset, data, done);             \
        unlock();                                                              \
        return done;                                                           \
    }
WRITE_AT(pwrite)
WRITE_AT(pwrite64)

/* Returns the offset of the next `write`. The caller holds the lock. */
static uint64_t next_offset(int fd) {
    struct stat it;
    if (fcntl(fd, F_GETFL) & O_APPEND) {
        if (fstat(fd, &it) != 0) fail("fstat");
        return it.st_size;
    }
    return lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *data, size_t length) {
    struct known it;
    if (!is_known(fd, &it)) return syscall(SYS_write, fd, data, length);
    lock();
    uint64_t offset = next_offset(fd);
    ssize_t done = syscall(SYS_write, fd, data, length);
    if (done > 0) record(WROTE, it.inode, offset, data, done);
    unlock();
    return done;
}

/* Records the first `done` bytes of the parts. The caller holds the lock. */
static void record_parts(uint64_t inode, uint64_t offset, const struct iovec *parts, int count,
                         ssize_t done) {
    for (int i = 0; i < count && done > 0; i++) {
        size_t length = parts[i].iov_len < (size_t)done ? parts[i].iov_len : (size_t)done;
        if (length) record(WROTE, inode, offset, parts[i].iov_base, length);
        offset += length;
        done -= length;
    }
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct known it;
    if (!is_known(fd, &it)) return syscall(SYS_writev, fd, parts, count);
    lock();
    uint64_t offset = next_offset(fd);
    ssize_t done = syscall(SYS_writev, fd, parts, count);
    record_parts(it.inode, offset, parts, count, done);
    unlock();
    return done;
}

#define WRITEV_AT(function)                                                            \
    ssize_t function(int fd, const struct iovec *parts, int count, off_t offset) {     \
        REAL(ssize_t, #function, int, const struct iovec *, int, off_t);               \
        struct known it;                                                               \
        if (!is_known(fd, &it)) return real(fd, parts, count, offset);                 \
        lock();                                                                        \
        ssize_t done = real(fd, parts, count, offset);                                 \
        record_parts(it.inode, offset, parts, count, done);                            \
        unlock();                                                                      \
        return done;                                                                   \
    }
WRITEV_AT(pwritev)
WRITEV_AT(pwritev64)

/* Records an operation because of which the simulator must refuse the recording. */
static void not_modelled(const char *what) {
    lock();
    record(NOT_MODELLED, 0, 0, what, strlen(what));
    unlock();
}

#define WRITEV2(function)                                                                        \
    ssize_t function(int fd, const struct iovec *parts, int count, off_t offset, int flags) {    \
        REAL(ssize_t, #function, int, const struct iovec *, int, off_t, int);                    \
        struct known it;                                                                         \
        if (is_known(fd, &it)) not_modelled(#function);                                          \
        return real(fd, parts, count, offset, flags);                                            \
    }
WRITEV2(pwritev2)
WRITEV2(pwritev64v2)

#define MAP(function)                                                                            \
    void *function(void *address, size_t length, int protection, int flags, int fd, off_t at) {  \
        struct known it;                                                                         \
        if (fd >= 0 && (protection & PROT_WRITE) && (flags & MAP_SHARED) && is_known(fd, &it))   \
            not_modelled("a writable shared " #function);                                        \
        return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, at);            \
    }
MAP(mmap)
MAP(mmap64)

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t length,
                        unsigned flags) {
    struct known it;
    if (is_known(to, &it)) not_modelled("copy_file_range");
    return syscall(SYS_copy_file_range, from, from_at, to, to_at, length, flags);
}

#define SENDFILE(function, offset)                                    \
    ssize_t function(int to, int from, offset *at, size_t length) {   \
        struct known it;                                              \
        if (is_known(to, &it)) not_modelled(#function);               \
        return syscall(SYS_sendfile, to, from, at, length);           \
    }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

/* ---------------------------------------------------------------- length */

#define RESIZE(function)                                          \
    int function(int fd, off_t length) {                          \
        struct known it;                                          \
        if (!is_known(fd, &it)) return syscall(SYS_ftruncate, fd, length); \
        lock();                                                   \
        int result = syscall(SYS_ftruncate, fd, length);          \
        if (result == 0) record(RESIZED, it.inode, length, NULL, 0); \
        unlock();                                                 \
        return result;                                            \
    }
RESIZE(ftruncate)
RESIZE(ftruncate64)

#define TRUNCATE(function)                                          \
    int function(const char *path, off_t length) {                  \
        if (!name_of(path)) return syscall(SYS_truncate, path, length); \
        lock();                                                     \
        struct stat it;                                             \
        int result = syscall(SYS_truncate, path, length);           \
        if (result == 0 && stat(path, &it) == 0)                    \
            record(RESIZED, it.st_ino, length, NULL, 0);            \
        unlock();                                                   \
        return result;                                              \
    }
TRUNCATE(truncate)
TRUNCATE(truncate64)

#define FALLOCATE(function)                                                   \
    int function(int fd, int mode, off_t offset, off_t length) {              \
        struct known it;                                                      \
        if (!is_known(fd, &it)) return syscall(SYS_fallocate, fd, mode, offset, length); \
        if (mode != 0) not_modelled(#function " with a mode");                \
        lock();                                                               \
        struct stat before;                                                   \
        if (fstat(fd, &before) != 0) fail("fstat");                           \
        int result = syscall(SYS_fallocate, fd, mode, offset, length);        \
        if (result == 0 && offset + length > before.st_size)                  \
            record(RESIZED, it.inode, offset + length, NULL, 0);              \
        unlock();                                                             \
        return result;                                                        \
    }
FALLOCATE(fallocate)
FALLOCATE(fallocate64)

#define POSIX_FALLOCATE(function)                            \
    int function(int fd, off_t offset, off_t length) {       \
        return fallocate(fd, 0, offset, length) == 0 ? 0 : errno; \
    }
POSIX_FALLOCATE(posix_fallocate)
POSIX_FALLOCATE(posix_fallocate64)

/* ---------------------------------------------------------------- syncing */

static void pause_as_a_disk_would(void) {
    static __thread uint64_t random;
    if (longest_sync == 0) return;
    if (random == 0) random = (uint64_t)(uintptr_t)&random ^ (uint64_t)getpid() << 32 ^ 88172645463325252u;
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    struct timespec time = {0, (long)(random % (longest_sync * 1000))};
    nanosleep(&time, NULL);
}

static int synced(long number, int fd) {
    struct known it;
    int is_file = is_known(fd, &it);
    if (!is_file && !is_folder(fd)) return syscall(number, fd);
    lock();
    uint64_t since = is_file ? record(SYNCING, it.inode, 0, NULL, 0)
                             : record(FOLDER_SYNCING, 0, 0, NULL, 0);
    unlock();
    pause_as_a_disk_would();
    lock();
    if (is_file)
        record(SYNCED, it.inode, since, NULL, 0);
    else
        record(FOLDER_SYNCED, 0, since, NULL, 0);
    unlock();
    return 0;
}

int fsync(int fd) {
    return synced(SYS_fsync, fd);
}

int fdatasync(int fd) {
    return synced(SYS_fdatasync, fd);
}

/* ---------------------------------------------------------------- names */

int unlinkat(int at, const char *path, int flags) {
    const char *name = name_of(path);
    if (!name) return syscall(SYS_unlinkat, at, path, flags);
    lock();
    int result = syscall(SYS_unlinkat, at, path, flags);
    if (result == 0) record(UNLINKED, 0, 0, name, strlen(name));
    unlock();
    return result;
}

int unlink(const char *path) {
    return unlinkat(AT_FDCWD, path, 0);
}

int rename(const char *from, const char *to) {
    if (name_of(from) || name_of(to)) not_modelled("rename");
    return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    if (name_of(from) || name_of(to)) not_modelled("renameat");
    return syscall(SYS_renameat2, from_at, from, to_at, to, 0);
}

int link(const char *from, const char *to) {
    if (name_of(from) || name_of(to)) not_modelled("link");
    return syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
}
