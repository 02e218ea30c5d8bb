/* SPDX-License-Identifier: Apache-2.0 */
/* Times out of mirrors' headers (ERSPAN III): every granularity, wraps, several mirrors, drift, and headers that lie. */
#include "flow/mirror_clock.h"
#include "trace_file.h"

enum { GRE = 47, GRA_100_US = 0, GRA_100_NS = 1, GRA_1588 = 2, GRA_USER = 3, RAW_LINK = 101 };

#define BASE   (1700000000ull * SECOND)
#define WRAP32 (1ull << 32)

/* What a mirror puts in front of a frame. */
struct mirrored {
    uint32_t source; /* 192.0.2.0 + source */
    uint32_t session, hardware, granularity, timestamp;
    bool subheader;
    uint8_t platform;
    uint32_t seconds;
};

static void add_mirror(struct bytes *b, struct mirrored m, uint32_t payload) {
    add_ipv4(b, 0xc0000200 + m.source, 0xc0000301, GRE, 8 + 12 + (m.subheader ? 8 : 0) + payload, 0, 0);
    add_be32(b, 0x100022eb);
    add_be32(b, 7); /* sequence number */
    add_be32(b, 0x20650000 | m.session);
    add_be32(b, m.timestamp);
    add_be16(b, 0);
    add_be16(b, m.hardware << 4 | m.granularity << 1 | m.subheader);
    if (m.subheader) {
        add_be32(b, (uint32_t)m.platform << 26);
        add_be32(b, m.seconds);
    }
}

static void add_mirrored_frame(struct bytes *b, struct mirrored m, uint32_t flow) {
    add_mirror(b, m, 14 + 28);
    add_ethernet(b, 0x0800);
    add_ipv4(b, 0x0a000000 + flow, 0x0a000001, 17, 8, 0, 0);
    add_udp(b, 1000, 53, 0);
}

/* The stamp of a header of which `cut` bytes less than all were captured. */
static bool stamp_of(struct mirrored m, uint32_t cut, struct mirror_stamp *stamp) {
    struct bytes b = {0};
    add_mirror(&b, m, 0);
    uint32_t length = b.length - cut;
    uint8_t *exact = malloc(length); /* ASan sees one byte too many */
    memcpy(exact, b.data, length);
    struct frame frame = frame_of(&b, RAW_LINK);
    struct packet packet;
    frame.data = exact;
    frame.caplen = length;
    CHECK_EQUAL(DECODE_IP, decode_frame(&frame, &packet));
    bool there = decode_mirror_stamp(&packet, stamp);
    free(exact);
    return there;
}

static void every_granularity_has_its_unit_and_its_wrap(void) {
    struct mirror_stamp stamp;
    CHECK(stamp_of((struct mirrored){.session = 1023, .hardware = 63, .granularity = GRA_100_US, .timestamp = 7}, 0, &stamp));
    CHECK_EQUAL(700000, stamp.time_ns);
    CHECK_EQUAL(WRAP32 * 100000, stamp.wrap_ns);
    CHECK_EQUAL(1023, stamp.session_id);
    CHECK_EQUAL(63, stamp.hardware_id);
    CHECK(stamp_of((struct mirrored){.granularity = GRA_100_NS, .timestamp = UINT32_MAX}, 0, &stamp));
    CHECK_EQUAL(UINT32_MAX * 100ull, stamp.time_ns);
    CHECK_EQUAL(WRAP32 * 100, stamp.wrap_ns);
    CHECK(stamp_of((struct mirrored){.granularity = GRA_1588, .timestamp = 999999999}, 0, &stamp));
    CHECK_EQUAL(999999999, stamp.time_ns);
    CHECK_EQUAL(SECOND, stamp.wrap_ns);
}

static void the_seconds_of_ieee_1588_are_in_the_subheaders_of_platforms_5_and_6(void) {
    for (uint8_t platform = 0; platform < 64; platform++) {
        struct mirror_stamp stamp;
        struct mirrored m = {
            .granularity = GRA_1588, .timestamp = 5, .subheader = true, .platform = platform, .seconds = UINT32_MAX};
        bool seconds = platform == 5 || platform == 6;
        CHECK(stamp_of(m, 0, &stamp));
        CHECK_EQUAL(seconds ? UINT32_MAX * (uint64_t)SECOND + 5 : 5, stamp.time_ns);
        CHECK_EQUAL(seconds ? WRAP32 * SECOND : SECOND, stamp.wrap_ns);
        CHECK(stamp_of(m, 1, &stamp)); /* the subheader was cut off */
        CHECK_EQUAL(5, stamp.time_ns);
    }
}

