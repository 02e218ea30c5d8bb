/* SPDX-License-Identifier: Apache-2.0 */
/* The live backends on a veth pair and the loopback of a network namespace of this test's own. Needs root and iproute2; else skips. */
#include "backend/backend.h"
#include "check.h"
#include "filter.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SKIPPED = 77, ONE_BLOCK_MS = 250, DRAIN_MS = 150 };

static const struct capture_backend_ops *const live_backends[] = {&afpacket_backend, &pcap_backend};

static void run(const char *command) {
    int result = system(command);
    if (result != 0)
        fprintf(stderr, "failed: %s\n", command);
    CHECK_EQUAL(0, result);
}

static uint64_t now_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static struct capture_config config_for(const char *interface) {
    return (struct capture_config){.struct_size = sizeof(struct capture_config), .interface = interface};
}

static void *open_backend(const struct capture_backend_ops *ops, const struct capture_config *config) {
    void *state = NULL;
    struct capture_error_info error = {0};
    int code = ops->open(config, 0, 1, &state, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", ops->name, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return state;
}

static int sender_on(const char *interface) {
    int sender = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(interface)};
    CHECK(sender >= 0);
    CHECK_EQUAL(0, bind(sender, (const struct sockaddr *)&address, sizeof address));
    return sender;
}

/* An Ethernet frame of `length` bytes with a UDP packet from port `from` to port `to` in it, tagged if tag >= 0. */
static size_t make_frame(uint8_t *room, size_t length, uint16_t from, uint16_t to, int tag) {
    memset(room, 0, length);
    memset(room, 0xff, 6);
    room[6] = 2;
    uint8_t *at = room + 12;
    if (tag >= 0) {
        memcpy(at, (const uint8_t[]){0x81, 0, (uint8_t)(tag >> 8), (uint8_t)tag}, 4);
        at += 4;
    }
    size_t ip_length = length - (size_t)(at + 2 - room);
    memcpy(at, (const uint8_t[]){8, 0, 0x45, 0, (uint8_t)(ip_length >> 8), (uint8_t)ip_length, 0, 0, 0, 0, 64, 17}, 12);
    memcpy(at + 14, (const uint8_t[]){10, 9, 0, from < to ? 1 : 2, 10, 9, 0, from < to ? 2 : 1}, 8);
    memcpy(at + 22, (const uint8_t[]){(uint8_t)(from >> 8), (uint8_t)from, (uint8_t)(to >> 8), (uint8_t)to}, 4);
    memcpy(at + 26, (const uint8_t[]){(uint8_t)((ip_length - 20) >> 8), (uint8_t)(ip_length - 20)}, 2);
    return length;
}

static void send_frame(int sender, size_t length, uint16_t from, uint16_t to, int tag) {
    static uint8_t room[16384];
    make_frame(room, length, from, to, tag);
    ssize_t sent;
    while ((sent = send(sender, room, length, 0)) < 0 && errno == ENOBUFS)
        usleep(100);
    CHECK_EQUAL(length, sent);
}

/* Reads until nothing came for DRAIN_MS. Calls `look` for each frame. Returns the count. */
static uint64_t drain(const struct capture_backend_ops *ops, void *state, void (*look)(const struct frame *frame, void *context),
                      void *context) {
    struct frame_batch batch;
    struct capture_error_info error = {0};
    uint64_t total = 0;
    int count;
    while ((count = ops->read(state, &batch, DRAIN_MS, &error)) > 0) {
        CHECK_EQUAL(count, batch.count);
        for (int i = 0; look && i < count; i++)
            look(&batch.frames[i], context);
        total += (uint64_t)count;
        ops->release(state);
    }
    if (count < 0)
        fprintf(stderr, "%s: %s\n", ops->name, error.message);
    CHECK_EQUAL(0, count);
    return total;
}

struct order {
    uint64_t frames, last_ts_ns;
    uint16_t next_port;
};

