/* SPDX-License-Identifier: Apache-2.0 */
/* Captures of several interfaces in a network namespace of their own: veth pairs jarvisN - peerN. */
#include "balance.h"
#include "jarvis_capture.h"
#include "live_link.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <pthread.h>

enum { PAIRS = 3, BURST = 500, PATIENCE_MS = 10000, FRAME_BYTES = 100, IP_BYTES = FRAME_BYTES - 14 };

static int senders[PAIRS];

static void make_pair(int number) {
    char command[256];
    snprintf(command, sizeof command,
             "ip link add jarvisn%d type veth peer name peer%d && ip link set jarvisn%d up && ip link set peer%d up", number,
             number, number, number);
    run(command);
    char peer[16];
    snprintf(peer, sizeof peer, "peer%d", number);
    senders[number] = sender_on(peer);
    await_running(peer);
}

static capture_t *capture_of(const char *const *interfaces, uint32_t count, const char *backend, uint32_t workers, bool merge) {
    struct capture_config config = {.struct_size = sizeof config,
                                    .interfaces = interfaces,
                                    .interface_count = count,
                                    .backend = backend,
                                    .workers = workers,
                                    .filter = "udp"};
    struct capture_flow_config flows = {.struct_size = sizeof flows, .max_flows = 8192, .merge_interfaces = merge};
    struct capture_error_info error = {0};
    capture_t *capture = NULL;
    int code = capture_init(&config, &capture, &error);
    if (code == CAPTURE_OK)
        code = capture_flow_enable(capture, &flows, &error);
    if (code == CAPTURE_OK)
        code = capture_start(capture, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", error.field, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return capture;
}

static void send_burst(int pair, uint16_t from, uint16_t to, int count) {
    for (int i = 0; i < count; i++)
        send_frame(senders[pair], FRAME_BYTES, from, to, -1);
}

/* Moves the capture on (inline ones need it) until `metered` packets were counted. */
static void await_metered(capture_t *capture, uint64_t metered) {
    uint64_t until = now_ns(CLOCK_MONOTONIC) + PATIENCE_MS * 1000000ull;
    while (stats_of(capture).metered < metered && now_ns(CLOCK_MONOTONIC) < until)
        CHECK_EQUAL(1, capture_poll(capture, 10));
    CHECK_EQUAL(metered, stats_of(capture).metered);
}

static struct capture_interface_info interface_of(capture_t *capture, const char *name) {
    static struct capture_interface_info found[CAPTURE_INTERFACES_MAX];
    int count = capture_get_interfaces(capture, found, CAPTURE_INTERFACES_MAX);
    for (int i = 0; i < count; i++)
        if (strcmp(found[i].name, name) == 0)
            return found[i];
    return (struct capture_interface_info){0};
}

static void await_state(capture_t *capture, const char *name, uint32_t state) {
    uint64_t until = now_ns(CLOCK_MONOTONIC) + PATIENCE_MS * 1000000ull;
    while (interface_of(capture, name).state != state && now_ns(CLOCK_MONOTONIC) < until)
        capture_poll(capture, 10);
    CHECK_EQUAL(state, interface_of(capture, name).state);
}

/* The next event about `interface` after *sequence, which moves on to it. */
static struct capture_event event_about(capture_t *capture, const char *interface, uint64_t *sequence) {
    struct capture_event event = {0};
    while (capture_next_event(capture, *sequence, &event)) {
        *sequence = event.sequence;
        if (strcmp(event.interface, interface) == 0)
            return event;
    }
    fprintf(stderr, "no event about %s\n", interface);
    CHECK(false);
    return event;
}

static int records_of(capture_t *capture, struct capture_flow *flows, int capacity) {
    struct capture_flow_query query = {.limit = (uint32_t)capacity};
    struct capture_error_info error = {0};
    int count = capture_flow_get_all(capture, &query, flows, NULL, &error);
    if (count < 0)
        fprintf(stderr, "%s\n", error.message);
    return count;
}

static void a_flow_on_two_interfaces_is_two_records_or_when_merged_one_that_names_both(const char *backend, uint32_t workers) {
    static const char *const two[] = {"jarvisn0", "jarvisn1"};
    uint16_t first = (uint16_t)if_nametoindex("jarvisn0"), second = (uint16_t)if_nametoindex("jarvisn1");
    for (int merge = 0; merge <= 1; merge++) {
        capture_t *capture = capture_of(two, 2, backend, workers, merge);
        send_burst(0, 1000, 2000, 10);
        await_metered(capture, 10);
        send_burst(1, 2000, 1000, 5); /* the other direction on the other interface */
        await_metered(capture, 15);
        struct capture_flow flows[4];
        CHECK_EQUAL(merge ? 1 : 2, records_of(capture, flows, 4));
        int of_first = flows[0].interface_index == first ? 0 : 1;
        CHECK_EQUAL(first, flows[of_first].interface_index);
        CHECK_EQUAL(10, flows[of_first].fwd_packets);
        CHECK_EQUAL(merge ? 5 : 0, flows[of_first].rev_packets);
        CHECK_EQUAL(merge ? second : 0, flows[of_first].second_interface_index);
        if (!merge) {
            CHECK_EQUAL(second, flows[!of_first].interface_index);
            CHECK_EQUAL(5, flows[!of_first].fwd_packets);
            CHECK_EQUAL(flows[0].flow_id, flows[1].flow_id);
        }
        CHECK_EQUAL(10, interface_of(capture, "jarvisn0").received);
        CHECK_EQUAL(5, interface_of(capture, "jarvisn1").received);
        CHECK_TEXT(backend, interface_of(capture, "jarvisn1").backend);
        CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
        CHECK_EQUAL(0, stats_of(capture).in_flight);
        CHECK_EQUAL(15, stats_of(capture).received);
        capture_destroy(capture);
    }
    printf("ok - a_flow_on_two_interfaces_is_two_records_or_when_merged_one_that_names_both(%s, %u)\n", backend, workers);
}

struct traffic {
    atomic_bool over;
    atomic_ulong sent[PAIRS];
};

static void *send_traffic(void *opaque) {
    struct traffic *traffic = opaque;
    while (!atomic_load(&traffic->over)) {
        for (int pair = 0; pair < PAIRS; pair++) {
            send_burst(pair, 3000, (uint16_t)(4000 + pair), 20);
            atomic_fetch_add(&traffic->sent[pair], 20);
        }
        usleep(1000);
    }
    return NULL;
}

static void move_on(capture_t *capture, uint32_t workers, int turns) {
    for (int i = 0; i < turns; i++) {
        CHECK_EQUAL(1, capture_poll(capture, 5));
        if (workers)
            usleep(2000);
        stats_of(capture);
    }
}

static void interfaces_come_and_go_under_traffic_and_every_packet_is_counted(const char *backend, uint32_t workers) {
    static const char *const one[] = {"jarvisn0"};
    struct traffic traffic = {0};
    struct capture_error_info error = {0};
    pthread_t sender;
    uint64_t sequence = 0;
    capture_t *capture = capture_of(one, 1, backend, workers, false);
    CHECK_EQUAL(0, pthread_create(&sender, NULL, send_traffic, &traffic));
    for (int round = 0; round < 3; round++) {
        CHECK_EQUAL(CAPTURE_OK, capture_add_interface(capture, "jarvisn1", &error));
        CHECK_EQUAL(CAPTURE_EVENT_INTERFACE_ADDED, event_about(capture, "jarvisn1", &sequence).type);
        move_on(capture, workers, 20);
        CHECK(interface_of(capture, "jarvisn1").received > 0);
        CHECK_EQUAL(CAPTURE_OK, capture_remove_interface(capture, "jarvisn1", &error));
        CHECK_EQUAL(CAPTURE_EVENT_INTERFACE_REMOVED, event_about(capture, "jarvisn1", &sequence).type);
        CHECK_EQUAL(1, capture_get_interfaces(capture, NULL, 0));
    }
    CHECK_EQUAL(CAPTURE_OK, capture_add_interface(capture, "jarvisn2", &error));
    CHECK_EQUAL(CAPTURE_OK, capture_remove_interface(capture, "jarvisn0", &error)); /* the first goes, too */
    uint64_t before = stats_of(capture).metered;
    move_on(capture, workers, 10);
    atomic_store(&traffic.over, true);
    pthread_join(sender, NULL);
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    struct capture_stats stats = stats_of(capture);
    CHECK(stats.metered > before);
    CHECK_EQUAL(0, stats.in_flight + stats.dropped_user + stats.dropped_kernel + stats.dropped_nic);
    CHECK_EQUAL(stats.metered * IP_BYTES, stats.metered_octets);
    capture_destroy(capture);
    printf("ok - interfaces_come_and_go_under_traffic_and_every_packet_is_counted(%s, %u)\n", backend, workers);
}

static void what_was_sent_while_an_interface_was_captured_is_counted_exactly(const char *backend, uint32_t workers) {
    static const char *const two[] = {"jarvisn0", "jarvisn1"};
    struct capture_error_info error = {0};
    capture_t *capture = capture_of(two, 2, backend, workers, false);
    send_burst(0, 1, 2, BURST);
    send_burst(1, 1, 2, BURST);
    CHECK_EQUAL(CAPTURE_OK, capture_remove_interface(capture, "jarvisn1", &error)); /* what its ring holds is not lost */
    send_burst(1, 1, 2, BURST);
    CHECK_EQUAL(CAPTURE_OK, capture_add_interface(capture, "jarvisn2", &error));
    send_burst(2, 1, 2, BURST);
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    CHECK_EQUAL(3 * BURST, stats_of(capture).metered);
    CHECK_EQUAL(3 * BURST, stats_of(capture).received);
    CHECK_EQUAL(3, stats_of(capture).flows_total);
    CHECK_EQUAL(BURST, interface_of(capture, "jarvisn0").received);
    CHECK_EQUAL(BURST, interface_of(capture, "jarvisn2").received);
    capture_destroy(capture);
    printf("ok - what_was_sent_while_an_interface_was_captured_is_counted_exactly(%s, %u)\n", backend, workers);
}

static void an_interface_that_goes_down_delivers_again_when_it_is_up(const char *backend, uint32_t workers, uint32_t count) {
    static const char *const two[] = {"jarvisn0", "jarvisn1"};
    uint64_t sequence = 0;
    capture_t *capture = capture_of(two, count, backend, workers, false);
    send_burst(0, 1, 2, BURST);
    await_metered(capture, BURST);
    run("ip link set jarvisn0 down");
    await_state(capture, "jarvisn0", CAPTURE_INTERFACE_DOWN);
    CHECK_TEXT("interface jarvisn0 went down", interface_of(capture, "jarvisn0").error);
    uint64_t metered = BURST;
    if (count > 1) {
        send_burst(1, 1, 2, BURST);
        await_metered(capture, metered += BURST);
    }
    run("ip link set jarvisn0 up");
    await_state(capture, "jarvisn0", CAPTURE_INTERFACE_UP);
    await_running("peer0");
    send_burst(0, 1, 2, BURST);
    await_metered(capture, metered += BURST);
    CHECK_EQUAL(CAPTURE_INTERFACE_DOWN, event_about(capture, "jarvisn0", &sequence).value);
    CHECK_EQUAL(CAPTURE_INTERFACE_UP, event_about(capture, "jarvisn0", &sequence).value);
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    CHECK_EQUAL(metered, stats_of(capture).received);
    capture_destroy(capture);
    printf("ok - an_interface_that_goes_down_delivers_again_when_it_is_up(%s, %u, %u)\n", backend, workers, count);
}

static void an_interface_that_is_deleted_and_made_again_is_captured_again(const char *backend, uint32_t workers) {
    static const char *const two[] = {"jarvisn0", "jarvisn2"};
    uint64_t sequence = 0;
    capture_t *capture = capture_of(two, 2, backend, workers, false);
    send_burst(2, 1, 2, BURST);
    await_metered(capture, BURST);
    run("ip link del jarvisn2");
    await_state(capture, "jarvisn2", CAPTURE_INTERFACE_GONE);
    CHECK(strstr(interface_of(capture, "jarvisn2").error, "jarvisn2") != NULL);
    send_burst(0, 1, 2, BURST);
    await_metered(capture, 2 * BURST);
    close(senders[2]);
    make_pair(2);
    await_state(capture, "jarvisn2", CAPTURE_INTERFACE_UP);
    CHECK_EQUAL(if_nametoindex("jarvisn2"), interface_of(capture, "jarvisn2").interface_index);
    send_burst(2, 1, 2, BURST);
    await_metered(capture, 3 * BURST);
    CHECK_EQUAL(2 * BURST, interface_of(capture, "jarvisn2").received);
    CHECK_EQUAL(3, stats_of(capture).flows_total); /* another interface of the same name: another flow */
    struct capture_event event = event_about(capture, "jarvisn2", &sequence);
    if (event.value == CAPTURE_INTERFACE_DOWN) /* on its way */
        event = event_about(capture, "jarvisn2", &sequence);
    CHECK_EQUAL(CAPTURE_INTERFACE_GONE, event.value);
    CHECK_EQUAL(CAPTURE_INTERFACE_UP, event_about(capture, "jarvisn2", &sequence).value);
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    CHECK_EQUAL(3 * BURST, stats_of(capture).received);
    capture_destroy(capture);
    printf("ok - an_interface_that_is_deleted_and_made_again_is_captured_again(%s, %u)\n", backend, workers);
}

static void with_its_last_interface_the_capture_fails(const char *backend, uint32_t workers) {
    static const char *const one[] = {"jarvisn2"};
    capture_t *capture = capture_of(one, 1, backend, workers, false);
    send_burst(2, 1, 2, BURST);
    await_metered(capture, BURST);
    run("ip link del jarvisn2");
    int result = 1;
    uint64_t until = now_ns(CLOCK_MONOTONIC) + PATIENCE_MS * 1000000ull;
    while (result == 1 && now_ns(CLOCK_MONOTONIC) < until)
        result = capture_poll(capture, 20);
    CHECK_EQUAL(CAPTURE_ERR_IO, result);
    struct capture_error_info error;
    CHECK_EQUAL(CAPTURE_OK, capture_get_error(capture, &error));
    CHECK(strstr(error.message, "jarvisn2") != NULL);
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_add_interface(capture, "jarvisn0", &error));
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    CHECK_EQUAL(BURST, stats_of(capture).received);
    capture_destroy(capture);
    close(senders[2]);
    make_pair(2);
    printf("ok - with_its_last_interface_the_capture_fails(%s, %u)\n", backend, workers);
}