static void what_has_no_known_unit_or_no_whole_header_has_no_stamp(void) {
    struct mirror_stamp stamp;
    struct mirrored good = {.granularity = GRA_100_NS, .timestamp = 1};
    CHECK(stamp_of(good, 0, &stamp));
    for (uint32_t cut = 1; cut <= 20; cut++)
        CHECK(!stamp_of(good, cut, &stamp));
    CHECK(!stamp_of((struct mirrored){.granularity = GRA_USER, .timestamp = 1}, 0, &stamp));
    CHECK(!stamp_of((struct mirrored){.granularity = GRA_1588, .timestamp = SECOND}, 0, &stamp));
}

static bool stamped_with_byte(uint32_t at, uint8_t value) {
    struct bytes b = {0};
    struct packet packet;
    struct mirror_stamp stamp;
    add_mirror(&b, (struct mirrored){.granularity = GRA_100_NS}, 0);
    b.data[at] = value;
    struct frame frame = frame_of(&b, RAW_LINK);
    CHECK_EQUAL(DECODE_IP, decode_frame(&frame, &packet));
    return decode_mirror_stamp(&packet, &stamp);
}

static void only_erspan_iii_right_behind_the_ip_header_has_a_stamp(void) {
    CHECK(stamped_with_byte(20, 0x10));
    CHECK(!stamped_with_byte(9, 17));    /* not GRE */
    CHECK(!stamped_with_byte(7, 1));     /* a later fragment */
    CHECK(!stamped_with_byte(20, 0x50)); /* source routing */
    CHECK(!stamped_with_byte(21, 1));    /* PPTP's version */
    CHECK(!stamped_with_byte(22, 0x88)); /* another protocol */
    CHECK(!stamped_with_byte(28, 0x10)); /* the version of type II */
}

/* ---- the clocks */

static struct mirror_clock mirrors;

static uint64_t time_of(uint32_t source, uint16_t session, uint8_t hardware, uint64_t wrap_ns, uint64_t mirror_ns,
                        uint64_t capture_ns) {
    struct packet outer = {.ts_ns = capture_ns, .key = {.ip_version = 4}};
    memcpy(outer.key.addr[0], &source, 4);
    struct mirror_stamp stamp = {
        .time_ns = mirror_ns % wrap_ns, .wrap_ns = wrap_ns, .session_id = session, .hardware_id = hardware};
    return mirror_clock_time(&mirrors, &outer, &stamp);
}

/* The time of one mirror's packet, relative to BASE, which both clocks call 0. */
static int64_t tell(uint64_t wrap_ns, int64_t mirror_ns, int64_t capture_ns) {
    uint64_t told = time_of(1, 1, 1, wrap_ns, (uint64_t)((int64_t)wrap_ns + mirror_ns), BASE + (uint64_t)capture_ns);
    return (int64_t)(told - BASE);
}

static void fresh(void) {
    mirror_clock_destroy(&mirrors);
    CHECK(mirror_clock_init(&mirrors, 1));
}

static const uint64_t wraps[] = {WRAP32 * 100000, WRAP32 * 100, SECOND, WRAP32 *SECOND};

static void the_first_packet_sets_the_clock_and_the_others_keep_the_mirrors_distances(void) {
    for (int i = 0; i < 4; i++) {
        fresh();
        CHECK_EQUAL(0, tell(wraps[i], 0, 0));
        CHECK_EQUAL(1000, tell(wraps[i], 1000, 90000000)); /* it came 90 ms late */
        CHECK_EQUAL(200000000, tell(wraps[i], 200000000, 200000001));
        CHECK_EQUAL(190000000, tell(wraps[i], 190000000, 200000002)); /* overtaken on the way */
    }
}

/* An hour in steps of 0.7 s with delays that change, over many wraps of each clock but the longest. */
static void a_clock_that_wraps_goes_on(void) {
    for (int i = 0; i < 4; i++) {
        fresh();
        int64_t start = (int64_t)wraps[i] - 1; /* the first wrap comes at once */
        CHECK_EQUAL(0, tell(wraps[i], start, 0));
        for (int64_t step = 1; step < 5200; step++) {
            int64_t passed = step * 700000000, late = step % 7 * 10000000;
            CHECK_EQUAL(passed, tell(wraps[i], (start + passed) % (int64_t)wraps[i], passed + late));
        }
    }
}

