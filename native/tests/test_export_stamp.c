/* SPDX-License-Identifier: Apache-2.0 */
/* Sequence numbers and export times, by each protocol's own rule. */
#include "check.h"
#include "jarvis_capture.h"

#define SECOND      UINT64_C(1000000000)
#define MILLISECOND UINT64_C(1000000)

static const uint64_t now = 1700000000 * SECOND + 123 * MILLISECOND + 456789;

static uint32_t be32(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static struct capture_export_session session_of(uint32_t protocol) {
    return (struct capture_export_session){.struct_size = sizeof(struct capture_export_session), .protocol = protocol};
}

/* Two messages of 64 bytes with 3 and 5 records. */
static const struct capture_export_message two[2] = {{.offset = 0, .length = 64, .records = 3},
                                                     {.offset = 64, .length = 64, .records = 5}};

static void stamp(struct capture_export_session *session, uint64_t when, uint8_t *block,
                  const struct capture_export_message *messages, uint32_t count) {
    CHECK_EQUAL(CAPTURE_OK, capture_export_stamp(session, when, block, messages, count));
}

static void ipfix_counts_data_records(void) {
    uint8_t block[128] = {0};
    struct capture_export_session session = session_of(CAPTURE_EXPORT_IPFIX);
    session.sequence = UINT32_MAX - 1;
    stamp(&session, now, block, two, 2);
    CHECK_EQUAL(1700000000, be32(block + 4));
    CHECK_EQUAL(UINT32_MAX - 1, be32(block + 8));
    CHECK_EQUAL(1, be32(block + 64 + 8)); /* modulo 2^32 */
    CHECK_EQUAL(6, session.sequence);
}

static void netflow_v9_counts_messages_and_has_an_uptime(void) {
    uint8_t block[128] = {0};
    struct capture_export_session session = session_of(CAPTURE_EXPORT_NETFLOW_V9);
    session.system_init_ns = now - 90 * SECOND;
    stamp(&session, now, block, two, 2);
    CHECK_EQUAL(90000, be32(block + 4));
    CHECK_EQUAL(1700000000, be32(block + 8));
    CHECK_EQUAL(0, be32(block + 12));
    CHECK_EQUAL(1, be32(block + 64 + 12));
    stamp(&session, now - 100 * SECOND, block, two, 1); /* the clock was set back beyond the start */
    CHECK_EQUAL(0, be32(block + 4));
    CHECK_EQUAL(2, be32(block + 12));
}

static void netflow_v5_counts_flows_and_its_uptime_counts_from_the_records_base(void) {
    uint8_t block[64] = {0};
    struct capture_export_session session = session_of(CAPTURE_EXPORT_NETFLOW_V5);
    struct capture_export_message message = {.length = 64, .records = 30, .base_ns = now - 5 * SECOND, .newest_ns = now - SECOND};
    stamp(&session, now, block, &message, 1);
    CHECK_EQUAL(5000, be32(block + 4));
    CHECK_EQUAL(1700000000, be32(block + 8));
    CHECK_EQUAL(123456789, be32(block + 12));
    CHECK_EQUAL(0, be32(block + 16));
    CHECK_EQUAL(30, session.sequence);
    session.trace_time = true;
    stamp(&session, now, block, &message, 1);
    CHECK_EQUAL(4000, be32(block + 4));
    CHECK_EQUAL(1699999999, be32(block + 8));
    CHECK_EQUAL(30, be32(block + 16));
}

/* Export time - sysUptime is what a collector takes for the base of First and Last. */
static void a_v5_base_is_found_again_whatever_the_clock_says(void) {
    uint64_t base = 1600000000 * SECOND + 7 * MILLISECOND;
    uint64_t clocks[] = {base - 1000 * SECOND,
                         base,
                         base + 1,
                         base + UINT64_C(4294967295) * MILLISECOND + 999999,
                         base + UINT64_C(4294967296) * MILLISECOND,
                         now,
                         now + 400000000 * SECOND};
    struct capture_export_session session = session_of(CAPTURE_EXPORT_NETFLOW_V5);
    struct capture_export_message message = {.length = 64, .base_ns = base};
    for (size_t i = 0; i < sizeof(clocks) / sizeof(clocks[0]); i++) {
        uint8_t block[64] = {0};
        stamp(&session, clocks[i], block, &message, 1);
        uint64_t milliseconds = (uint64_t)be32(block + 8) * 1000 + be32(block + 12) / 1000000;
        CHECK_EQUAL(base / MILLISECOND, milliseconds - be32(block + 4));
    }
}

static void sflow_counts_datagrams_and_says_the_agents_address(void) {
    uint8_t block[64] = {0};
    block[3] = 5, block[7] = 1; /* version 5, an IPv4 address */
    struct capture_export_session session = session_of(CAPTURE_EXPORT_SFLOW_V5);
    session.system_init_ns = now - 2 * SECOND;
    session.agent_address_length = 4;
    memcpy(session.agent_address, (uint8_t[]){192, 0, 2, 1}, 4);
    struct capture_export_message message = {.length = 64, .records = 9};
    stamp(&session, now, block, &message, 1);
    stamp(&session, now, block, &message, 1);
    CHECK(memcmp(block + 8, session.agent_address, 4) == 0);
    CHECK_EQUAL(0, be32(block + 12)); /* the sub-agent is the exporter's */
    CHECK_EQUAL(1, be32(block + 16));
    CHECK_EQUAL(2000, be32(block + 20));
    CHECK_EQUAL(2, session.sequence);
}

static void sflow_with_room_for_ipv6_takes_both_kinds_of_address(void) {
    static const uint8_t mapped[16] = {[10] = 0xff, [11] = 0xff, [12] = 192, [13] = 0, [14] = 2, [15] = 1};
    uint8_t block[64] = {0};
    block[3] = 5, block[7] = 2;
    struct capture_export_session session = session_of(CAPTURE_EXPORT_SFLOW_V5);
    struct capture_export_message message = {.length = 64};
    session.agent_address_length = 4;
    memcpy(session.agent_address, mapped + 12, 4);
    stamp(&session, now, block, &message, 1);
    CHECK(memcmp(block + 8, mapped, 16) == 0);
    session.agent_address_length = 16;
    memset(session.agent_address, 0xab, 16);
    stamp(&session, now, block, &message, 1);
    CHECK(memcmp(block + 8, session.agent_address, 16) == 0);
    CHECK_EQUAL(1, be32(block + 28));
}

static void what_is_skipped_counts_as_if_it_had_left(void) {
    uint32_t expected[] = {[CAPTURE_EXPORT_NETFLOW_V5] = 8,
                           [CAPTURE_EXPORT_NETFLOW_V9] = 2,
                           [CAPTURE_EXPORT_IPFIX] = 8,
                           [CAPTURE_EXPORT_SFLOW_V5] = 2};
    for (uint32_t protocol = CAPTURE_EXPORT_NETFLOW_V5; protocol <= CAPTURE_EXPORT_SFLOW_V5; protocol++) {
        struct capture_export_session session = session_of(protocol);
        CHECK_EQUAL(CAPTURE_OK, capture_export_skip(&session, two, 2));
        CHECK_EQUAL(expected[protocol], session.sequence);
    }
}

static void a_refusal_leaves_the_sequence_and_the_bytes(void) {
    uint8_t block[128] = {0}, before[128] = {0};
    for (uint32_t protocol = CAPTURE_EXPORT_NETFLOW_V5; protocol <= CAPTURE_EXPORT_SFLOW_V5; protocol++) {
        struct capture_export_session session = session_of(protocol);
        struct capture_export_message messages[2] = {two[0], {.offset = 64, .length = 15}}; /* shorter than any header */
        CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_export_stamp(&session, now, block, messages, 2));
        CHECK_EQUAL(0, session.sequence);
        CHECK(memcmp(block, before, sizeof(block)) == 0);
    }
    struct capture_export_session session = session_of(5);
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_export_stamp(&session, now, block, two, 2));
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_export_skip(&session, two, 2));
    session = session_of(CAPTURE_EXPORT_IPFIX);
    session.struct_size--;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_export_stamp(&session, now, block, two, 2));
}

int main(void) {
    RUN(ipfix_counts_data_records);
    RUN(netflow_v9_counts_messages_and_has_an_uptime);
    RUN(netflow_v5_counts_flows_and_its_uptime_counts_from_the_records_base);
    RUN(a_v5_base_is_found_again_whatever_the_clock_says);
    RUN(sflow_counts_datagrams_and_says_the_agents_address);
    RUN(sflow_with_room_for_ipv6_takes_both_kinds_of_address);
    RUN(what_is_skipped_counts_as_if_it_had_left);
    RUN(a_refusal_leaves_the_sequence_and_the_bytes);
    return 0;
}