static void check_change(int code, int result, const struct capture_error_info *error, const char *text) {
    CHECK_EQUAL(code, result);
    if (!strstr(error->message, text))
        fprintf(stderr, "%s\n", error->message);
    CHECK(strstr(error->message, text) != NULL);
}

static void what_cannot_be_added_or_removed_is_refused_and_changes_nothing(void) {
    static const char *const one[] = {"jarvisn0"};
    struct capture_error_info error = {0};
    capture_t *capture = capture_of(one, 1, "afpacket", 1, false);
    check_change(CAPTURE_ERR_INVALID, capture_add_interface(capture, "jarvisn0", &error), &error, "captured already");
    check_change(CAPTURE_ERR_INVALID, capture_add_interface(capture, "", &error), &error, "accepted is a name");
    check_change(CAPTURE_ERR_NO_INTERFACE, capture_add_interface(capture, "jarvisn9", &error), &error, "does not exist");
    check_change(CAPTURE_ERR_IO, capture_add_interface(capture, "jarvisdown", &error), &error, "is down");
    check_change(CAPTURE_ERR_INVALID, capture_remove_interface(capture, "jarvisn1", &error), &error, "is not captured");
    check_change(CAPTURE_ERR_INVALID, capture_remove_interface(capture, "jarvisn0", &error), &error, "is the last one");
    CHECK_EQUAL(1, capture_get_interfaces(capture, NULL, 0));
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    check_change(CAPTURE_ERR_STATE, capture_add_interface(capture, "jarvisn1", &error), &error, "has ended");
    capture_destroy(capture);
}