/* Silent for many wraps: which of them it is, the capture's clock says. */
static void a_mirror_that_was_silent_for_many_wraps_is_understood(void) {
    fresh();
    int64_t day = 86400ll * SECOND;
    CHECK_EQUAL(0, tell(wraps[1], 5, 0));
    CHECK_EQUAL(day, tell(wraps[1], (5 + day) % (int64_t)wraps[1], day + 1000));
}

static void a_clock_that_parts_by_more_than_a_second_is_set_anew(void) {
    for (int i = 0; i < 4; i++) {
        int64_t most = i == 2 ? SECOND / 4 : SECOND;
        for (int sign = -1; sign <= 1; sign += 2) {
            fresh();
            CHECK_EQUAL(0, tell(wraps[i], 0, 0));
            CHECK_EQUAL(10ll * SECOND + sign * most, tell(wraps[i], 10ll * SECOND + sign * most, 10ll * SECOND));
            CHECK_EQUAL(20ll * SECOND, tell(wraps[i], 20ll * SECOND + sign * (most + 1), 20ll * SECOND));
            CHECK_EQUAL(20ll * SECOND + 5, tell(wraps[i], 20ll * SECOND + sign * (most + 1) + 5, 20ll * SECOND + 9));
        }
    }
}

static void two_mirrors_two_sessions_and_two_cards_have_a_clock_each(void) {
    fresh();
    const struct {
        uint32_t source;
        uint16_t session;
        uint8_t hardware;
    } of[] = {{1, 1, 1}, {2, 1, 1}, {1, 2, 1}, {1, 1, 2}};
    for (int round = 0; round < 3; round++) {
        for (uint64_t i = 0; i < 4; i++) {
            uint64_t zero = i * 77 * SECOND, passed = (uint64_t)round * 1000000;
            uint64_t told = time_of(of[i].source, of[i].session, of[i].hardware, wraps[1], zero + passed, BASE + passed + i);
            CHECK_EQUAL(passed, told - BASE - i);
        }
    }
    /* and one that changes its unit begins anew */
    CHECK_EQUAL(BASE + 9, time_of(1, 1, 1, wraps[0], 3, BASE + 9));
    CHECK_EQUAL(BASE + 3000000, time_of(1, 1, 1, wraps[1], 3000000, BASE + 3000100));
}

static void the_mirror_unused_longest_makes_room_and_no_other(void) {
    fresh();
    uint32_t sources = MIRROR_SETS * MIRROR_WAYS * 8, busy = 0;
    for (uint32_t source = 1; source <= sources; source++) {
        uint64_t now = BASE + source * 1000ull;
        time_of(source, 1, 1, wraps[1], 0, now);
        /* One that keeps talking is never forgotten: its packets come 10 ms late and their times stay the mirror's. */
        uint64_t told = time_of(busy, 9, 9, wraps[1], source * 1000ull, now + (source > 1 ? 10000000 : 0));
        CHECK_EQUAL(now, told);
    }
}

static void hostile_stamps_move_a_packet_by_no_more_than_a_second(void) {
    fresh();
    uint64_t random = 88172645463325252ull;
    for (int i = 0; i < 200000; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        uint64_t capture = i % 3 == 0 ? random : i % 3 == 1 ? random % (2 * SECOND) : UINT64_MAX - random % SECOND;
        uint64_t told = time_of(1, 1, 1, wraps[random >> 8 & 3], random * 0x9e3779b97f4a7c15u, capture);
        uint64_t apart = told > capture ? told - capture : capture - told;
        CHECK(apart <= MIRROR_DRIFT_MOST_NS);
    }
}

/* ---- whole captures */

struct times {
    int records;
    int64_t start[16], end[16];
    uint8_t tunnel_type[16];
};

/* The records of a capture of the trace, times relative to BASE. */
static struct times meter(const struct trace_file *trace, bool mirror_timestamps, uint32_t tunnel) {
    static uint64_t forward[16];
    struct times times = {0};
    struct capture_flow_columns columns = {
        .start_time_ns = times.start, .end_time_ns = times.end, .tunnel_type = times.tunnel_type, .fwd_packets = forward};
    struct capture_batch_info info = {0};
    capture_t *capture =
        capture_of(trace, (struct capture_options){.tunnel = tunnel, .mirror_timestamps = mirror_timestamps, .idle_s = 30});
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){0});
    start(capture);
    while (capture_poll(capture, 10) > 0)
        continue;
    capture_stop(capture, true);
    stats_of(capture);
    CHECK(capture_reader_read_columns(reader, &columns, 16, &info) >= 0);
    capture_destroy(capture);
    times.records = (int)info.records;
    for (int i = 0; i < times.records; i++) {
        CHECK(times.start[i] <= times.end[i]);
        times.start[i] -= (int64_t)BASE;
        times.end[i] -= (int64_t)BASE;
    }
    return times;
}

