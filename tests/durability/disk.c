/*
 * A preloaded library that simulates a disk that fails or is slow. It interposes the calls that sync
 * a file or write to it. Environment variables:
 *
 *   DISK_ORDERS  a file with one order per line, read again at each call:
 *                  CALL SUFFIX ACTION [NUMBER]
 *                CALL is fsync, fdatasync or write; SUFFIX is the end of the file's name.
 *                ACTION is eio (the call fails; with a NUMBER, only the first NUMBER calls of the
 *                process fail), enospc (the call fails), slow (the call takes NUMBER microseconds
 *                longer), or stuck (the call blocks until the order is removed).
 *   DISK_DELAY   how much longer each sync takes, in microseconds, with or without orders
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int ends_with(const char *name, const char *suffix) {
    size_t length = strlen(name), end = strlen(suffix);
    return length >= end && strcmp(name + length - end, suffix) == 0;
}

/* How many calls have failed by an order with a number. */
static atomic_int failures;

/* Carries the orders out. Returns 0, or the error that the call must fail with. */
static int ordered(const char *call, int fd) {
    const char *delay = getenv("DISK_DELAY");
    if (delay != NULL && strcmp(call, "write") != 0) {
        usleep((useconds_t)atoi(delay));
    }
    const char *orders = getenv("DISK_ORDERS");
    if (orders == NULL) {
        return 0;
    }
    char link[64], name[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) {
        return 0;
    }
    name[length] = '\0';
    for (;;) {
        FILE *file = fopen(orders, "re");
        if (file == NULL) {
            return 0;
        }
        char line[256], on[32], suffix[64], action[32];
        int stuck = 0, error = 0;
        while (fgets(line, sizeof line, file) != NULL) {
            int number = 0;
            if (sscanf(line, "%31s %63s %31s %d", on, suffix, action, &number) < 3 ||
                strcmp(on, call) != 0 || !ends_with(name, suffix)) {
                continue;
            }
            if (strcmp(action, "eio") == 0) {
                if (number == 0 || atomic_fetch_add(&failures, 1) < number) {
                    error = EIO;
                }
            } else if (strcmp(action, "enospc") == 0) {
                error = ENOSPC;
            } else if (strcmp(action, "slow") == 0) {
                usleep((useconds_t)number);
            } else if (strcmp(action, "stuck") == 0) {
                stuck = 1;
            }
        }
        fclose(file);
        if (!stuck) {
            return error;
        }
        usleep(1000);
    }
}

static int sync_call(const char *call, int fd) {
    int error = ordered(call, fd);
    if (error != 0) {
        errno = error;
        return -1;
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, call);
    return real(fd);
}

int fsync(int fd) { return sync_call("fsync", fd); }

int fdatasync(int fd) { return sync_call("fdatasync", fd); }

static ssize_t write_call(const char *call, int fd, const void *data, size_t count, off_t offset) {
    int error = ordered("write", fd);
    if (error != 0) {
        errno = error;
        return -1;
    }
    ssize_t (*real)(int, const void *, size_t, off_t) =
        (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, call);
    return real(fd, data, count, offset);
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) {
    return write_call("pwrite", fd, data, count, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t count, off_t offset) {
    return write_call("pwrite64", fd, data, count, offset);
}
