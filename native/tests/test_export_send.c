/* SPDX-License-Identifier: Apache-2.0 */
/* capture_export_send over loopback: order, counts of what left, runs of one length, errors. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "jarvis_capture.h"

enum { MESSAGES = 200, ROOM = 1 << 20 };

static uint8_t block[ROOM];
static struct capture_export_message messages[MESSAGES];

/* Messages whose first bytes are their number, lengths from the function. */
static void lay_out(uint32_t (*length_of)(uint32_t number)) {
    uint32_t offset = 0;
    for (uint32_t i = 0; i < MESSAGES; i++) {
        messages[i] = (struct capture_export_message){.offset = offset, .length = length_of(i)};
        CHECK(offset + messages[i].length <= ROOM);
        memset(block + offset, (int)(i & 0xff), messages[i].length);
        memcpy(block + offset, &i, sizeof(i));
        offset += messages[i].length;
    }
}

static uint32_t same(uint32_t number) {
    (void)number;
    return 1400;
}

static uint32_t mixed(uint32_t number) { /* runs, broken by shorter and by longer ones */
    return number % 37 == 0 ? 600 : number % 11 == 0 ? 1408 : 1400;
}

static uint32_t falling(uint32_t number) {
    return 1200 - number;
}

struct sink {
    int socket;
    int source; /* connected to it */
};

static struct sink open_sink(int family) {
    struct sink sink = {socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0),
                        socket(family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    CHECK(sink.socket >= 0 && sink.source >= 0);
    struct sockaddr_storage address = {.ss_family = (sa_family_t)family};
    socklen_t length = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    if (family == AF_INET)
        ((struct sockaddr_in *)&address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    else
        ((struct sockaddr_in6 *)&address)->sin6_addr = in6addr_loopback;
    CHECK(bind(sink.socket, (struct sockaddr *)&address, length) == 0);
    CHECK(getsockname(sink.socket, (struct sockaddr *)&address, &length) == 0);
    CHECK(connect(sink.source, (struct sockaddr *)&address, length) == 0);
    return sink;
}

static void close_sink(struct sink sink) {
    close(sink.socket);
    close(sink.source);
}

/* Takes a datagram and compares it with message `number`. */
static void expect(int socket, uint32_t number) {
    static uint8_t got[65536];
    struct pollfd ready = {.fd = socket, .events = POLLIN};
    CHECK(poll(&ready, 1, 10000) == 1);
    ssize_t length = recv(socket, got, sizeof(got), 0);
    CHECK_EQUAL(messages[number].length, length);
    CHECK(memcmp(got, block + messages[number].offset, (size_t)length) == 0);
}

/* In portions that a default receive buffer holds. */
static void all_arrive_in_order(int family) {
    struct sink sink = open_sink(family);
    for (uint32_t first = 0; first < MESSAGES; first += 40) {
        int32_t error = -1;
        CHECK_EQUAL(40, capture_export_send(sink.source, block, messages + first, 40, &error));
        CHECK_EQUAL(0, error);
        for (uint32_t i = first; i < first + 40; i++)
            expect(sink.socket, i);
    }
    close_sink(sink);
}

static void messages_of_one_length_arrive_one_a_datagram(void) {
    lay_out(same);
    all_arrive_in_order(AF_INET);
}

static void messages_of_different_lengths_arrive_as_they_are(void) {
    lay_out(mixed);
    all_arrive_in_order(AF_INET);
    lay_out(falling);
    all_arrive_in_order(AF_INET);
}

static void ipv6_takes_them_too(void) {
    lay_out(mixed);
    int probe = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    if (probe < 0 || bind(probe, (struct sockaddr *)&address, sizeof(address)) != 0) {
        printf("skipped - no IPv6 on loopback\n");
        return;
    }
    close(probe);
    all_arrive_in_order(AF_INET6);
}

static void a_socket_that_is_not_udp_gets_every_message_by_itself(void) {
    lay_out(same);
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, ends) == 0);
    int32_t error;
    int sent = capture_export_send(ends[0], block, messages, 5, &error);
    CHECK_EQUAL(5, sent);
    for (uint32_t i = 0; i < 5; i++)
        expect(ends[1], i);
    close(ends[0]);
    close(ends[1]);
}

