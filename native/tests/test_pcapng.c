/* SPDX-License-Identifier: Apache-2.0 */
/* The file backend on pcapng files. */
#include "capture_bytes.h"

static struct bytes content;
static struct seen seen;

static void section(bool big_endian) {
    content.big_endian = big_endian;
    put(&content, 0x0a0d0d0a, 4);
    put(&content, 28, 4);
    put(&content, 0x1a2b3c4d, 4);
    put(&content, 1, 2);
    put(&content, 0, 2);
    put(&content, UINT64_MAX, 8);
    put(&content, 28, 4);
}

static void begin(bool big_endian) {
    content.length = 0;
    section(big_endian);
}

/* `options`: bytes of whole options, NULL for none. */
static void interface(uint16_t link_type, uint32_t snaplen, const struct bytes *options) {
    uint32_t length = 20 + (options ? (uint32_t)options->length : 0);
    put(&content, 1, 4);
    put(&content, length, 4);
    put(&content, link_type, 2);
    put(&content, 0, 2);
    put(&content, snaplen, 4);
    if (options)
        put_bytes(&content, options->data, options->length);
    put(&content, length, 4);
}

static void packet_block(uint32_t type, uint32_t number, uint64_t ticks, uint32_t caplen, uint32_t wirelen, uint8_t first) {
    uint32_t padded = (caplen + 3) & ~3u;
    put(&content, type, 4);
    put(&content, 32 + padded, 4);
    if (type == 2) {
        put(&content, number, 2);
        put(&content, 9, 2); /* drops */
    } else {
        put(&content, number, 4);
    }
    put(&content, ticks >> 32, 4);
    put(&content, ticks & 0xffffffff, 4);
    put(&content, caplen, 4);
    put(&content, wirelen, 4);
    if (padded) {
        put(&content, first, 1);
        put_filler(&content, padded - 1);
    }
    put(&content, 32 + padded, 4);
}

static void simple_packet(uint32_t wirelen, uint32_t stored) {
    uint32_t padded = (stored + 3) & ~3u;
    put(&content, 3, 4);
    put(&content, 16 + padded, 4);
    put(&content, wirelen, 4);
    put_filler(&content, padded);
    put(&content, 16 + padded, 4);
}

static struct bytes *resolution(bool big_endian, uint8_t value, int64_t offset_seconds) {
    static struct bytes options;
    options.length = 0;
    options.big_endian = big_endian;
    put(&options, 2, 2); /* if_name, skipped */
    put(&options, 3, 2);
    put(&options, 0x00636261, 4);
    put(&options, 9, 2);
    put(&options, 1, 2);
    put_bytes(&options, (const uint8_t[]){value, 0, 0, 0}, 4);
    put(&options, 14, 2);
    put(&options, 8, 2);
    put(&options, (uint64_t)offset_seconds, 8);
    put(&options, 0, 4);
    return &options;
}

static void sections_of_either_byte_order_are_read(void) {
    for (int big_endian = 0; big_endian < 2; big_endian++) {
        begin(big_endian);
        interface(1, 0, NULL);
        packet_block(6, 0, 1700000000123456, 61, 1500, 0x77);
        read_bytes(&content, &seen);
        CHECK_EQUAL(BACKEND_END, seen.end);
        CHECK_EQUAL(1, seen.count);
        CHECK_EQUAL(1700000000123456000, seen.frames[0].ts_ns);
        CHECK_EQUAL(61, seen.frames[0].caplen);
        CHECK_EQUAL(1500, seen.frames[0].wirelen);
        CHECK_EQUAL(FRAME_TRUNCATED, seen.frames[0].flags);
        CHECK_EQUAL(1, seen.frames[0].interface_index);
        CHECK_EQUAL(0x77, seen.first_bytes[0]);
    }
}

static void each_section_has_its_own_byte_order_and_interfaces(void) {
    begin(false);
    interface(1, 0, NULL);
    interface(101, 0, NULL);
    packet_block(6, 1, 1, 20, 20, 0x45);
    section(true);
    interface(113, 0, NULL);
    packet_block(6, 0, 2, 20, 20, 0);
    read_bytes(&content, &seen);
    CHECK_EQUAL(2, seen.count);
    CHECK_EQUAL(101, seen.frames[0].link_type);
    CHECK_EQUAL(2, seen.frames[0].interface_index);
    CHECK_EQUAL(113, seen.frames[1].link_type);
    CHECK_EQUAL(1, seen.frames[1].interface_index);
    CHECK_EQUAL(2000, seen.frames[1].ts_ns);
}

