/* A preloaded library that simulates a full disk: while the file $FULL_DISK exists, writes to files
   whose path contains ".db" fail with ENOSPC. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int is_full(int fd)
{
    char link[64], name[4096];
    const char *flag = getenv("FULL_DISK");
    if (flag == NULL || access(flag, F_OK) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0)
        return 0;
    name[length] = 0;
    return strstr(name, ".db") != NULL;
}

#define WRITER(name, parameters, arguments)                                    \
    ssize_t name parameters                                                    \
    {                                                                          \
        static ssize_t(*next) parameters;                                      \
        if (next == NULL)                                                      \
            next = (ssize_t(*) parameters)dlsym(RTLD_NEXT, #name);             \
        if (is_full(fd)) {                                                     \
            errno = ENOSPC;                                                    \
            return -1;                                                         \
        }                                                                      \
        return next arguments;                                                 \
    }

WRITER(write, (int fd, const void *data, size_t size), (fd, data, size))
WRITER(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRITER(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
