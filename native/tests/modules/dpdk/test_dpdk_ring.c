/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of our own making in DPDK's net_ring: segments, VLAN flags, lengths, order, and that every mbuf comes back. */
#include "dpdk_capture.h"
#include "frames_of_ring.h"

enum { POOL = 8191, RING = 1023 };

static struct rte_mempool *pool;

static capture_t *begin_ring(uint32_t snaplen, struct rte_ring **ring) {
    struct capture_config config = dpdk_config("net_ring0");
    config.snaplen = snaplen;
    config.packet_ring_mb = 8;
    capture_t *capture = begin(&config);
    *ring = rte_ring_lookup("ETH_RXTX0_net_ring0");
    CHECK(*ring != NULL);
    if (!pool)
        pool = rte_pktmbuf_pool_create("test", POOL, 0, 0, RTE_MBUF_DEFAULT_BUF_SIZE, 0);
    CHECK(pool != NULL);
    return capture;
}

static void end_ring(capture_t *capture) {
    capture_destroy(capture);
    CHECK_EQUAL(POOL, rte_mempool_avail_count(pool));
}

/* Takes `count` frames from the packet ring and shows each. */
static void look_at(capture_t *capture, uint32_t count,
                    void (*look)(uint32_t at, const struct capture_packet *packet, const uint8_t *data)) {
    uint32_t seen = 0;
    for (int turn = 0; turn < 200 && seen < count; turn++) {
        struct capture_packet_batch batch;
        int got = capture_packets_next(capture, 10, &batch);
        CHECK(got >= 0);
        for (int i = 0; i < got; i++)
            look(seen++, &batch.packets[i], batch.base + batch.packets[i].offset);
        capture_packets_release(capture);
    }
    CHECK_EQUAL(count, seen);
}

static uint64_t last_ns, same_ns;

static void look_plain(uint32_t at, const struct capture_packet *packet, const uint8_t *data) {
    CHECK_EQUAL(100, packet->captured_length);
    CHECK_EQUAL(100, packet->wire_length);
    CHECK_EQUAL(1, packet->link_type);
    CHECK_EQUAL(1000 + at, data[34] << 8 | data[35]);
    CHECK(packet->timestamp_ns >= last_ns);
    same_ns += packet->timestamp_ns == last_ns;
    last_ns = packet->timestamp_ns;
}