static uint64_t time_of(bool big_endian, uint8_t tsresol, int64_t offset_seconds, uint64_t ticks) {
    begin(big_endian);
    interface(1, 0, resolution(big_endian, tsresol, offset_seconds));
    packet_block(6, 0, ticks, 20, 20, 0);
    read_bytes(&content, &seen);
    CHECK_EQUAL(1, seen.count);
    CHECK_EQUAL(0, seen.frames[0].flags);
    return seen.frames[0].ts_ns;
}

static void timestamps_follow_if_tsresol_and_if_tsoffset(void) {
    for (int big_endian = 0; big_endian < 2; big_endian++) {
        CHECK_EQUAL(1700000000123456789, time_of(big_endian, 9, 0, 1700000000123456789));
        CHECK_EQUAL(1700000000123000000, time_of(big_endian, 3, 0, 1700000000123));
        CHECK_EQUAL(7000000000, time_of(big_endian, 0, 0, 7));
        CHECK_EQUAL(1234567890, time_of(big_endian, 12, 0, 1234567890999));
        CHECK_EQUAL(0, time_of(big_endian, 29, 0, UINT64_MAX));
        CHECK_EQUAL(1500000000, time_of(big_endian, 0x80 | 32, 0, 3ull << 31));
        CHECK_EQUAL(7000000000, time_of(big_endian, 0x80, 0, 7));
        CHECK_EQUAL(0, time_of(big_endian, 0xff, 0, UINT64_MAX));
        CHECK_EQUAL(1700000000000000005, time_of(big_endian, 9, 1700000000, 5));
        CHECK_EQUAL(6000000000, time_of(big_endian, 6, -4, 10000000));
    }
}

static void obsolete_packet_blocks_are_read(void) {
    for (int big_endian = 0; big_endian < 2; big_endian++) {
        begin(big_endian);
        interface(1, 0, NULL);
        packet_block(2, 0, 5, 40, 41, 0x11);
        read_bytes(&content, &seen);
        CHECK_EQUAL(1, seen.count);
        CHECK_EQUAL(40, seen.frames[0].caplen);
        CHECK_EQUAL(41, seen.frames[0].wirelen);
        CHECK_EQUAL(0x11, seen.first_bytes[0]);
    }
}

static void simple_packets_are_cut_at_the_snaplen_and_take_the_time_of_the_one_before(void) {
    begin(false);
    interface(1, 70, NULL);
    packet_block(6, 0, 5, 40, 40, 0);
    simple_packet(1500, 70);
    simple_packet(33, 33);
    read_bytes(&content, &seen);
    CHECK_EQUAL(3, seen.count);
    CHECK_EQUAL(70, seen.frames[1].caplen);
    CHECK_EQUAL(1500, seen.frames[1].wirelen);
    CHECK_EQUAL(5000, seen.frames[1].ts_ns);
    CHECK_EQUAL(33, seen.frames[2].caplen);
    CHECK_EQUAL(0, seen.frames[2].flags);
}

static void unknown_blocks_are_skipped(void) {
    begin(false);
    put(&content, 0x0bad, 4);
    put(&content, 16, 4);
    put(&content, 0, 4);
    put(&content, 16, 4);
    interface(1, 0, NULL);
    put(&content, 0x80000001, 4); /* local use, empty */
    put(&content, 12, 4);
    put(&content, 12, 4);
    packet_block(6, 0, 5, 40, 40, 0);
    read_bytes(&content, &seen);
    CHECK_EQUAL(1, seen.count);
    CHECK_EQUAL(0, seen.frames[0].flags);
}

static void check_one_damaged(const char *cause) {
    read_bytes(&content, &seen);
    CHECK_EQUAL(BACKEND_END, seen.end);
    CHECK_EQUAL(2, seen.count);
    CHECK_EQUAL(0, seen.frames[0].flags);
    CHECK_EQUAL(FRAME_DAMAGED, seen.frames[1].flags);
    CHECK_EQUAL(CAPTURE_ERR_FILE, seen.error.code);
    if (!strstr(seen.error.message, cause))
        fprintf(stderr, "%s\n", seen.error.message);
    CHECK(strstr(seen.error.message, cause) != NULL);
}

static size_t begin_with_packet(void) {
    begin(false);
    interface(1, 0, NULL);
    packet_block(6, 0, 5, 40, 40, 0);
    return content.length;
}

