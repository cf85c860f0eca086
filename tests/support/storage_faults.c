/* Loaded with LD_PRELOAD: the n-th use of what lies below a folder fails, or takes long. Idle until it is called. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static char place[4096];
static long number, uses;
static int code, lasting, delay;

void storage_faults(const char *folder, long n, int error, int all_later, int microseconds) {
    number = n, code = error, lasting = all_later, delay = microseconds;
    strcpy(place, folder);
}

long storage_uses(void) { return uses; }

/* Whether a use of a path in the folder `folder` (a descriptor) fails. */
static int path_fails(int folder, const char *path) {
    char whole[8192], link[64];
    ssize_t length = 0;
    if (!*place || !path) return 0;
    if (*path != '/') {
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        length = readlink(link, whole, 4000);
        if (length < 0) return 0;
        whole[length++] = '/';
    }
    snprintf(whole + length, 4000, "%s", path);
    if (strncmp(whole, place, strlen(place)) || whole[strlen(place)] != '/') return 0;
    const char *log = strstr(whole, "/log.txt");
    if (log && !log[8]) return 0;
    long use = __sync_add_and_fetch(&uses, 1);
    if (!number || (use != number && !(lasting && use > number))) return 0;
    if (delay) usleep(delay);
    if (code < 0) kill(getpid(), -code);
    errno = code;
    return !delay;
}

static int file_fails(int descriptor) {
    char link[64], path[4000];
    if (!*place || descriptor < 3) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return path_fails(AT_FDCWD, path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define WRAP(result, failed, name, parameters, arguments, fails) \
    result name parameters { \
        REAL(name); \
        return fails ? failed : real arguments; \
    }
#define WRAP_OPEN(name, parameters, folder, ...) \
    int name parameters { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        REAL(name); \
        return path_fails(folder, path) ? -1 : real(__VA_ARGS__, mode); \
    }

WRAP_OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path, flags)
WRAP_OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path, flags)
WRAP_OPEN(openat, (int folder, const char *path, int flags, ...), folder, folder, path, flags)
WRAP_OPEN(openat64, (int folder, const char *path, int flags, ...), folder, folder, path, flags)
WRAP(ssize_t, -1, read, (int f, void *b, size_t n), (f, b, n), file_fails(f))
WRAP(ssize_t, -1, pread64, (int f, void *b, size_t n, off_t o), (f, b, n, o), file_fails(f))
WRAP(ssize_t, -1, write, (int f, const void *b, size_t n), (f, b, n), file_fails(f))
WRAP(ssize_t, -1, pwrite64, (int f, const void *b, size_t n, off_t o), (f, b, n, o), file_fails(f))
WRAP(ssize_t, -1, sendfile64, (int to, int from, off_t *o, size_t n), (to, from, o, n), file_fails(from) || file_fails(to))
WRAP(ssize_t, -1, sendfile, (int to, int from, off_t *o, size_t n), (to, from, o, n), file_fails(from) || file_fails(to))
int fsync(int f) { return file_fails(f) ? -1 : 0; } /* never waits, as the disk of all tests */
WRAP(int, -1, ftruncate64, (int f, off_t n), (f, n), file_fails(f))
WRAP(int, -1, rename, (const char *old, const char *new), (old, new), path_fails(AT_FDCWD, new))
WRAP(int, -1, unlink, (const char *path), (path), path_fails(AT_FDCWD, path))
WRAP(int, -1, unlinkat, (int d, const char *path, int flags), (d, path, flags), path_fails(d, path))
WRAP(int, -1, mkdir, (const char *path, mode_t mode), (path, mode), path_fails(AT_FDCWD, path))
WRAP(int, -1, rmdir, (const char *path), (path), path_fails(AT_FDCWD, path))
WRAP(DIR *, NULL, opendir, (const char *path), (path), path_fails(AT_FDCWD, path))