static void check_order(const struct frame *frame, void *context) {
    struct order *order = context;
    uint8_t expected[100];
    make_frame(expected, 100, order->next_port++, 9, -1);
    CHECK_EQUAL(100, frame->caplen);
    CHECK_EQUAL(100, frame->wirelen);
    CHECK_EQUAL(1, frame->link_type);
    CHECK_EQUAL(if_nametoindex("jarvis0"), frame->interface_index);
    CHECK_EQUAL(0, frame->flags);
    CHECK(memcmp(expected, frame->data, 100) == 0);
    CHECK(frame->ts_ns >= order->last_ts_ns);
    order->last_ts_ns = frame->ts_ns;
    order->frames++;
}

static void every_frame_arrives_once_whole_and_in_order(void) {
    for (int i = 0; i < 2; i++) {
        const struct capture_backend_ops *ops = live_backends[i];
        struct capture_config config = config_for("jarvis0");
        void *state = open_backend(ops, &config);
        int sender = sender_on("jarvis1");
        uint64_t before = now_ns(CLOCK_REALTIME);
        struct order order = {.next_port = 1000, .last_ts_ns = before};
        for (uint16_t port = 1000; port < 11000; port++)
            send_frame(sender, 100, port, 9, -1);
        CHECK_EQUAL(10000, drain(ops, state, check_order, &order));
        CHECK_EQUAL(10000, order.frames);
        CHECK(order.last_ts_ns <= now_ns(CLOCK_REALTIME));
        struct backend_stats stats;
        ops->stats(state, &stats);
        CHECK_EQUAL(0, stats.dropped_kernel);
        CHECK_EQUAL(0, stats.dropped_nic);
        CHECK_EQUAL(0, stats.in_flight);
        close(sender);
        ops->close(state);
    }
}

static void a_single_frame_on_a_quiet_link_is_delivered_soon(void) {
    for (int i = 0; i < 2; i++) {
        const struct capture_backend_ops *ops = live_backends[i];
        struct capture_config config = config_for("jarvis0");
        void *state = open_backend(ops, &config);
        int sender = sender_on("jarvis1");
        struct frame_batch batch;
        uint64_t slowest = 0;
        for (int turn = 0; turn < 5; turn++) {
            CHECK_EQUAL(0, ops->read(state, &batch, 0, NULL));
            uint64_t sent = now_ns(CLOCK_MONOTONIC);
            send_frame(sender, 60, 1, 2, -1);
            int count = 0;
            while (count == 0 && now_ns(CLOCK_MONOTONIC) - sent < 2000000000u)
                count = ops->read(state, &batch, 1000, NULL);
            uint64_t delay = now_ns(CLOCK_MONOTONIC) - sent;
            CHECK_EQUAL(1, count);
            ops->release(state);
            slowest = delay > slowest ? delay : slowest;
        }
        printf("#   %s: at most %.1f ms\n", ops->name, (double)slowest / 1e6);
        CHECK(slowest < ONE_BLOCK_MS * UINT64_C(1000000)); /* 100 ms are meant; the machine may be busy */
        close(sender);
        ops->close(state);
    }
}

static void a_read_waits_no_longer_than_its_timeout(void) {
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("jarvis0");
        void *state = open_backend(live_backends[i], &config);
        struct frame_batch batch;
        uint64_t start = now_ns(CLOCK_MONOTONIC);
        CHECK_EQUAL(0, live_backends[i]->read(state, &batch, 120, NULL));
        uint64_t waited = now_ns(CLOCK_MONOTONIC) - start;
        CHECK(waited >= 100000000 && waited < 1000000000);
        live_backends[i]->close(state);
    }
}

static void frames_that_this_host_sends_are_captured_too(void) {
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("jarvis0");
        void *state = open_backend(live_backends[i], &config);
        int sender = sender_on("jarvis0");
        for (int j = 0; j < 10; j++)
            send_frame(sender, 60, 1, 2, -1);
        CHECK_EQUAL(10, drain(live_backends[i], state, NULL, NULL));
        close(sender);
        live_backends[i]->close(state);
    }
}

