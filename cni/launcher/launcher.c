/* Serves one call of a container runtime by the daemon, or executes the Python program. launcher.h says what decides. */
#define _GNU_SOURCE
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* The verbs that a daemon serves, and the seconds that each may take (cni/plugin/main.py, DEADLINES). VERSION is
 * answered by Python, which reads stdin only if there is any. */
static const struct verb {
    const char *name;
    int deadline; /* milliseconds */
} verbs[] = {{"ADD", 38000}, {"CHECK", 9000}, {"STATUS", 1700}, {"GC", 30000}, {"DEL", 8000}};

/* The variables that the daemon gets (cni/plugin_protocol.py, VARIABLES). */
static const char *const sent_variables[] = {
    "CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "CNI_NETNS_OVERRIDE",
};

struct call {
    const struct verb *verb;
    unsigned long long started; /* clock ticks since the boot; 0: unknown */
    int64_t began;              /* milliseconds of CLOCK_MONOTONIC at which the runtime started this process */
    struct buffer config;       /* stdin */
    bool whole;                 /* stdin has been read to its end */
    struct location location;
    char attempt[ATTEMPT_SIZE + 1];
    const char *state; /* what the Python program must know of the call: see `hand_over` */
    int code;
};

#ifdef ZLAYER_FAULT_POINTS
void fault_point(const char *name)
{
    const char *chosen = getenv("ZLAYER_LAUNCHER_FAULT");
    if (chosen && strcmp(chosen, name) == 0)
        raise(SIGKILL);
}
#endif

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static bool standard_descriptors_are_open(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            return false;
    return true;
}

/* The start time of this process in clock ticks since the boot; 0 if it is unknown. */
static unsigned long long start_time(void)
{
    char text[1024];
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (size <= 0)
        return 0;
    text[size] = '\0';
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++) /* proc(5): the name is field 2, the start time field 22 */
        at = strchr(at + 1, ' ');
    return at ? strtoull(at, NULL, 10) : 0;
}

/* Milliseconds since the runtime started this process, which is earlier than now on a busy machine. */
static int64_t age(unsigned long long started)
{
    struct timespec now;
    long ticks = sysconf(_SC_CLK_TCK);
    if (!started || ticks <= 0 || clock_gettime(CLOCK_BOOTTIME, &now) != 0)
        return 0;
    int64_t milliseconds = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000 - (int64_t)(started * 1000 / (unsigned)ticks);
    return milliseconds > 0 ? milliseconds : 0;
}

/* Read stdin to its end. Returns false if it cannot be read, is too long, or does not end within half the verb's time;
 * the Python program reads on. */
static bool read_config(struct call *call)
{
    static char chunk[1 << 16];
    while (call->config.size <= LARGEST) {
        if (!wait_for(0, POLLIN, call->began + call->verb->deadline / 2))
            return false;
        ssize_t size = read(0, chunk, sizeof chunk);
        if (size == 0)
            return call->whole = true;
        if (size < 0 && errno != EINTR && errno != EAGAIN)
            return false;
        if (size > 0 && !buffer_append(&call->config, chunk, (size_t)size))
            return false;
    }
    return false;
}

static bool add_text(struct buffer *buffer, const char *text)
{
    return buffer_append(buffer, text, strlen(text));
}

/* Append "key=value" and a zero byte. */
static bool add_pair(struct buffer *body, const char *key, const char *value)
{
    return add_text(body, key) && add_text(body, "=") && buffer_append(body, value, strlen(value) + 1);
}

/* Open CNI_NETNS, and append the keys about it. Returns false if Python has to name the error. */
static bool add_netns(struct buffer *body, int *netns)
{
    struct stat own, status;
    char text[64];
    const char *path = getenv("CNI_NETNS");
    if (stat("/proc/self/ns/net", &own) != 0)
        return false;
    snprintf(text, sizeof text, "%llu:%llu", (unsigned long long)own.st_dev, (unsigned long long)own.st_ino);
    if (!add_pair(body, "OWN_NETNS", text))
        return false;
    if (!path || !*path)
        return true;
    if (stat(path, &status) != 0)
        return errno == ENOENT && add_pair(body, "NETNS_ERROR", "ENOENT");
    if (!S_ISREG(status.st_mode)) /* to open a FIFO blocks, and to open some devices has side effects */
        return false;
    *netns = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    return *netns >= 0 && add_pair(body, "NETNS_FD", "1");
}