static void inner_flows_take_the_mirrors_times_when_asked_and_outer_ones_the_captures(void) {
    struct trace_file trace = trace_new(RAW_LINK);
    for (uint32_t i = 0; i < 3; i++) {
        struct bytes b = {0};
        add_mirrored_frame(&b, (struct mirrored){.granularity = GRA_100_NS, .timestamp = UINT32_MAX - 4 + 10 * i}, 2);
        trace_packet(&trace, BASE + i * 5000, &b); /* 1 us apart, seen 5 us apart, over the wrap */
    }
    struct times with = meter(&trace, true, CAPTURE_TUNNEL_INNER), without = meter(&trace, false, CAPTURE_TUNNEL_INNER);
    CHECK_EQUAL(1, with.records);
    CHECK_EQUAL(0, with.start[0]);
    CHECK_EQUAL(2000, with.end[0]);
    CHECK_EQUAL(10000, without.end[0]);
    struct times both = meter(&trace, true, CAPTURE_TUNNEL_BOTH);
    CHECK_EQUAL(2, both.records);
    for (int i = 0; i < 2; i++)
        CHECK_EQUAL(both.tunnel_type[i] ? 2000 : 10000, both.end[i]);
    trace_forget(&trace);
}

static void what_the_header_cannot_say_keeps_the_captures_time(void) {
    struct trace_file trace = trace_new(RAW_LINK);
    for (uint32_t i = 0; i < 3; i++) {
        struct bytes b = {0};
        add_mirrored_frame(&b, (struct mirrored){.granularity = GRA_USER, .timestamp = 10 * i}, 2);
        trace_packet(&trace, BASE + i * 5000, &b);
    }
    CHECK_EQUAL(10000, meter(&trace, true, CAPTURE_TUNNEL_INNER).end[0]);
    trace_forget(&trace);
}

static void no_flow_ends_before_it_starts_however_the_mirror_lies(void) {
    struct trace_file trace = trace_new(RAW_LINK);
    uint32_t random = 12345;
    for (uint32_t i = 0; i < 500; i++) {
        struct bytes b = {0};
        random = random * 1664525 + 1013904223;
        add_mirrored_frame(&b, (struct mirrored){.granularity = random >> 30, .timestamp = random * 2654435761u}, 2);
        trace_packet(&trace, BASE + i * 1000000, &b);
    }
    struct times times = meter(&trace, true, CAPTURE_TUNNEL_INNER); /* checks start <= end */
    CHECK_EQUAL(1, times.records);
    CHECK(times.start[0] >= -(int64_t)SECOND && times.end[0] <= 2ll * SECOND);
    trace_forget(&trace);
}

int main(void) {
    RUN(every_granularity_has_its_unit_and_its_wrap);
    RUN(the_seconds_of_ieee_1588_are_in_the_subheaders_of_platforms_5_and_6);
    RUN(what_has_no_known_unit_or_no_whole_header_has_no_stamp);
    RUN(only_erspan_iii_right_behind_the_ip_header_has_a_stamp);
    RUN(the_first_packet_sets_the_clock_and_the_others_keep_the_mirrors_distances);
    RUN(a_clock_that_wraps_goes_on);
    RUN(a_mirror_that_was_silent_for_many_wraps_is_understood);
    RUN(a_clock_that_parts_by_more_than_a_second_is_set_anew);
    RUN(two_mirrors_two_sessions_and_two_cards_have_a_clock_each);
    RUN(the_mirror_unused_longest_makes_room_and_no_other);
    RUN(hostile_stamps_move_a_packet_by_no_more_than_a_second);
    RUN(inner_flows_take_the_mirrors_times_when_asked_and_outer_ones_the_captures);
    RUN(what_the_header_cannot_say_keeps_the_captures_time);
    RUN(no_flow_ends_before_it_starts_however_the_mirror_lies);
    mirror_clock_destroy(&mirrors);
    return 0;
}