static void check_tag(const struct frame *frame, void *context) {
    const char *const yes[] = {"vlan 5 and udp", "vlan and dst port 2"}, *const no[] = {"vlan 6", "udp"};
    for (int i = 0; i < 4; i++) {
        struct frame_filter *filter;
        CHECK_EQUAL(CAPTURE_OK, frame_filter_compile(i < 2 ? yes[i] : no[i - 2], 0, &filter, NULL));
        CHECK_EQUAL(i < 2, frame_filter_match(filter, frame));
        frame_filter_free(filter);
    }
    if (context == &afpacket_backend) {
        CHECK_EQUAL(FRAME_VLAN, frame->flags);
        CHECK_EQUAL(3 << 13 | 5, frame->vlan_tci); /* priority included */
    } else {
        CHECK_EQUAL(0, frame->flags);
        CHECK(frame->data[12] == 0x81 && frame->data[15] == 5);
    }
}

static void vlan_tags_filter_alike_whether_the_kernel_took_them_off_or_not(void) {
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("jarvis0");
        void *state = open_backend(live_backends[i], &config);
        int sender = sender_on("jarvis1");
        for (int j = 0; j < 10; j++)
            send_frame(sender, 100, 1, 2, 3 << 13 | 5);
        CHECK_EQUAL(10, drain(live_backends[i], state, check_tag, (void *)(uintptr_t)live_backends[i]));
        close(sender);
        live_backends[i]->close(state);
    }
}

static void check_cut(const struct frame *frame, void *context) {
    (void)context;
    CHECK_EQUAL(64, frame->caplen);
    CHECK_EQUAL(1000, frame->wirelen);
    CHECK_EQUAL(FRAME_TRUNCATED, frame->flags);
}

static void frames_longer_than_snaplen_are_cut_and_marked(void) {
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("jarvis0");
        config.snaplen = 64;
        config.promiscuous = true;
        void *state = open_backend(live_backends[i], &config);
        int sender = sender_on("jarvis1");
        for (int j = 0; j < 10; j++)
            send_frame(sender, 1000, 1, 2, -1);
        CHECK_EQUAL(10, drain(live_backends[i], state, check_cut, NULL));
        close(sender);
        live_backends[i]->close(state);
    }
}

static void a_frame_on_the_loopback_is_seen_once(void) {
    int receiver = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), sender = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(4000)};
    CHECK_EQUAL(0, bind(receiver, (const struct sockaddr *)&address, sizeof address));
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("lo");
        void *state = open_backend(live_backends[i], &config);
        for (int j = 0; j < 25; j++)
            CHECK_EQUAL(5, sendto(sender, "hello", 5, 0, (const struct sockaddr *)&address, sizeof address));
        CHECK_EQUAL(25, drain(live_backends[i], state, NULL, NULL));
        struct backend_stats stats;
        live_backends[i]->stats(state, &stats);
        CHECK_EQUAL(0, stats.in_flight);
        live_backends[i]->close(state);
    }
    close(receiver);
    close(sender);
}

/* Sends more than the ring holds before reading: what arrived and what the kernel says it dropped must add up to what was sent. */
static void every_frame_is_either_delivered_or_counted_as_dropped(void) {
    enum { SENT = 12000 };
    for (int i = 0; i < 2; i++) {
        const struct capture_backend_ops *ops = live_backends[i];
        struct capture_config config = config_for("jarvis0");
        void *state = open_backend(ops, &config);
        int sender = sender_on("jarvis1");
        struct backend_stats full, stats;
        for (int j = 0; j < SENT; j++)
            send_frame(sender, 9000, 1, 2, -1);
        ops->stats(state, &full);
        ops->quiesce(state);
        uint64_t delivered = drain(ops, state, NULL, NULL);
        ops->stats(state, &stats);
        printf("#   %s: %" PRIu64 " delivered, %" PRIu64 " dropped, ring %.0f %% full\n", ops->name, delivered, stats.dropped_kernel,
               100 * full.ring_usage);
        CHECK_EQUAL(SENT, delivered + stats.dropped_kernel);
        CHECK(delivered > 1000 && stats.dropped_kernel > 1000);
        CHECK_EQUAL(0, stats.in_flight);
        if (ops == &afpacket_backend) {
            CHECK(full.ring_usage > 0.9);
            CHECK_EQUAL(SENT, full.in_flight + full.dropped_kernel);
            CHECK(stats.ring_usage < 0.1);
        }
        close(sender);
        ops->close(state);
    }
}