static void what_would_block_is_not_counted_and_leaves_later(void) {
    lay_out(same);
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, ends) == 0);
    uint32_t sent = 0, read = 0;
    bool blocked = false;
    while (read < MESSAGES) {
        int32_t error;
        int left = capture_export_send(ends[0], block, messages + sent, MESSAGES - sent, &error);
        CHECK(left >= 0);
        sent += (uint32_t)left;
        if (sent < MESSAGES) {
            CHECK_EQUAL(EAGAIN, error);
            blocked = true;
        }
        for (uint32_t i = 0; i < 3 && read < sent; i++)
            expect(ends[1], read++);
    }
    CHECK(blocked);
    close(ends[0]);
    close(ends[1]);
}

static void a_refusal_of_an_earlier_message_is_an_error_and_the_next_call_sends(void) {
    lay_out(same);
    struct sink sink = open_sink(AF_INET);
    close(sink.socket);
    int32_t error;
    CHECK_EQUAL(1, capture_export_send(sink.source, block, messages, 1, &error));
    CHECK_EQUAL(CAPTURE_ERR_IO, capture_export_send(sink.source, block, messages + 1, 1, &error));
    CHECK_EQUAL(ECONNREFUSED, error);
    CHECK_EQUAL(1, capture_export_send(sink.source, block, messages + 1, 1, &error));
    close(sink.source);
}

static void a_message_that_is_too_long_stops_those_behind_it(void) {
    lay_out(same);
    struct sink sink = open_sink(AF_INET);
    messages[3].offset = 0;
    messages[3].length = 65535; /* more than a UDP datagram over IPv4 holds */
    int32_t error;
    CHECK_EQUAL(3, capture_export_send(sink.source, block, messages, 5, &error));
    CHECK_EQUAL(EMSGSIZE, error);
    CHECK_EQUAL(CAPTURE_ERR_IO, capture_export_send(sink.source, block, messages + 3, 2, &error));
    CHECK_EQUAL(EMSGSIZE, error);
    for (uint32_t i = 0; i < 3; i++)
        expect(sink.socket, i);
    close_sink(sink);
}

/* Runs need a checksum that the device makes; without one (SO_NO_CHECK) the kernel refuses them and takes single messages. */
static void where_runs_are_refused_every_message_leaves_by_itself(void) {
    lay_out(mixed);
    struct sink sink = open_sink(AF_INET);
    int on = 1;
    CHECK(setsockopt(sink.source, SOL_SOCKET, SO_NO_CHECK, &on, sizeof(on)) == 0);
    int32_t error = -1;
    CHECK_EQUAL(40, capture_export_send(sink.source, block, messages, 40, &error));
    CHECK_EQUAL(0, error);
    for (uint32_t i = 0; i < 40; i++)
        expect(sink.socket, i);
    close_sink(sink);
}

static void arguments_that_cannot_be_are_refused(void) {
    int32_t error = 0;
    CHECK_EQUAL(0, capture_export_send(-1, NULL, NULL, 0, &error));
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_export_send(-1, NULL, messages, 1, &error));
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_export_send(-1, block, messages, 1, NULL));
    CHECK_EQUAL(CAPTURE_ERR_IO, capture_export_send(-1, block, messages, 1, &error));
    CHECK_EQUAL(EBADF, error);
}

int main(void) {
    RUN(messages_of_one_length_arrive_one_a_datagram);
    RUN(messages_of_different_lengths_arrive_as_they_are);
    RUN(ipv6_takes_them_too);
    RUN(a_socket_that_is_not_udp_gets_every_message_by_itself);
    RUN(what_would_block_is_not_counted_and_leaves_later);
    RUN(a_refusal_of_an_earlier_message_is_an_error_and_the_next_call_sends);
    RUN(a_message_that_is_too_long_stops_those_behind_it);
    RUN(where_runs_are_refused_every_message_leaves_by_itself);
    RUN(arguments_that_cannot_be_are_refused);
    return 0;
}