static bool make_attempt(struct call *call)
{
    unsigned char random[ATTEMPT_SIZE / 2];
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return false;
    for (size_t i = 0; i < sizeof random; i++)
        snprintf(call->attempt + 2 * i, 3, "%02x", random[i]);
    return true;
}

static bool make_request(struct call *call, struct buffer *body, int *netns)
{
    char whose[64];
    bool made = buffer_append(body, "zcni1", 6);
    for (size_t i = 0; i < sizeof sent_variables / sizeof *sent_variables; i++) {
        const char *value = getenv(sent_variables[i]);
        if (value)
            made = made && add_pair(body, sent_variables[i], value);
    }
    made = made && make_attempt(call) && add_pair(body, "ATTEMPT", call->attempt) && add_pair(body, "LAUNCHER", "1") &&
           add_netns(body, netns);
    if (strcmp(call->verb->name, "ADD") == 0) {
        snprintf(whose, sizeof whose, "%d:%llu", (int)getpid(), call->started);
        made = made && add_pair(body, "TELLS", "1") && add_pair(body, "WHOSE", whose);
    }
    return made && buffer_append(body, "", 1) && buffer_append(body, call->config.data, call->config.size) &&
           body->size <= LARGEST;
}

static bool write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t count = write(fd, data, size);
        if (count >= 0)
            data += count, size -= (size_t)count;
        else if (errno == EAGAIN)
            (void)wait_for(fd, POLLOUT, INT64_MAX / 2);
        else if (errno != EINTR)
            return false;
    }
    return true;
}

/* Print the daemon's answer. Returns false if Python has to undo an ADD whose result cannot be written. */
static bool print(struct call *call, struct answer *answer)
{
    bool is_add = strcmp(call->verb->name, "ADD") == 0;
    bool printed = write_all(1, answer->out, answer->out_size);
    (void)write_all(2, answer->err, answer->err_size);
    fault_point("printed");
    confirm(answer, printed && is_add);
    fault_point("confirmed");
    call->code = printed || answer->code ? answer->code : 1;
    call->state = "undo";
    return printed || !is_add || answer->code != 0;
}

/* Let the daemon carry out the call. Returns false if the Python program has to continue it. */
static bool serve(struct call *call)
{
    struct buffer body = {0};
    struct answer answer = {.socket = -1};
    int netns = -1;

    if (!standard_descriptors_are_open())
        return false;
    call->started = start_time();
    int64_t elapsed = age(call->started), most = call->verb->deadline / 2;
    call->began = now_ms() - (elapsed < most ? elapsed : most);
    if (!read_config(call) || !read_location(call->config.data, call->config.size, &call->location) ||
        !make_request(call, &body, &netns))
        return false;
    fault_point("read");
    enum outcome outcome = ask(call->location.run_dir, &body, netns, call->began + call->verb->deadline, &answer);
    if (netns >= 0)
        close(netns);
    call->state = outcome == OUT_OF_TIME ? "late" : outcome == NO_ANSWER ? "unanswered" : "";
    if (outcome != ANSWERED)
        return false;
    if (answer.code != 0 && strcmp(call->verb->name, "DEL") == 0) {
        confirm(&answer, false);
        return false; /* a DEL that failed is queued by the Python plugin, which asks once more */
    }
    return print(call, &answer);
}

/* Pass on what was read of stdin: as stdin if it ended, else by a descriptor that ZLAYER_CNI_STDIN names. */
static bool pass_config(struct call *call, char *variable, size_t size)
{
    variable[0] = '\0';
    if (!call->config.size && !call->whole)
        return true;
    int fd = memfd_create("stdin", 0);
    if (fd < 0 || !write_all(fd, call->config.data, call->config.size) || lseek(fd, 0, SEEK_SET) != 0)
        return false;
    if (call->whole) {
        bool done = dup2(fd, 0) == 0;
        close(fd);
        return done;
    }
    snprintf(variable, size, "ZLAYER_CNI_STDIN=%d", fd);
    return true;
}