static void frames_come_whole_in_order_and_stamped_one_by_one(void) {
    struct rte_ring *ring;
    struct timespec now;
    capture_t *capture = begin_ring(0, &ring);
    clock_gettime(CLOCK_REALTIME, &now);
    last_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    for (uint16_t i = 0; i < 1000; i++)
        put_frame(ring, pool, 100, 1000 + i, 9, -1, 0);
    look_at(capture, 1000, look_plain);
    CHECK(same_ns < 500); /* two may fall into one tick of the CPU's counter, but no batch has one time */
    clock_gettime(CLOCK_REALTIME, &now);
    CHECK(last_ns <= (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
    struct capture_stats stats = finish(capture);
    CHECK_EQUAL(1000, stats.metered);
    CHECK_EQUAL(86000, stats.metered_octets);
    CHECK_EQUAL(100000, stats.received_octets);
    end_ring(capture);
}

static void look_tagged(uint32_t at, const struct capture_packet *packet, const uint8_t *data) {
    (void)at, (void)data;
    CHECK_EQUAL(3 << 13 | 77, packet->vlan_tci);
}

static void a_tag_that_the_card_took_off_is_the_flows_vlan(void) {
    struct rte_ring *ring;
    struct capture_flow flow;
    struct capture_flow_query query = {.limit = 1, .filter = "vlan 77"};
    capture_t *capture = begin_ring(0, &ring);
    put_frame(ring, pool, 100, 5, 9, 3 << 13 | 77, 0);
    look_at(capture, 1, look_tagged);
    CHECK_EQUAL(1, capture_flow_get_all(capture, &query, &flow, NULL, NULL));
    CHECK_EQUAL(77, flow.vlan_id);
    CHECK_EQUAL(1, finish(capture).metered);
    end_ring(capture);
}

static uint32_t long_length;

static void look_long(uint32_t at, const struct capture_packet *packet, const uint8_t *data) {
    CHECK_EQUAL(long_length, packet->captured_length);
    CHECK_EQUAL(long_length, packet->wire_length);
    CHECK_EQUAL(1000 + at, data[34] << 8 | data[35]);
    for (uint32_t i = 42; i < long_length; i++)
        CHECK(data[i] == (uint8_t)(i * 7));
}

static void frames_in_several_segments_come_in_one_piece(void) {
    struct rte_ring *ring;
    const uint32_t lengths[] = {3000, 9014, 40000}, counts[] = {100, 100, 70}; /* 64 of the last do not fit into one batch */
    for (int i = 0; i < 3; i++) {
        capture_t *capture = begin_ring(0, &ring);
        long_length = lengths[i];
        for (uint16_t j = 0; j < counts[i]; j++)
            put_frame(ring, pool, long_length, 1000 + j, 9, -1, 1000);
        look_at(capture, counts[i], look_long);
        struct capture_stats stats = finish(capture);
        CHECK_EQUAL(counts[i], stats.metered);
        CHECK_EQUAL(0, stats.truncated + stats.packet_ring_dropped);
        CHECK_EQUAL((uint64_t)counts[i] * (long_length - 14), stats.metered_octets);
        end_ring(capture);
    }
}

static void look_cut(uint32_t at, const struct capture_packet *packet, const uint8_t *data) {
    CHECK_EQUAL(96, packet->captured_length);
    CHECK_EQUAL(at < 5 ? 100 : 3000, packet->wire_length);
    CHECK_EQUAL(5, data[35]);
}

static void frames_longer_than_snaplen_are_cut_and_counted(void) {
    struct rte_ring *ring;
    capture_t *capture = begin_ring(96, &ring);
    for (int i = 0; i < 10; i++)
        put_frame(ring, pool, i < 5 ? 100 : 3000, 5, 9, -1, 80);
    look_at(capture, 10, look_cut);
    struct capture_stats stats = finish(capture);
    CHECK_EQUAL(10, stats.truncated);
    CHECK_EQUAL(10, stats.metered);
    CHECK_EQUAL(5 * 86 + 5 * 2986, stats.metered_octets);
    end_ring(capture);
}

static void what_a_stop_finds_in_the_ring_is_not_lost_from_the_pool(void) {
    struct rte_ring *ring;
    for (int graceful = 0; graceful < 2; graceful++) {
        capture_t *capture = begin_ring(0, &ring);
        for (int i = 0; i < 500; i++)
            put_frame(ring, pool, 100, 5, 9, -1, 0);
        CHECK(capture_poll(capture, 0) >= 0);
        CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, graceful));
        struct capture_stats stats;
        CHECK_EQUAL(CAPTURE_OK, capture_get_stats(capture, &stats));
        check_balance(&stats);
        void *left = NULL; /* a vdev's ring outlives the device; what is in it was never received */
        while ((ring = rte_ring_lookup("ETH_RXTX0_net_ring0")) && rte_ring_dequeue(ring, &left) == 0)
            rte_pktmbuf_free(left);
        end_ring(capture);
    }
}

int main(void) {
    add_module();
    RUN(frames_come_whole_in_order_and_stamped_one_by_one);
    RUN(a_tag_that_the_card_took_off_is_the_flows_vlan);
    RUN(frames_in_several_segments_come_in_one_piece);
    RUN(frames_longer_than_snaplen_are_cut_and_counted);
    RUN(what_a_stop_finds_in_the_ring_is_not_lost_from_the_pool);
    return 0;
}
