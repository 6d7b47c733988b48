/* Finds the Python program: in the directory of this file (the unpacked form), or extracted from the end of this file
 * (the single file).
 *
 * The single file is the launcher, an archive, and a trailer. The archive holds the unpacked form. It is extracted once
 * to <directory>/program/<name>/: into another directory, synced, renamed, so that a directory of that name is always
 * complete (cni/cli/versions.py removes unused ones). plugin.spec writes both formats; numbers are little-endian.
 *
 *   trailer   "zlayer-program\1\n", name (32 bytes, padded with zeros), u64 offset of the archive, u64 size
 *   entry     u32 kind (S_IFDIR, S_IFREG, S_IFLNK) with permissions, u32 length of the name, u64 length of the content,
 *             name, content (of a link: its target)
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define PROGRAM "python/zlayer-cni"
#define MAGIC "zlayer-program\1\n"

enum { PATIENCE = 60000 }; /* milliseconds that a call waits for another process that extracts the program */

struct trailer {
    char magic[16], name[32];
    uint64_t offset, size;
};

struct entry {
    uint32_t mode, name_size;
    uint64_t size;
};

/* The archive in this file, mapped. */
struct archive {
    char name[33];
    const char *data;
    size_t size;
};

static char reason[PATH_MAX + 128]; /* why the last directory could not hold the program */

static bool fails(const char *what, const char *path)
{
    snprintf(reason, sizeof reason, "%s %s: %s", what, path, strerror(errno));
    return false;
}

/* Whether the file can be executed and belongs to root or to this user. */
static bool is_usable(const char *program)
{
    struct stat status;
    return stat(program, &status) == 0 && S_ISREG(status.st_mode) && access(program, X_OK) == 0 &&
           (status.st_uid == 0 || status.st_uid == geteuid());
}

/* Whether only root or this user can write to the directory. */
static bool is_private(const char *directory)
{
    struct stat status;
    if (lstat(directory, &status) != 0)
        return fails("cannot use", directory);
    errno = EPERM;
    if (!S_ISDIR(status.st_mode) || (status.st_mode & 022) || (status.st_uid != 0 && status.st_uid != geteuid()))
        return fails("other users may write to", directory);
    return true;
}

static bool map_archive(struct archive *archive)
{
    struct trailer trailer;
    struct stat status;
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fails("cannot open", "/proc/self/exe");
    bool read_all = fstat(fd, &status) == 0 && status.st_size > (off_t)sizeof trailer &&
                    pread(fd, &trailer, sizeof trailer, status.st_size - (off_t)sizeof trailer) == sizeof trailer;
    const char *data = MAP_FAILED;
    if (read_all && memcmp(trailer.magic, MAGIC, sizeof trailer.magic) == 0 &&
        trailer.offset + trailer.size + sizeof trailer == (uint64_t)status.st_size)
        data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (data == MAP_FAILED) {
        snprintf(reason, sizeof reason, "this file carries no program");
        return false;
    }
    memcpy(archive->name, trailer.name, sizeof trailer.name);
    archive->name[sizeof trailer.name] = '\0';
    archive->data = data + trailer.offset;
    archive->size = trailer.size;
    return true;
}

static bool write_file(const char *path, mode_t mode, const char *content, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode & 0777);
    if (fd < 0)
        return fails("cannot create", path);
    bool written = true;
    while (written && size) {
        ssize_t count = write(fd, content, size);
        if (count > 0)
            content += count, size -= (size_t)count;
        else
            written = count < 0 && errno == EINTR;
    }
    written = written && fchmod(fd, mode & 0777) == 0 && fsync(fd) == 0;
    if (!written)
        fails("cannot write", path);
    close(fd);
    return written;
}

static bool write_entry(const char *path, const struct entry *entry, const char *content)
{
    char target[PATH_MAX];
    if (S_ISREG(entry->mode))
        return write_file(path, entry->mode, content, entry->size);
    if (S_ISDIR(entry->mode))
        return (mkdir(path, 0755) == 0 && chmod(path, 0755) == 0) || fails("cannot create", path);
    errno = ENAMETOOLONG;
    return (snprintf(target, sizeof target, "%.*s", (int)entry->size, content) < (int)sizeof target &&
            symlink(target, path) == 0) ||
           fails("cannot create", path);
}

static bool write_tree(const struct archive *archive, const char *home)
{
    const char *at = archive->data, *end = at + archive->size;
    char path[PATH_MAX];
    if (mkdir(home, 0755) != 0 || chmod(home, 0755) != 0)
        return fails("cannot create", home);
    while (at < end) {
        struct entry entry;
        if ((size_t)(end - at) < sizeof entry)
            break;
        memcpy(&entry, at, sizeof entry);
        at += sizeof entry;
        if (entry.name_size > (size_t)(end - at) || entry.size > (size_t)(end - at) - entry.name_size)
            break;
        if (snprintf(path, sizeof path, "%s/%.*s", home, (int)entry.name_size, at) >= (int)sizeof path)
            break;
        at += entry.name_size;
        if (!write_entry(path, &entry, at))
            return false;
        at += entry.size;
        fault_point("extracted-a-file");
    }
    if (at == end)
        return true;
    snprintf(reason, sizeof reason, "the program in this file is damaged");
    return false;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *where)
{
    (void)status, (void)where;
    return kind == FTW_DP ? rmdir(path) : unlink(path);
}

