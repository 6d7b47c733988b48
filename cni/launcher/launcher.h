/* The launcher: a small static program that hands a plugin call to a daemon that runs, and starts the Python program
 * for everything else. docs/architecture.md, "The launcher", describes the division of work.
 *
 * The launcher decides nothing. It never renders an error, and it never chooses another run directory than the Python
 * plugin would (cni/plugin/main.py and cni/plugin/config.py). Without the launcher the behaviour is the same.
 */
#ifndef ZLAYER_LAUNCHER_H
#define ZLAYER_LAUNCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    LARGEST = 8 * 1024 * 1024, /* bytes of a request or an answer (cni/plugin_protocol.py, LARGEST) */
    RUN_DIR_LIMIT = 80,        /* bytes of runDir (cni/plugin/config.py, _LIMITS) */
    DATA_DIR_LIMIT = 1024,     /* bytes of dataDir */
    ATTEMPT_SIZE = 32,         /* hexadecimal digits of an attempt id */
};

/* Bytes that grow. `data` is NULL while `size` is 0. */
struct buffer {
    char *data;
    size_t size, capacity;
};

/* Append `size` bytes. Returns false if there is no memory. */
bool buffer_append(struct buffer *buffer, const void *data, size_t size);

/* The directories that a configuration names; the defaults where it names none. */
struct location {
    char run_dir[RUN_DIR_LIMIT + 1];
    char data_dir[DATA_DIR_LIMIT + 1];
};

/* Read `location` from a network configuration. Returns false if the Python program has to read it: the configuration
 * is not plain ASCII JSON, names another daemon, or holds a value that the Python plugin would refuse or change. Then
 * `location` is only where the program is extracted. */
bool read_location(const char *stdin_data, size_t size, struct location *location);

/* What came of a request to the daemon. */
enum outcome {
    ANSWERED,     /* `answer` is complete */
    NOT_SENT,     /* no daemon listens, or the request did not reach it */
    NO_ANSWER,    /* the daemon closed the connection after it may have read the request */
    OUT_OF_TIME,  /* the deadline passed */
};

struct answer {
    int code;
    const char *out, *err;
    size_t out_size, err_size;
    struct buffer raw;
    int socket; /* the connection; open until `confirm`, or -1 */
};

/* Send `body` with descriptor `netns` (-1: none) to the CNI socket in `run_dir`, and receive the answer. `deadline` is
 * in milliseconds of CLOCK_MONOTONIC. */
enum outcome ask(const char *run_dir, const struct buffer *body, int netns, int64_t deadline, struct answer *answer);

/* Tell the daemon that the runtime has the answer, and close the connection. */
void confirm(struct answer *answer, bool delivered);

/* Milliseconds of CLOCK_MONOTONIC. */
int64_t now_ms(void);

/* Wait until `fd` is ready for `events`; false if `deadline` passed first. */
bool wait_for(int fd, short events, int64_t deadline);

/* Write the path of the Python program to `path`: beside this program, or extracted from it. Returns false, and writes
 * the reason to stderr, if there is none. */
bool find_program(const struct location *location, char *path, size_t size);

/* The fault points of tests: with -DZLAYER_FAULT_POINTS the process kills itself at the point that ZLAYER_LAUNCHER_FAULT
 * names. */
#ifdef ZLAYER_FAULT_POINTS
void fault_point(const char *name);
#else
#define fault_point(name) ((void)0)
#endif

#endif