static void after_quiesce_the_ring_is_read_out_and_nothing_new_comes_in(void) {
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("jarvis0");
        void *state = open_backend(live_backends[i], &config);
        int sender = sender_on("jarvis1");
        for (int j = 0; j < 100; j++)
            send_frame(sender, 60, 1, 2, -1);
        live_backends[i]->quiesce(state);
        for (int j = 0; j < 100; j++)
            send_frame(sender, 60, 1, 2, -1);
        CHECK_EQUAL(100, drain(live_backends[i], state, NULL, NULL));
        struct backend_stats stats;
        live_backends[i]->stats(state, &stats);
        CHECK_EQUAL(0, stats.dropped_kernel);
        CHECK_EQUAL(0, stats.in_flight);
        close(sender);
        live_backends[i]->close(state);
    }
}

enum { QUEUES = 3, FLOWS = 300 };
struct split {
    int queue;
    uint8_t queue_of[FLOWS]; /* + 1 */
    uint32_t frames[QUEUES];
};

static void note_queue(const struct frame *frame, void *context) {
    struct split *split = context;
    uint16_t from = (uint16_t)(frame->data[34] << 8 | frame->data[35]), to = (uint16_t)(frame->data[36] << 8 | frame->data[37]);
    uint32_t flow = (from < to ? from : to) - 1000u;
    CHECK(flow < FLOWS);
    CHECK(split->queue_of[flow] == 0 || split->queue_of[flow] == split->queue + 1);
    split->queue_of[flow] = (uint8_t)(split->queue + 1);
    split->frames[split->queue]++;
}

static void queues_share_the_frames_and_a_flow_stays_in_its_queue(void) {
    struct capture_config config = config_for("jarvis0");
    config.workers = QUEUES;
    void *states[QUEUES];
    for (uint32_t queue = 0; queue < QUEUES; queue++)
        CHECK_EQUAL(CAPTURE_OK, afpacket_backend.open(&config, queue, QUEUES, &states[queue], NULL));
    int sender = sender_on("jarvis1");
    for (int turn = 0; turn < 4; turn++)
        for (uint16_t flow = 0; flow < FLOWS; flow++)
            send_frame(sender, 100, turn % 2 ? 1000 + flow : 30000, turn % 2 ? 30000 : 1000 + flow, -1); /* both directions */
    static struct split split;
    uint64_t total = 0;
    for (split.queue = 0; split.queue < QUEUES; split.queue++)
        total += drain(&afpacket_backend, states[split.queue], note_queue, &split);
    CHECK_EQUAL(4 * FLOWS, total);
    for (int queue = 0; queue < QUEUES; queue++) {
        struct backend_stats stats;
        afpacket_backend.stats(states[queue], &stats);
        CHECK(split.frames[queue] > 0);
        CHECK_EQUAL(0, stats.in_flight + stats.dropped_kernel);
        afpacket_backend.close(states[queue]);
    }
    close(sender);
}

static void two_captures_of_one_interface_do_not_take_each_others_frames(void) {
    struct capture_config configs[2] = {config_for("jarvis0"), config_for("jarvis0")};
    void *states[2][2];
    for (int i = 0; i < 2; i++)
        for (uint32_t queue = 0; queue < 2; queue++)
            CHECK_EQUAL(CAPTURE_OK, afpacket_backend.open(&configs[i], queue, 2, &states[i][queue], NULL));
    int sender = sender_on("jarvis1");
    for (uint16_t port = 1; port <= 100; port++)
        send_frame(sender, 60, port, 500, -1);
    for (int i = 0; i < 2; i++)
        CHECK_EQUAL(100, drain(&afpacket_backend, states[i][0], NULL, NULL) + drain(&afpacket_backend, states[i][1], NULL, NULL));
    for (int i = 0; i < 4; i++)
        afpacket_backend.close(states[i / 2][i % 2]);
    close(sender);
}

