/* Keeps, in a folder of its own, what would be left after power loss: loaded into a process by LD_PRELOAD.
 *
 * A file's bytes survive once it was flushed (fsync, fdatasync, a write with RWF_DSYNC), the names in a folder once the
 * folder was. Whatever the process dies of, $POWER_LOSS holds one file for each inode that was flushed: `f<inode>-<birth>`
 * has a file's bytes, `d<inode>` a line `<kept as> <name>` for each entry of a folder. `tests.power_loss` reads it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static int name_of(int folder, const char *entry, char *name, size_t size) {
    struct statx found;
    if (statx(folder, entry, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_TYPE | STATX_BTIME, &found)) return 0;
    unsigned long long inode = found.stx_ino;
    if (S_ISDIR(found.stx_mode)) snprintf(name, size, "d%llu", inode);
    else if (S_ISREG(found.stx_mode))
        snprintf(name, size, "f%llu-%lld.%u", inode, (long long)found.stx_btime.tv_sec, found.stx_btime.tv_nsec);
    else return 0;
    return 1;
}

static void copy_bytes(int descriptor, FILE *kept) {
    char path[64], buffer[65536];
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got;
    while (file >= 0 && (got = read(file, buffer, sizeof buffer)) > 0) fwrite(buffer, 1, (size_t)got, kept);
    if (file >= 0) close(file);
}

static void copy_names(int descriptor, FILE *kept) {
    char name[64];
    DIR *folder = fdopendir(openat(descriptor, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        if (entry->d_name[0] != '.' && name_of(descriptor, entry->d_name, name, sizeof name))
            fprintf(kept, "%s %s\n", name, entry->d_name);
    if (folder) closedir(folder);
}

/* Write what a descriptor has now into a file that `keep` makes count. */
static int take(int descriptor, char *taken, char *final, size_t size) {
    char name[64];
    const char *folder = getenv("POWER_LOSS");
    if (!folder || !name_of(descriptor, "", name, sizeof name)) return 0;
    snprintf(taken, size, "%s/taken", folder);
    snprintf(final, size, "%s/%s", folder, name);
    FILE *kept = fopen(taken, "we");
    if (!kept) abort();
    if (name[0] == 'd') copy_names(descriptor, kept);
    else copy_bytes(descriptor, kept);
    if (fclose(kept)) abort();
    return 1;
}

static int flush(int descriptor, int (*flush_really)(int)) {
    char taken[4096], final[4096];
    pthread_mutex_lock(&one_at_a_time);
    int is_taken = take(descriptor, taken, final, sizeof taken); /* before: what comes meanwhile may not be flushed */
    int result = flush_really(descriptor);
    if (is_taken && result == 0 && rename(taken, final)) abort();
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

int fsync(int descriptor) { return flush(descriptor, (int (*)(int))dlsym(RTLD_NEXT, "fsync")); }

int fdatasync(int descriptor) { return flush(descriptor, (int (*)(int))dlsym(RTLD_NEXT, "fdatasync")); }

ssize_t pwritev64v2(int descriptor, const struct iovec *parts, int count, off64_t at, int flags) {
    typedef ssize_t (*Write)(int, const struct iovec *, int, off64_t, int);
    char taken[4096], final[4096];
    ssize_t result = ((Write)dlsym(RTLD_NEXT, "pwritev64v2"))(descriptor, parts, count, at, flags);
    if (result >= 0 && flags & RWF_DSYNC) {
        pthread_mutex_lock(&one_at_a_time);
        if (take(descriptor, taken, final, sizeof taken) && rename(taken, final)) abort();
        pthread_mutex_unlock(&one_at_a_time);
    }
    return result;
}
