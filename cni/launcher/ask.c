/* The launcher's end of the CNI socket; cni/plugin/client.py describes the frame. */
#define _GNU_SOURCE
#include "launcher.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

bool wait_for(int fd, short events, int64_t deadline)
{
    for (;;) {
        int64_t left = deadline - now_ms();
        struct pollfd polled = {.fd = fd, .events = events};
        int ready = poll(&polled, 1, left > 0 ? (int)left : 0);
        if (ready > 0)
            return true;
        if (ready == 0 && left <= 0)
            return false;
        if (ready < 0 && errno != EINTR)
            return false;
    }
}

bool buffer_append(struct buffer *buffer, const void *data, size_t size)
{
    if (buffer->size + size > buffer->capacity) {
        size_t capacity = buffer->capacity ? buffer->capacity : 4096;
        while (capacity < buffer->size + size)
            capacity *= 2;
        char *grown = realloc(buffer->data, capacity);
        if (!grown)
            return false;
        buffer->data = grown;
        buffer->capacity = capacity;
    }
    memcpy(buffer->data + buffer->size, data, size);
    buffer->size += size;
    return true;
}

/* Whether the process that listens is root's or this user's: other users may be able to write to the run directory. */
static bool is_trusted(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
        return false;
    return peer.uid == 0 || peer.uid == geteuid();
}

static int connect_to(const char *run_dir, int64_t deadline, enum outcome *outcome)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    *outcome = NOT_SENT;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/cni.sock", run_dir);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    while (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        struct timespec pause = {.tv_nsec = 2000000};
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN || now_ms() >= deadline) { /* EAGAIN: the socket's queue is full */
            *outcome = errno == EAGAIN ? OUT_OF_TIME : NOT_SENT;
            close(fd);
            return -1;
        }
        nanosleep(&pause, NULL);
    }
    if (is_trusted(fd))
        return fd;
    close(fd);
    return -1;
}

static enum outcome send_all(int fd, const struct buffer *body, int netns, int64_t deadline)
{
    uint32_t size = htonl((uint32_t)body->size);
    char head[4];
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    size_t sent = 0;

    memcpy(head, &size, sizeof head);
    while (sent < sizeof head + body->size) {
        size_t in_head = sent < sizeof head ? sizeof head - sent : 0;
        size_t in_body = sent < sizeof head ? 0 : sent - sizeof head;
        struct iovec parts[2] = {
            {.iov_base = head + sizeof head - in_head, .iov_len = in_head},
            {.iov_base = body->data + in_body, .iov_len = body->size - in_body},
        };
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        if (sent == 0 && netns >= 0) {
            message.msg_control = control.bytes;
            message.msg_controllen = sizeof control.bytes;
            struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
            rights->cmsg_level = SOL_SOCKET;
            rights->cmsg_type = SCM_RIGHTS;
            rights->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(rights), &netns, sizeof netns);
        }
        ssize_t count = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (count >= 0)
            sent += (size_t)count;
        else if (errno == EAGAIN && !wait_for(fd, POLLOUT, deadline))
            return OUT_OF_TIME;
        else if (errno == EPIPE || errno == ECONNRESET)
            return ANSWERED; /* a daemon that refuses a request by its header answers before all is sent */
        else if (errno != EAGAIN && errno != EINTR)
            return NO_ANSWER;
        fault_point("sent-a-part");
    }
    return ANSWERED;
}

/* Receive exactly `size` bytes, appended to `buffer`. */
static enum outcome receive(int fd, struct buffer *buffer, size_t size, int64_t deadline)
{
    static char chunk[1 << 16];
    while (size) {
        ssize_t count = recv(fd, chunk, size < sizeof chunk ? size : sizeof chunk, 0);
        if (count > 0) {
            if (!buffer_append(buffer, chunk, (size_t)count))
                return NO_ANSWER;
            size -= (size_t)count;
        } else if (count == 0) {
            return NO_ANSWER;
        } else if (errno == EAGAIN) {
            if (!wait_for(fd, POLLIN, deadline))
                return OUT_OF_TIME;
        } else if (errno == ECONNRESET) {
            return NOT_SENT; /* the daemon ended before it read the request */
        } else if (errno != EINTR) {
            return NO_ANSWER;
        }
    }
    return ANSWERED;
}

/* A decimal number of 1 to 9 digits that ends with `end`; -1 if there is none. Advances `*at` past `end`. */
static long number_until(const char **at, const char *limit, char end)
{
    long value = 0;
    const char *start = *at;
    while (*at < limit && **at >= '0' && **at <= '9' && *at - start < 9)
        value = value * 10 + (*(*at)++ - '0');
    if (*at == start || *at == limit || *(*at)++ != end)
        return -1;
    return value;
}

/* Split the answer "<exit code> <length of stdout>\n" stdout stderr. */
static bool split(struct answer *answer)
{
    const char *at = answer->raw.data + 4, *end = answer->raw.data + answer->raw.size;
    long code = number_until(&at, end, ' ');
    long out_size = code < 0 ? -1 : number_until(&at, end, '\n');
    if (out_size < 0 || out_size > end - at || code > 255)
        return false;
    answer->code = (int)code;
    answer->out = at;
    answer->out_size = (size_t)out_size;
    answer->err = at + out_size;
    answer->err_size = (size_t)(end - answer->err);
    return true;
}

static enum outcome exchange(int fd, const struct buffer *body, int netns, int64_t deadline, struct answer *answer)
{
    enum outcome outcome = send_all(fd, body, netns, deadline);
    if (outcome != ANSWERED)
        return outcome;
    fault_point("sent");
    outcome = receive(fd, &answer->raw, 4, deadline);
    if (outcome != ANSWERED)
        return outcome;
    uint32_t size;
    memcpy(&size, answer->raw.data, sizeof size);
    size = ntohl(size);
    if (size > LARGEST)
        return NO_ANSWER;
    outcome = receive(fd, &answer->raw, size, deadline);
    if (outcome == NOT_SENT)
        return NO_ANSWER; /* the daemon had begun to answer */
    fault_point("received");
    return outcome != ANSWERED || split(answer) ? outcome : NO_ANSWER;
}

enum outcome ask(const char *run_dir, const struct buffer *body, int netns, int64_t deadline, struct answer *answer)
{
    enum outcome outcome;
    int fd = connect_to(run_dir, deadline, &outcome);
    if (fd < 0)
        return outcome;
    fault_point("connected");
    outcome = exchange(fd, body, netns, deadline, answer);
    if (outcome == ANSWERED)
        answer->socket = fd;
    else
        close(fd);
    return outcome;
}

void confirm(struct answer *answer, bool delivered)
{
    if (answer->socket < 0)
        return;
    if (delivered)
        (void)!send(answer->socket, "+", 1, MSG_NOSIGNAL);
    close(answer->socket);
    answer->socket = -1;
}