static void check_refused(const struct capture_backend_ops *ops, const struct capture_config *config, int code, const char *field,
                          const char *message) {
    struct capture_error_info error = {0};
    void *state;
    CHECK_EQUAL(code, ops->open(config, 0, 1, &state, &error));
    CHECK_TEXT(field, error.field);
    if (!strstr(error.message, message))
        fprintf(stderr, "%s: %s\n", ops->name, error.message);
    CHECK(strstr(error.message, message) != NULL);
}

static void what_an_interface_does_not_have_is_refused_by_name(void) {
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("jarvis0");
        config.timestamp_source = CAPTURE_TIMESTAMP_HARDWARE;
        check_refused(live_backends[i], &config, CAPTURE_ERR_INVALID, "timestamp_source", "no hardware timestamps");
        config = config_for("nosuch0");
        check_refused(live_backends[i], &config, CAPTURE_ERR_NO_INTERFACE, "interface", "interface nosuch0 does not exist");
        config = config_for("jarvisdown");
        check_refused(live_backends[i], &config, CAPTURE_ERR_IO, "interface", "interface jarvisdown is down");
    }
    struct capture_config config = config_for("jarvis0");
    config.buffer_size_mb = 8192;
    check_refused(&pcap_backend, &config, CAPTURE_ERR_INVALID, "buffer_size_mb", "with backend pcap accepted are 64 to 2047");
}

static void auto_takes_afpacket_where_it_can_and_pcap_where_not(void) {
    char name[16];
    struct capture_config config = config_for("jarvis0");
    CHECK_EQUAL(CAPTURE_OK, capture_select_backend(&config, name, NULL));
    CHECK_TEXT("afpacket", name);
    config = config_for("any");
    CHECK_EQUAL(CAPTURE_OK, capture_select_backend(&config, name, NULL));
    CHECK_TEXT("pcap", name);
    void *state = open_backend(&pcap_backend, &config);
    int sender = sender_on("jarvis1");
    send_frame(sender, 60, 1, 2, -1);
    CHECK_EQUAL(2, drain(&pcap_backend, state, NULL, NULL)); /* out of one end, into the other */
    close(sender);
    pcap_backend.close(state);
    config.workers = 2;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_select_backend(&config, name, NULL));
}

static void without_cap_net_raw_the_error_says_so(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        CHECK_EQUAL(0, setuid(65534));
        struct capture_config config = config_for("jarvis0");
        struct capture_error_info error = {0};
        char name[16];
        CHECK_EQUAL(CAPTURE_ERR_PERMISSION, capture_select_backend(&config, name, &error));
        CHECK(strstr(error.message, "afpacket: CAP_NET_RAW is missing; pcap: CAP_NET_RAW is missing") != NULL);
        struct capture_backend_info backends[3];
        CHECK_EQUAL(3, capture_get_backends("jarvis0", backends, 3));
        CHECK(!backends[0].usable && !backends[1].usable);
        void *state;
        CHECK_EQUAL(CAPTURE_ERR_PERMISSION, afpacket_backend.open(&config, 0, 1, &state, NULL));
        CHECK_EQUAL(CAPTURE_ERR_PERMISSION, pcap_backend.open(&config, 0, 1, &state, NULL));
        _exit(0);
    }
    int status;
    CHECK_EQUAL(child, waitpid(child, &status, 0));
    CHECK_EQUAL(0, status);
}

static void check_raw(const struct frame *frame, void *context) {
    (void)context;
    CHECK_EQUAL(101, frame->link_type);
    CHECK_EQUAL(0x45, frame->data[0]);
}

