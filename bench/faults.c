/* Counts operations on files below a folder, and kills the process at the n-th or lets it fail.

   cc -shared -fPIC -O1 -o faults.so faults.c -ldl; LD_PRELOAD=faults.so, then faults_arm (see faults.py).
   A killed write leaves half of its bytes; a full disk stays full; a broken operation (EIO) fails once. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { KILL = 1, FULL = 2, BROKEN = 3, MOST = 1 << 16, DIE = -1 };

struct shared { /* of all processes of a run */
    long count;
    int full;
    char what[1024];
    char modes[MOST]; /* of each operation: r reads, w needs room, d needs none */
};

static struct shared *shared;
static char root[PATH_MAX];
static long at;
static int fault;

void faults_arm(struct shared *memory, const char *folder, int how, long number) {
    snprintf(root, sizeof root, "%s/", folder);
    fault = how;
    at = number;
    shared = memory;
}

static int trouble(char mode, const char *name, const char *path) {
    if (!shared || strncmp(path, root, strlen(root))) return 0;
    if (shared->full && mode == 'w') return ENOSPC;
    long number = __sync_fetch_and_add(&shared->count, 1);
    if (number < MOST) shared->modes[number] = mode;
    if (number != at) return 0;
    snprintf(shared->what, sizeof shared->what, "%s %s", name, path + strlen(root));
    if (fault == KILL) return DIE;
    shared->full = fault == FULL;
    return fault == FULL ? ENOSPC : EIO;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int at_path(char mode, const char *name, int folder, const char *path) {
    char whole[2 * PATH_MAX], place[64], base[PATH_MAX];
    if (!shared || !path) return 0;
    if (path[0] == '/') return trouble(mode, name, path);
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
    } else {
        snprintf(place, sizeof place, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(place, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return trouble(mode, name, whole);
}

static int at_file(char mode, const char *name, int file) {
    char place[64], path[PATH_MAX];
    if (!shared) return 0;
    snprintf(place, sizeof place, "/proc/self/fd/%d", file);
    ssize_t length = readlink(place, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return trouble(mode, name, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define STOP(found, failed) \
    do { \
        int fate = (found); \
        if (fate == DIE) die(); \
        if (fate) { errno = fate; return failed; } \
    } while (0)
#define MODE(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT) ? 'w' : 'r')

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        if (!(flags & O_DIRECTORY)) STOP(at_path(MODE(flags), "open", AT_FDCWD, path), -1); \
        return REAL(name)(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        if (!(flags & O_DIRECTORY)) STOP(at_path(MODE(flags), "open", folder, path), -1); \
        return REAL(name)(folder, path, flags, mode); \
    }
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        STOP(at_path(strpbrk(mode, "wa+") ? 'w' : 'r', "open", AT_FDCWD, path), NULL); \
        return REAL(name)(path, mode); \
    }
#define WRITE_AT(name) \
    ssize_t name(int file, const void *data, size_t count, off_t where) { \
        int wrong = at_file('w', "write", file); \
        if (wrong == DIE) { REAL(name)(file, data, count / 2, where); die(); } \
        STOP(wrong, -1); \
        return REAL(name)(file, data, count, where); \
    }
#define TRUNCATE(name) \
    int name(int file, off_t size) { \
        STOP(at_file('w', "truncate", file), -1); \
        return REAL(name)(file, size); \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)
WRITE_AT(pwrite)
WRITE_AT(pwrite64)
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

ssize_t write(int file, const void *data, size_t count) {
    int wrong = at_file('w', "write", file);
    if (wrong == DIE) {
        REAL(write)(file, data, count / 2);
        die();
    }
    STOP(wrong, -1);
    return REAL(write)(file, data, count);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    int wrong = at_file('w', "write", file);
    if (wrong == DIE) {
        REAL(writev)(file, parts, count / 2);
        die();
    }
    STOP(wrong, -1);
    return REAL(writev)(file, parts, count);
}

int fsync(int file) {
    STOP(at_file('w', "fsync", file), -1);
    return REAL(fsync)(file);
}

int mkdir(const char *path, mode_t mode) {
    STOP(at_path('w', "mkdir", AT_FDCWD, path), -1);
    return REAL(mkdir)(path, mode);
}

int rename(const char *path, const char *other) {
    STOP(at_path('d', "rename", AT_FDCWD, path), -1);
    return REAL(rename)(path, other);
}

int unlink(const char *path) {
    STOP(at_path('d', "unlink", AT_FDCWD, path), -1);
    return REAL(unlink)(path);
}

int unlinkat(int folder, const char *path, int flags) {
    STOP(at_path('d', "unlink", folder, path), -1);
    return REAL(unlinkat)(folder, path, flags);
}

int rmdir(const char *path) {
    STOP(at_path('d', "rmdir", AT_FDCWD, path), -1);
    return REAL(rmdir)(path);
}
