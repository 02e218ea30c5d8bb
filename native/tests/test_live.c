/* SPDX-License-Identifier: Apache-2.0 */
/* Live captures on the loopback interface of a network namespace of their own; skipped, saying so, without the right to make one.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "balance.h"
#include "check.h"
#include "frames.h"
#include "jarvis_capture.h"
#include "stream_message.h"

enum { SENT = 200 };

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

/* False: not allowed here. */
static bool enter_namespace(void) {
    if (unshare(CLONE_NEWNET) != 0)
        return false;
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int control = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK_EQUAL(0, ioctl(control, SIOCSIFFLAGS, &request));
    close(control);
    return true;
}

static void send_datagrams(uint16_t port, int count) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int sender = socket(AF_INET, SOCK_DGRAM, 0), receiver = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK_EQUAL(0, bind(receiver, (struct sockaddr *)&to, sizeof(to)));
    for (int i = 0; i < count; i++)
        CHECK_EQUAL(100,
                    sendto(sender,
                           "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789",
                           100, 0, (struct sockaddr *)&to, sizeof(to)));
    close(sender);
    close(receiver);
}

static capture_t *capture_loopback(const char *backend, uint32_t workers, uint64_t idle_s) {
    struct capture_config config = {
        .struct_size = sizeof(config), .interface = "lo", .backend = backend, .workers = workers, .filter = "udp and ip"};
    struct capture_flow_config flow_config = {
        .struct_size = sizeof(flow_config), .max_flows = 8192, .idle_timeout_ns = idle_s * SECOND};
    struct capture_error_info error = {0};
    capture_t *capture;
    int code = capture_init(&config, &capture, &error);
    if (code == CAPTURE_OK)
        code = capture_flow_enable(capture, &flow_config, &error);
    if (code == CAPTURE_OK)
        code = capture_start(capture, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", error.field, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return capture;
}

/* What is sent is on the wire once or twice (out and in), by backend; never half a packet. */
static void check_metered(const struct capture_stats *stats) {
    CHECK(stats->metered == SENT || stats->metered == 2 * SENT);
    CHECK_EQUAL(stats->metered * 128, stats->metered_octets);
    CHECK_EQUAL(0, stats->dropped_kernel + stats->dropped_user + stats->malformed);
}

static void a_graceful_stop_counts_everything_sent(const char *backend, uint32_t workers) {
    capture_t *capture = capture_loopback(backend, workers, 30);
    send_datagrams(5300, SENT);
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    struct capture_stats stats = stats_of(capture);
    check_metered(&stats);
    CHECK_EQUAL(0, stats.in_flight);
    CHECK_EQUAL(stats.flows_total, stats.flows_ended[CAPTURE_FLOW_END_FORCED]);
    CHECK_EQUAL(0, stats.flows_active);
    capture_destroy(capture);
    printf("ok - a_graceful_stop_counts_everything_sent(%s, %u)\n", backend, workers);
}

static void on_a_quiet_link_flows_end_by_the_clock(const char *backend, uint32_t workers) {
    capture_t *capture = capture_loopback(backend, workers, 1);
    uint64_t sent = now_ns();
    send_datagrams(5301, SENT);
    while (stats_of(capture).flows_ended[CAPTURE_FLOW_END_IDLE] == 0) {
        CHECK_EQUAL(1, capture_poll(capture, 50));
        CHECK(now_ns() - sent < 3ull * SECOND);
    }
    CHECK(now_ns() - sent >= SECOND);
    capture_stop(capture, false);
    struct capture_stats stats = stats_of(capture);
    check_metered(&stats);
    CHECK_EQUAL(0, stats.flows_active);
    capture_destroy(capture);
    printf("ok - on_a_quiet_link_flows_end_by_the_clock(%s, %u)\n", backend, workers);
}

/* Many flows over two workers: each record once, over a reconnect in between. */
static void a_token_of_two_workers_resumes_in_both(void) {
    capture_t *capture = capture_loopback("afpacket", 2, 30);
    for (int i = 0; i < SENT; i++)
        send_datagrams((uint16_t)(6000 + i), 1);
    capture_stop(capture, true);
    uint64_t flows = stats_of(capture).flows_total, records = 0;
    uint32_t shards = 0;
    CHECK(flows >= SENT);
    struct capture_reader_config config = {.struct_size = sizeof(config)};
    struct capture_batch_info info;
    uint8_t buffer[8192], token[24];
    do {
        capture_flow_reader_t *reader;
        CHECK_EQUAL(CAPTURE_OK, capture_reader_open(capture, &config, &reader, NULL));
        CHECK(capture_reader_read_batch(reader, buffer, sizeof(buffer), 7, &info) > 0);
        CHECK_EQUAL(0, info.lost);
        records += info.records;
        shards |= 1u << info.shard;
        uint32_t length;
        const uint8_t *found = token_of(buffer, &length);
        CHECK_EQUAL(sizeof(token), length);
        memcpy(token, found, sizeof(token));
        config = (struct capture_reader_config){
            .struct_size = sizeof(config), .start = CAPTURE_READER_TOKEN, .token = token, .token_length = sizeof(token)};
        capture_reader_close(reader);
    } while (!info.end);
    CHECK_EQUAL(flows, records);
    CHECK_EQUAL(3, shards);
    capture_destroy(capture);
}

enum { MANY_FLOWS = 100000 };

/* Ethernet frames of MANY_FLOWS UDP flows, one each, straight onto the loopback interface. */
static void send_many_flows(void) {
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex("lo"), .sll_halen = 6};
    int sender = socket(AF_PACKET, SOCK_RAW, 0);
    CHECK(sender >= 0);
    for (uint32_t flow = 0; flow < MANY_FLOWS; flow++) {
        struct bytes frame = {0};
        add_ethernet(&frame, 0x0800);
        add_ipv4(&frame, 0x0a000000 + flow, 0xac100001, 17, 8, flow, 0);
        add_udp(&frame, 4000, 53, 0);
        while (sendto(sender, frame.data, frame.length, 0, (struct sockaddr *)&to, sizeof(to)) < 0)
            CHECK_EQUAL(ENOBUFS, errno);
    }
    close(sender);
}