static void a_tun_interface_gives_raw_ip(void) {
    int tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (tun < 0) {
        printf("#   left out, /dev/net/tun: %s\n", strerror(errno));
        return;
    }
    struct ifreq request = {.ifr_name = "jarvistun", .ifr_flags = IFF_TUN | IFF_NO_PI};
    CHECK_EQUAL(0, ioctl(tun, TUNSETIFF, &request));
    run("ip link set jarvistun up");
    uint8_t packet[28] = {0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 8};
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("jarvistun");
        void *state = open_backend(live_backends[i], &config);
        CHECK_EQUAL(sizeof packet, write(tun, packet, sizeof packet));
        CHECK_EQUAL(1, drain(live_backends[i], state, check_raw, NULL));
        live_backends[i]->close(state);
    }
    close(tun);
}

/* The error may come once what the ring held was read. */
static void check_failure(const struct capture_backend_ops *ops, void *state, const char *word) {
    struct frame_batch batch;
    struct capture_error_info error = {0};
    int count = 0;
    for (int turn = 0; turn < 50 && count >= 0; turn++) {
        count = ops->read(state, &batch, 100, &error);
        ops->release(state);
    }
    CHECK_EQUAL(CAPTURE_ERR_IO, count);
    printf("#   %s: %s\n", ops->name, error.message);
    CHECK(strstr(error.message, word) != NULL);
    struct backend_stats stats;
    ops->stats(state, &stats);
}

static void an_interface_that_goes_down_or_away_is_an_error(void) {
    for (int i = 0; i < 2; i++) {
        run("ip link add jarvis2 type veth peer name jarvis3 && ip link set jarvis2 up && ip link set jarvis3 up");
        struct capture_config config = config_for("jarvis2");
        void *state = open_backend(live_backends[i], &config);
        run("ip link set jarvis2 down");
        check_failure(live_backends[i], state, "down");
        live_backends[i]->close(state);
        run("ip link set jarvis2 up");
        state = open_backend(live_backends[i], &config);
        run("ip link del jarvis2");
        check_failure(live_backends[i], state, "interface");
        live_backends[i]->close(state);
    }
}

/* The reason this test cannot run here, or NULL with the namespace made. */
static const char *enter_namespace(void) {
    if (geteuid() != 0)
        return "not root";
    if (system("ip -V > /dev/null 2>&1") != 0)
        return "iproute2 is missing";
    if (unshare(CLONE_NEWNET) != 0)
        return strerror(errno);
    if (system("ip link add jarvis0 mtu 9000 type veth peer name jarvis1 mtu 9000") != 0)
        return "a veth pair cannot be made";
    return NULL;
}

int main(void) {
    const char *obstacle = enter_namespace();
    if (obstacle) {
        printf("skipped: live capture needs a network namespace: %s\n", obstacle);
        return SKIPPED;
    }
    run("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"); /* no neighbour discovery among the frames that are counted */
    run("ip link add jarvisdown type veth peer name jarvisdown1");
    run("ip link set lo up && ip link set jarvis0 up && ip link set jarvis1 up");
    RUN(every_frame_arrives_once_whole_and_in_order);
    RUN(a_single_frame_on_a_quiet_link_is_delivered_soon);
    RUN(a_read_waits_no_longer_than_its_timeout);
    RUN(frames_that_this_host_sends_are_captured_too);
    RUN(vlan_tags_filter_alike_whether_the_kernel_took_them_off_or_not);
    RUN(frames_longer_than_snaplen_are_cut_and_marked);
    RUN(a_frame_on_the_loopback_is_seen_once);
    RUN(every_frame_is_either_delivered_or_counted_as_dropped);
    RUN(after_quiesce_the_ring_is_read_out_and_nothing_new_comes_in);
    RUN(queues_share_the_frames_and_a_flow_stays_in_its_queue);
    RUN(two_captures_of_one_interface_do_not_take_each_others_frames);
    RUN(what_an_interface_does_not_have_is_refused_by_name);
    RUN(auto_takes_afpacket_where_it_can_and_pcap_where_not);
    RUN(without_cap_net_raw_the_error_says_so);
    RUN(a_tun_interface_gives_raw_ip);
    RUN(an_interface_that_goes_down_or_away_is_an_error);
    return 0;
}
