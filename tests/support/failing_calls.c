/* Makes one system call on the files in a folder fail, do less than requested, or kill the process.

   failing_calls.py preloads this library into the process that it starts. `failing_calls_arm` selects the call. A call
   counts if its path, or the path of its descriptor, starts with the prefix. A renamed file, a duplicated descriptor
   and an inherited one still refer to the same file. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* What happens to the calls that are hit. Only writes can fall short; where SHORT hits another call, that passes. */
enum { FAIL = 1, /* they return the errno `value` */
       SHORT,    /* they write `value` thousandths of what they should, and say so */
       FULL,     /* the first falls short, the others return ENOSPC: a disk that fills up */
       TORN };   /* the process is killed: in a write after `value` thousandths of it, else before the call */

static struct {
    char prefix[PATH_MAX];
    char only[256];
    long nth, times;
    int action, value;
} plan;
static int armed;
static long seen, hits;
static const char *first_hit = "";

/* Hit the calls from number `nth` on, `times` of them, or all when that is negative. `only` names the calls that count,
   with a comma before and after each ("" for all of them). */
void failing_calls_arm(const char *prefix, const char *only, long nth, long times, int action, int value) {
    armed = 0;
    snprintf(plan.prefix, sizeof plan.prefix, "%s", prefix);
    snprintf(plan.only, sizeof plan.only, "%s", only);
    plan.nth = nth;
    plan.times = times;
    plan.action = action;
    plan.value = value;
    seen = hits = 0;
    first_hit = "";
    armed = 1;
}

/* Let every call pass uncounted while `paused` is not 0. */
void failing_calls_pause(int paused) { armed = !paused; }

long failing_calls_hits(void) { return hits; }

const char *failing_calls_first_hit(void) { return first_hit; }

/* The real one, found once for each place that asks. */
#define REAL(name)                                                                                                     \
    ({                                                                                                                 \
        static __typeof__(&name) found;                                                                                \
        if (!found) found = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                                \
        found;                                                                                                         \
    })

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Which of the hits this call is, from 1 on; 0 when it is none. */
static long hit(const char *name, const char *path) {
    char wanted[32];
    long number;
    if (strncmp(path, plan.prefix, strlen(plan.prefix)) != 0) return 0;
    snprintf(wanted, sizeof wanted, ",%s,", name);
    if (plan.only[0] && !strstr(plan.only, wanted)) return 0;
    number = __atomic_add_fetch(&seen, 1, __ATOMIC_RELAXED) - plan.nth + 1;
    if (number < 1 || (plan.times >= 0 && number > plan.times)) return 0;
    if (__atomic_add_fetch(&hits, 1, __ATOMIC_RELAXED) == 1) first_hit = name;
    return number;
}

static long hit_fd(const char *name, int fd) {
    char link[32], path[PATH_MAX];
    int before = errno;
    ssize_t length;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return hit(name, path);
}

/* Whether a call other than write fails; errno has the reason. */
static int refused(long number) {
    if (!number || plan.action == SHORT) return 0;
    if (plan.action == TORN) die();
    errno = plan.action == FULL ? ENOSPC : plan.value;
    return 1;
}

static int path_refused(const char *name, const char *path) { return armed && refused(hit(name, path)); }

static int fd_refused(const char *name, int fd) { return armed && refused(hit_fd(name, fd)); }

/* How many of `length` bytes a write may write; -1 when it fails. `dies`: the process ends with it. */
static ssize_t allowance(const char *name, int fd, size_t length, int *dies) {
    long number = armed ? hit_fd(name, fd) : 0;
    size_t part = length * (size_t)plan.value / 1000;
    *dies = 0;
    if (!number) return (ssize_t)length;
    if (plan.action == FAIL || (plan.action == FULL && number > 1)) {
        errno = plan.action == FAIL ? plan.value : ENOSPC;
        return -1;
    }
    *dies = plan.action == TORN;
    if (length < 2) return *dies ? 0 : (ssize_t)length;
    if (part == 0 && plan.value > 0) part = 1;
    return (ssize_t)(part < length ? part : length - 1);
}

ssize_t write(int fd, const void *data, size_t length) {
    int dies;
    ssize_t part = allowance("write", fd, length, &dies);
    if (part >= 0) part = REAL(write)(fd, data, (size_t)part);
    if (dies) die();
    return part;
}

#define POSITIONED_WRITE(name, offset_type)                                                                            \
    ssize_t name(int fd, const void *data, size_t length, offset_type offset) {                                        \
        int dies;                                                                                                      \
        ssize_t part = allowance("pwrite", fd, length, &dies);                                                         \
        if (part >= 0) part = REAL(name)(fd, data, (size_t)part, offset);                                              \
        if (dies) die();                                                                                               \
        return part;                                                                                                   \
    }
POSITIONED_WRITE(pwrite, off_t)

ssize_t writev(int fd, const struct iovec *vectors, int count) {
    struct iovec cut[IOV_MAX];
    size_t length = 0, left;
    ssize_t part;
    int dies, used = 0;
    for (int i = 0; i < count; i++) length += vectors[i].iov_len;
    part = allowance("writev", fd, length, &dies);
    if (part >= 0) {
        for (left = (size_t)part; used < count && (left || used == 0); used++) {
            cut[used] = vectors[used];
            if (cut[used].iov_len > left) cut[used].iov_len = left;
            left -= cut[used].iov_len;
        }
        part = REAL(writev)(fd, cut, used);
    }
    if (dies) die();
    return part;
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        mode_t mode;                                                                                                   \
        va_start(rest, flags);                                                                                         \
        mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                               \
        va_end(rest);                                                                                                  \
        return path_refused("open", path) ? -1 : REAL(name)(path, flags, mode);                                        \
    }