static void a_file_cut_anywhere_in_a_block_ends_with_one_damaged_frame(void) {
    size_t whole = begin_with_packet();
    packet_block(6, 0, 6, 40, 40, 0);
    size_t all = content.length;
    for (size_t kept = whole + 1; kept < all; kept++) {
        content.length = kept;
        check_one_damaged(kept < whole + 12 ? "the file ends inside a block header" : "the file ends inside a block");
    }
}

static void damaged_blocks_end_the_file_with_their_cause(void) {
    size_t at = begin_with_packet();
    packet_block(6, 7, 6, 40, 40, 0);
    packet_block(6, 0, 6, 40, 40, 0);
    check_one_damaged("an interface that was not described");

    begin_with_packet();
    packet_block(6, 0, 6, 40, 40, 0);
    content.data[at + 20] = 41;
    check_one_damaged("a packet is longer than its block");

    begin_with_packet();
    packet_block(6, 0, 6, 40, 40, 0);
    content.data[content.length - 4] ^= 4;
    check_one_damaged("the two lengths of a block differ");

    begin_with_packet();
    put(&content, 6, 4);
    put(&content, 12, 4); /* long enough for a block, too short for a packet */
    put(&content, 12, 4);
    check_one_damaged("a block has an impossible length");

    begin_with_packet();
    put(&content, 5, 4);
    put(&content, 0, 4); /* would never end */
    put(&content, 0, 4);
    check_one_damaged("a block has an impossible length");

    begin_with_packet();
    put(&content, 0x0a0d0d0a, 4);
    put_filler(&content, 24);
    check_one_damaged("no byte-order magic");
}

static void packets_before_any_interface_are_damaged(void) {
    begin(false);
    simple_packet(40, 40);
    read_bytes(&content, &seen);
    CHECK_EQUAL(1, seen.count);
    CHECK_EQUAL(FRAME_DAMAGED, seen.frames[0].flags);
}

static void options_that_lie_about_their_length_are_not_read_past(void) {
    static struct bytes options;
    options.length = 0;
    put(&options, 14, 2);
    put(&options, 8, 2);
    put(&options, 0, 4); /* four of the eight bytes */
    begin(false);
    interface(1, 0, &options);
    packet_block(6, 0, 5, 40, 40, 0);
    read_bytes(&content, &seen);
    CHECK_EQUAL(1, seen.count);
    CHECK_EQUAL(5000, seen.frames[0].ts_ns);
}

static void a_damaged_section_header_is_refused_when_the_file_is_opened(void) {
    struct capture_error_info error;
    begin(false);
    content.data[8] = 0;
    refuse_bytes(&content, &error);
    CHECK(strstr(error.message, "no byte-order magic") != NULL);
    begin(false);
    content.data[12] = 2;
    refuse_bytes(&content, &error);
    CHECK(strstr(error.message, "version is not 1.x") != NULL);
    begin(false);
    content.length = 20;
    refuse_bytes(&content, &error);
    CHECK(strstr(error.message, "ends inside a section header") != NULL);
}

static void many_interfaces_keep_their_numbers(void) {
    begin(false);
    for (uint16_t i = 0; i < 500; i++)
        interface(i % 2 ? 1 : 101, 0, NULL);
    packet_block(6, 499, 1, 20, 20, 0);
    packet_block(6, 400, 1, 20, 20, 0);
    read_bytes(&content, &seen);
    CHECK_EQUAL(500, seen.frames[0].interface_index);
    CHECK_EQUAL(1, seen.frames[0].link_type);
    CHECK_EQUAL(401, seen.frames[1].interface_index);
    CHECK_EQUAL(101, seen.frames[1].link_type);
}

int main(void) {
    RUN(sections_of_either_byte_order_are_read);
    RUN(each_section_has_its_own_byte_order_and_interfaces);
    RUN(timestamps_follow_if_tsresol_and_if_tsoffset);
    RUN(obsolete_packet_blocks_are_read);
    RUN(simple_packets_are_cut_at_the_snaplen_and_take_the_time_of_the_one_before);
    RUN(unknown_blocks_are_skipped);
    RUN(a_file_cut_anywhere_in_a_block_ends_with_one_damaged_frame);
    RUN(damaged_blocks_end_the_file_with_their_cause);
    RUN(packets_before_any_interface_are_damaged);
    RUN(options_that_lie_about_their_length_are_not_read_past);
    RUN(a_damaged_section_header_is_refused_when_the_file_is_opened);
    RUN(many_interfaces_keep_their_numbers);
    return 0;
}