static void however_many_flows_a_quiet_link_leaves_they_all_end(void) {
    struct capture_config config = {.struct_size = sizeof(config), .interface = "lo", .backend = "afpacket", .workers = 1};
    struct capture_flow_config flow_config = {.struct_size = sizeof(flow_config), .idle_timeout_ns = SECOND};
    capture_t *capture;
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, NULL));
    CHECK_EQUAL(CAPTURE_OK, capture_flow_enable(capture, &flow_config, NULL));
    CHECK_EQUAL(CAPTURE_OK, capture_start(capture, NULL));
    send_many_flows();
    uint64_t sent = now_ns();
    while (stats_of(capture).flows_total < MANY_FLOWS || stats_of(capture).flows_active) {
        CHECK(now_ns() - sent < 30ull * SECOND); /* idle after 1 s and gone soon after, but the machine may be busy */
        usleep(10000);
    }
    capture_destroy(capture);
}

static void a_live_capture_refuses_a_lossless_reader(void) {
    capture_t *capture = capture_loopback("auto", 1, 1);
    struct capture_reader_config config = {.struct_size = sizeof(config), .lossless = true};
    struct capture_error_info error;
    capture_flow_reader_t *reader;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_reader_open(capture, &config, &reader, &error));
    CHECK_TEXT("lossless", error.field);
    capture_destroy(capture);
}

int main(void) {
    if (!enter_namespace()) {
        printf("skipped: a network namespace cannot be made: %s\n", strerror(errno));
        return 0;
    }
    for (uint32_t workers = 0; workers <= 2; workers++) {
        a_graceful_stop_counts_everything_sent("afpacket", workers);
        on_a_quiet_link_flows_end_by_the_clock("afpacket", workers);
    }
    for (uint32_t workers = 0; workers <= 1; workers++) {
        a_graceful_stop_counts_everything_sent("pcap", workers);
        on_a_quiet_link_flows_end_by_the_clock("pcap", workers);
    }
    RUN(a_token_of_two_workers_resumes_in_both);
    RUN(however_many_flows_a_quiet_link_leaves_they_all_end);
    RUN(a_live_capture_refuses_a_lossless_reader);
    return 0;
}
