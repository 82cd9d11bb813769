/* The n-th call of one kind below one folder fails: preloaded, and armed from Python by ctypes.
   kinds: 0 write, 1 fsync, 2 rename, 3 open, 4 lock */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <unistd.h>

static int armed = -1, code = 0;
static long at = 0, seen = 0;
static char under[PATH_MAX] = "";

void fault_arm(int kind, long n, int error, const char *folder) {
    armed = -1;
    strncpy(under, folder, sizeof under - 1);
    at = n; code = error; seen = 0; armed = kind;
}
long fault_disarm(void) { armed = -1; return seen; }

static int below(const char *path) { return path && strncmp(path, under, strlen(under)) == 0; }

static int fd_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static int fails(int kind) { return armed == kind && ++seen == at; }
#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define FAIL do { errno = code; return -1; } while (0)

ssize_t write(int fd, const void *data, size_t n) {
    REAL(write);
    if (armed == 0 && fd_below(fd) && fails(0)) {
        if (code == ENOSPC && n > 1) { /* a disk gets full in the middle */
            ssize_t half = real(fd, data, n / 2);
            (void)half;
        }
        FAIL;
    }
    return real(fd, data, n);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(writev);
    if (armed == 0 && fd_below(fd) && fails(0)) FAIL;
    return real(fd, parts, n);
}
int fsync(int fd) {
    REAL(fsync);
    if (armed == 1 && fd_below(fd) && fails(1)) FAIL;
    return real(fd);
}
int rename(const char *from, const char *to) {
    REAL(rename);
    if (armed == 2 && below(to) && fails(2)) FAIL;
    return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat);
    if (armed == 2 && below(to) && fails(2)) FAIL;
    return real(a, from, b, to);
}
static int opening(const char *path, int flags) {
    return armed == 3 && (flags & (O_CREAT | O_WRONLY | O_RDWR)) && below(path) && fails(3);
}
#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
int open(const char *path, int flags, ...) {
    REAL(open);
    MODE
    if (opening(path, flags)) FAIL;
    return real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE
    if (opening(path, flags)) FAIL;
    return real(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    REAL(openat);
    MODE
    if (opening(path, flags)) FAIL;
    return real(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    REAL(openat64);
    MODE
    if (opening(path, flags)) FAIL;
    return real(folder, path, flags, mode);
}
int flock(int fd, int operation) {
    REAL(flock);
    if (armed == 4 && fd_below(fd) && fails(4)) FAIL;
    return real(fd, operation);
}