#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *path, int flags, ...) {                                                           \
        va_list rest;                                                                                                  \
        mode_t mode;                                                                                                   \
        va_start(rest, flags);                                                                                         \
        mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                               \
        va_end(rest);                                                                                                  \
        return path_refused("open", path) ? -1 : REAL(name)(folder, path, flags, mode);                                \
    }
OPEN(open)
OPENAT(openat)

/* The calls that differ in their arguments only: on a descriptor, and on a path (or two, of which the first counts). */
#define ON_FD(type, name, called, parameters, ...)                                                                     \
    type name parameters { return fd_refused(called, fd) ? -1 : REAL(name)(__VA_ARGS__); }
#define ON_PATH(name, called, parameters, ...)                                                                         \
    int name parameters { return path_refused(called, path) ? -1 : REAL(name)(__VA_ARGS__); }

ON_FD(ssize_t, read, "read", (int fd, void *data, size_t length), fd, data, length)
ON_FD(ssize_t, pread, "read", (int fd, void *data, size_t length, off_t offset), fd, data, length, offset)
ON_FD(off_t, lseek, "lseek", (int fd, off_t offset, int whence), fd, offset, whence)
ON_FD(int, ftruncate, "ftruncate", (int fd, off_t length), fd, length)
ON_FD(int, fstat, "fstat", (int fd, struct stat *status), fd, status)
ON_FD(int, fsync, "fsync", (int fd), fd)
ON_FD(int, fdatasync, "fdatasync", (int fd), fd)
ON_FD(int, flock, "flock", (int fd, int operation), fd, operation)
ON_FD(int, fchmod, "fchmod", (int fd, mode_t mode), fd, mode)
ON_PATH(stat, "stat", (const char *path, struct stat *status), path, status)
ON_PATH(lstat, "stat", (const char *path, struct stat *status), path, status)
ON_PATH(fstatat, "stat", (int folder, const char *path, struct stat *status, int flags), folder, path, status, flags)
ON_PATH(truncate, "ftruncate", (const char *path, off_t length), path, length)
ON_PATH(rename, "rename", (const char *path, const char *to), path, to)
ON_PATH(renameat, "rename", (int folder, const char *path, int there, const char *to), folder, path, there, to)
ON_PATH(link, "link", (const char *path, const char *to), path, to)
ON_PATH(linkat, "link", (int folder, const char *path, int there, const char *to, int flags), folder, path, there, to,
        flags)
ON_PATH(unlink, "unlink", (const char *path), path)
ON_PATH(unlinkat, "unlink", (int folder, const char *path, int flags), folder, path, flags)

#ifdef __GLIBC__ /* where Python, built with large files, calls these */
POSITIONED_WRITE(pwrite64, off64_t)
OPEN(open64)
OPENAT(openat64)
ON_FD(ssize_t, pread64, "read", (int fd, void *data, size_t length, off64_t offset), fd, data, length, offset)
ON_FD(off64_t, lseek64, "lseek", (int fd, off64_t offset, int whence), fd, offset, whence)
ON_FD(int, ftruncate64, "ftruncate", (int fd, off64_t length), fd, length)
ON_FD(int, fstat64, "fstat", (int fd, struct stat64 *status), fd, status)
ON_PATH(stat64, "stat", (const char *path, struct stat64 *status), path, status)
ON_PATH(lstat64, "stat", (const char *path, struct stat64 *status), path, status)
ON_PATH(fstatat64, "stat", (int folder, const char *path, struct stat64 *status, int flags), folder, path, status,
        flags)
ON_PATH(truncate64, "ftruncate", (const char *path, off64_t length), path, length)

/* What an interpreter built for a C library before 2.33 calls for stat, fstat and lstat. */
extern int __fxstat(int version, int fd, struct stat *status);
extern int __fxstat64(int version, int fd, struct stat64 *status);
extern int __xstat(int version, const char *path, struct stat *status);
extern int __xstat64(int version, const char *path, struct stat64 *status);
extern int __lxstat(int version, const char *path, struct stat *status);
extern int __lxstat64(int version, const char *path, struct stat64 *status);
ON_FD(int, __fxstat, "fstat", (int version, int fd, struct stat *status), version, fd, status)
ON_FD(int, __fxstat64, "fstat", (int version, int fd, struct stat64 *status), version, fd, status)
ON_PATH(__xstat, "stat", (int version, const char *path, struct stat *status), version, path, status)
ON_PATH(__xstat64, "stat", (int version, const char *path, struct stat64 *status), version, path, status)
ON_PATH(__lxstat, "stat", (int version, const char *path, struct stat *status), version, path, status)
ON_PATH(__lxstat64, "stat", (int version, const char *path, struct stat64 *status), version, path, status)
#endif

/* On Linux the descriptor is gone even when close fails, close(2). */
int close(int fd) {
    int fails = fd_refused("close", fd), error = errno;
    int closed = REAL(close)(fd);
    if (fails) errno = error;
    return fails ? -1 : closed;
}
