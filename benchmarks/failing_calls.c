// Loaded before libc: the n-th call that writes below a folder fails, or sets the clock to another time. Built and loaded by failing_calls.py.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

struct state {
    char folder[4096];
    long calls, fails_at, jumps_at;
    int error;
    long long jump, shift;
};
static struct state *shared;  // by forks, too

__attribute__((constructor)) static void begin(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void expect(const char *folder, long fails_at, int error, long jumps_at, long long jump) {
    snprintf(shared->folder, sizeof shared->folder, "%s", folder);
    shared->calls = 0, shared->fails_at = fails_at, shared->error = error, shared->jumps_at = jumps_at, shared->jump = jump, shared->shift = 0;
}

long n_calls(void) { return shared->calls; }

static int fails(const char *path) {
    if (!shared || !shared->folder[0] || strncmp(path, shared->folder, strlen(shared->folder))) return 0;
    long n = __atomic_add_fetch(&shared->calls, 1, __ATOMIC_SEQ_CST);
    if (n == shared->jumps_at) shared->shift = shared->jump;
    if (n != shared->fails_at) return 0;
    errno = shared->error;
    return 1;
}

static int fails_on(int fd) {
    char link[64], path[4096];
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (n < 0) return 0;
    path[n] = 0;
    return fails(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t n) { return fails_on(fd) ? -1 : REAL(write)(fd, data, n); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { return fails_on(fd) ? -1 : REAL(pwrite64)(fd, data, n, at); }
ssize_t sendfile64(int to, int from, off64_t *at, size_t n);
ssize_t sendfile64(int to, int from, off64_t *at, size_t n) { return fails_on(to) ? -1 : REAL(sendfile64)(to, from, at, n); }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t n, unsigned flags) {
    return fails_on(to) ? -1 : REAL(copy_file_range)(from, a, to, b, n, flags);
}
int ftruncate64(int fd, off64_t size) { return fails_on(fd) ? -1 : REAL(ftruncate64)(fd, size); }
int fsync(int fd) { return fails_on(fd) ? -1 : REAL(fsync)(fd); }
int rename(const char *from, const char *to) { return fails(to) ? -1 : REAL(rename)(from, to); }
int close(int fd) {  // a descriptor is closed even where close reports an error
    int failed = fails_on(fd), error = errno, result = REAL(close)(fd);
    if (failed) errno = error;
    return failed ? -1 : result;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (!result && clock == CLOCK_REALTIME && shared) now->tv_sec += shared->shift;
    return result;
}