/* An interface of raw IP packets, with what is sent to us through it written to the descriptor; -1: not possible here. */
static int make_tun(void) {
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI, .ifr_name = "jarvistun"};
    int tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (tun < 0 || ioctl(tun, TUNSETIFF, &request) != 0)
        return -1;
    run("ip link set jarvistun up");
    return tun;
}

static void one_filter_holds_for_interfaces_of_different_link_types(void) {
    static const char *const two[] = {"jarvisn0", "jarvistun"};
    uint8_t frame[FRAME_BYTES];
    int tun = make_tun();
    if (tun < 0) {
        printf("skipped: one_filter_holds_for_interfaces_of_different_link_types: no tun device: %s\n", strerror(errno));
        return;
    }
    for (uint32_t workers = 0; workers <= 2; workers++) {
        capture_t *capture = capture_of(two, 2, "afpacket", workers, false);
        send_burst(0, 1, 2, BURST);
        for (int i = 0; i < BURST; i++) { /* without its Ethernet header; every second one is TCP, which the filter leaves out */
            make_frame(frame, sizeof frame, 1, 2, -1);
            frame[23] = i % 2 ? 6 : 17;
            CHECK_EQUAL(IP_BYTES, write(tun, frame + 14, IP_BYTES));
        }
        await_metered(capture, BURST + BURST / 2);
        CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
        struct capture_stats stats = stats_of(capture);
        CHECK_EQUAL(BURST / 2, stats.filtered);
        CHECK_EQUAL((BURST + BURST / 2) * IP_BYTES, stats.metered_octets);
        CHECK_EQUAL(2, stats.flows_total);
        CHECK_EQUAL(BURST, interface_of(capture, "jarvistun").received);
        capture_destroy(capture);
    }
    close(tun);
}

int main(void) {
    int obstacle = prepare_link();
    if (obstacle)
        return obstacle;
    for (int pair = 0; pair < PAIRS; pair++)
        make_pair(pair);
    RUN(what_cannot_be_added_or_removed_is_refused_and_changes_nothing);
    RUN(one_filter_holds_for_interfaces_of_different_link_types);
    for (uint32_t at = 0; at < 5; at++) {
        const char *backend = at < 3 ? "afpacket" : "pcap";
        uint32_t workers = at < 3 ? at : at - 3;
        a_flow_on_two_interfaces_is_two_records_or_when_merged_one_that_names_both(backend, workers);
        interfaces_come_and_go_under_traffic_and_every_packet_is_counted(backend, workers);
        what_was_sent_while_an_interface_was_captured_is_counted_exactly(backend, workers);
        an_interface_that_goes_down_delivers_again_when_it_is_up(backend, workers, 1);
        an_interface_that_goes_down_delivers_again_when_it_is_up(backend, workers, 2);
        an_interface_that_is_deleted_and_made_again_is_captured_again(backend, workers);
        with_its_last_interface_the_capture_fails(backend, workers);
    }
    return 0;
}