static bool is_of_the_start(const char *variable)
{
    return starts_with(variable, "_PYI_") || starts_with(variable, "_MEI") || starts_with(variable, "PYINSTALLER_") ||
           starts_with(variable, "LD_LIBRARY_PATH") || starts_with(variable, "ZLAYER_CNI_");
}

/* Execute the Python program. PyInstaller's bootloader would execute itself a second time to set these variables.
 * ZLAYER_CNI_CALL is "<attempt>:<state>"; the states are
 *   (empty)      no daemon has read the request
 *   unanswered   a daemon closed the connection after it may have read the request
 *   late         the verb's deadline has passed
 *   undo         the result of an ADD could not be written to stdout
 */
static int hand_over(struct call *call, char **argv)
{
    static char program[PATH_MAX], library_path[PATH_MAX + 64], archive[PATH_MAX + 64], original[PATH_MAX + 64];
    static char of_call[ATTEMPT_SIZE + 64], of_stdin[64];
    size_t count = 0;

    if (!find_program(&call->location, program, sizeof program) || !pass_config(call, of_stdin, sizeof of_stdin))
        return -1;
    for (char **each = environ; *each; each++)
        count++;
    char **variables = calloc(count + 8, sizeof *variables);
    if (!variables)
        return -1;
    count = 0;
    for (char **each = environ; *each; each++)
        if (!is_of_the_start(*each))
            variables[count++] = *each;
    const char *libraries = getenv("LD_LIBRARY_PATH");
    if (libraries && snprintf(original, sizeof original, "LD_LIBRARY_PATH_ORIG=%s", libraries) < (int)sizeof original)
        variables[count++] = original;
    snprintf(archive, sizeof archive, "_PYI_ARCHIVE_FILE=%s", program);
    snprintf(library_path, sizeof library_path, "LD_LIBRARY_PATH=%.*s_internal",
             (int)(strrchr(program, '/') + 1 - program), program);
    variables[count++] = archive;
    variables[count++] = library_path;
    variables[count++] = "_PYI_PARENT_PROCESS_LEVEL=-1";
    variables[count++] = "_PYI_LINUX_PROCESS_NAME=zlayer-cni";
    if (call->attempt[0]) {
        snprintf(of_call, sizeof of_call, "ZLAYER_CNI_CALL=%s:%s", call->attempt, call->state);
        variables[count++] = of_call;
    }
    if (of_stdin[0])
        variables[count++] = of_stdin;
    fault_point("hand-over");
    execve(program, argv, variables);
    dprintf(2, "zlayer-cni: cannot execute %s: %s\n", program, strerror(errno));
    return -1;
}

static const struct verb *verb_of(const char *command)
{
    for (size_t i = 0; command && i < sizeof verbs / sizeof *verbs; i++)
        if (strcmp(command, verbs[i].name) == 0)
            return &verbs[i];
    return NULL;
}

/* The value of an option `--name VALUE` or `--name=VALUE`, if it is an absolute path. */
static void read_option(char **argv, const char *name, char *value, size_t size)
{
    size_t length = strlen(name);
    for (char **word = argv + 1; *word; word++) {
        const char *given = NULL;
        if (strncmp(*word, name, length) == 0 && (*word)[length] == '=')
            given = *word + length + 1;
        else if (strcmp(*word, name) == 0)
            given = word[1];
        if (given && given[0] == '/' && strlen(given) < size) {
            strcpy(value, given);
            return;
        }
    }
}

int main(int argc, char **argv)
{
    struct call call = {.state = ""};
    (void)read_location("", 0, &call.location);
    call.verb = argc == 1 ? verb_of(getenv("CNI_COMMAND")) : NULL;
    if (call.verb) {
        struct sigaction ignored = {.sa_handler = SIG_IGN}, before;
        sigaction(SIGPIPE, &ignored, &before);
        if (serve(&call))
            return call.code;
        sigaction(SIGPIPE, &before, NULL);
    } else {
        read_option(argv, "--data-dir", call.location.data_dir, sizeof call.location.data_dir);
        read_option(argv, "--run-dir", call.location.run_dir, sizeof call.location.run_dir);
    }
    (void)hand_over(&call, argv);
    if (call.verb)
        printf("{\"cniVersion\":\"1.0.0\",\"code\":5,\"msg\":\"the program cannot be executed\","
               "\"details\":\"the reason is on stderr\"}\n");
    return call.verb ? 1 : 126;
}