static void remove_tree(const char *directory)
{
    (void)nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void sync_directory(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
}

/* The lock of a directory of programs; -1 if it cannot be had within PATIENCE. */
static int hold(const char *directory)
{
    char path[PATH_MAX];
    struct timespec pause = {.tv_nsec = 10000000};
    int64_t deadline = now_ms() + PATIENCE;
    snprintf(path, sizeof path, "%s/.lock", directory);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    while (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (now_ms() >= deadline) {
            close(fd);
            fd = -1;
            errno = ETIMEDOUT;
        } else {
            nanosleep(&pause, NULL);
        }
    }
    if (fd < 0)
        fails("cannot lock", path);
    return fd;
}

static bool extract(const struct archive *archive, const char *directory, const char *home)
{
    char fresh[PATH_MAX];
    int lock = hold(directory);
    if (lock < 0)
        return false;
    bool done = access(home, F_OK) == 0; /* another process has extracted it */
    if (!done) {
        snprintf(fresh, sizeof fresh, "%s/.new-%s", directory, archive->name);
        remove_tree(fresh); /* its writer ended: this process has the lock */
        done = write_tree(archive, fresh);
        fault_point("extracted");
        if (done && rename(fresh, home) != 0)
            done = fails("cannot create", home);
        if (done)
            sync_directory(directory);
        else
            remove_tree(fresh);
    }
    close(lock);
    return done;
}

static bool make_directories(const char *path)
{
    char part[PATH_MAX];
    snprintf(part, sizeof part, "%s", path);
    for (char *slash = strchr(part + 1, '/');; slash = strchr(slash + 1, '/')) {
        if (slash)
            *slash = '\0';
        if (mkdir(part, 0755) != 0 && errno != EEXIST)
            return fails("cannot create", part);
        if (!slash)
            return true;
        *slash = '/';
    }
}

/* The program below `base`, extracted if need be. */
static bool program_below(const struct archive *archive, const char *base, char *path, size_t size)
{
    char directory[PATH_MAX / 2], home[PATH_MAX - 64];
    struct statvfs filesystem;
    snprintf(directory, sizeof directory, "%s/program", base);
    snprintf(home, sizeof home, "%s/%s", directory, archive->name);
    snprintf(path, size, "%s/" PROGRAM, home);
    if (is_usable(path))
        return true;
    if (!make_directories(directory) || !is_private(directory))
        return false;
    if (statvfs(directory, &filesystem) == 0 && (filesystem.f_flag & ST_NOEXEC)) {
        errno = EACCES;
        return fails("mounted noexec:", directory);
    }
    return extract(archive, directory, home) && (is_usable(path) || fails("cannot execute", path));
}

/* A directory of this user below $TMPDIR or /tmp, for a machine on which no other place can be written. */
static bool temporary_base(char *base, size_t size)
{
    const char *parent = getenv("TMPDIR");
    if (!parent || parent[0] != '/')
        parent = "/tmp";
    snprintf(base, size, "%s/zlayer-cni-%u", parent, (unsigned)geteuid());
    if (mkdir(base, 0700) != 0 && errno != EEXIST)
        return fails("cannot create", base);
    return is_private(base);
}

static bool personal_base(char *base, size_t size)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && cache[0] == '/')
        snprintf(base, size, "%s/zlayer-cni", cache);
    else if (home && home[0] == '/')
        snprintf(base, size, "%s/.cache/zlayer-cni", home);
    else
        return false;
    return true;
}

/* The program beside this file, in the unpacked form. */
static bool program_beside(char *path, size_t size)
{
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length <= 0)
        return false;
    self[length] = '\0';
    *strrchr(self, '/') = '\0';
    return snprintf(path, size, "%s/" PROGRAM, self) < (int)size && access(path, X_OK) == 0;
}

bool find_program(const struct location *location, char *path, size_t size)
{
    struct archive archive;
    char base[PATH_MAX / 4];
    bool found = program_beside(path, size);
    if (!found && map_archive(&archive))
        found = program_below(&archive, location->data_dir, path, size) ||
                program_below(&archive, location->run_dir, path, size) ||
                (personal_base(base, sizeof base) && program_below(&archive, base, path, size)) ||
                (temporary_base(base, sizeof base) && program_below(&archive, base, path, size));
    if (!found)
        dprintf(2, "zlayer-cni: cannot extract the program: %s\n", reason);
    return found;
}
