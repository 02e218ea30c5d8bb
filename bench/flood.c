/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes captures of UDP flows in 42-byte frames, a microsecond apart, for bench/floods.py:
 *
 *     flood ordinary|chosen|distinct PACKETS FLOWS OUT.pcap
 *
 * ordinary, chosen   each packet belongs to one of FLOWS flows, drawn at random (the same draw for both). Keys of `ordinary` are
 *                    random; those of `chosen` all have the same last 24 bits of FNV-1a (native/tests/chosen_keys.h)
 * distinct           a random key a packet, of some 2^60: hardly two are the same; FLOWS is not used
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../native/tests/chosen_keys.h"

enum { RECORD_HEADER = 16, FRAME = 42, PACKETS_MAX = 100000000, FLOWS_MAX = 16777216 };

struct record {
    uint32_t seconds, nanoseconds, captured, length;
    uint8_t frame[FRAME];
} __attribute__((packed));

static void fail(const char *what) {
    fprintf(stderr, "flood: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t mix(uint64_t z) { /* splitmix64 */
    z = (z + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static struct chosen_key random_key(uint64_t number) {
    uint64_t bits = mix(number);
    return (struct chosen_key){.low_address = 0x0a000000u | (bits & 0xffffff),
                               .high_address = 0xac100000u | (bits >> 24 & 0xff),
                               .low_port = (uint16_t)(1024 | bits >> 32),
                               .high_port = (uint16_t)(bits >> 48)};
}

static struct chosen_key *make_keys(int chosen, uint32_t flows) {
    struct chosen_key *keys = malloc(sizeof(*keys) * flows);
    struct chosen_keys maker = {0};
    if (!keys || (chosen && !chosen_keys_begin(&maker)))
        fail("the keys");
    for (uint32_t i = 0; i < flows; i++)
        keys[i] = chosen ? chosen_keys_next(&maker) : random_key(i);
    chosen_keys_end(&maker);
    return keys;
}

static void put_be(uint8_t *at, uint32_t value, int bytes) {
    for (int i = bytes; i-- > 0; value >>= 8)
        at[i] = (uint8_t)value;
}

static void write_packet(FILE *out, uint32_t number, const struct chosen_key *key) {
    static struct record record = {
        .captured = FRAME, .length = FRAME, .frame = {2,    0, 0, 0,          0, 2, 2, 0, 0,  0,  0, 1, 8, 0, /* Ethernet */
                                                      0x45, 0, 0, FRAME - 14, 0, 0, 0, 0, 64, 17, 0, 0,       /* IPv4 */
                                                      0,    0, 0, 0,          0, 0, 0, 0, 0,  0,  0, 0, 0, 8, 0, 0}}; /* UDP */
    record.seconds = 1700000000 + number / 1000000;
    record.nanoseconds = number % 1000000 * 1000;
    put_be(record.frame + 26, key->low_address, 4);
    put_be(record.frame + 30, key->high_address, 4);
    put_be(record.frame + 34, key->low_port, 2);
    put_be(record.frame + 36, key->high_port, 2);
    if (fwrite(&record, sizeof(record), 1, out) != 1)
        fail("the capture cannot be written");
}

int main(int argc, char **argv) {
    long packets = argc == 5 ? atol(argv[2]) : 0, flows = argc == 5 ? atol(argv[3]) : 0;
    int distinct = argc == 5 && !strcmp(argv[1], "distinct"), chosen = argc == 5 && !strcmp(argv[1], "chosen");
    if (packets < 1 || packets > PACKETS_MAX || flows < 1 || flows > FLOWS_MAX ||
        (!distinct && !chosen && strcmp(argv[1], "ordinary"))) {
        fprintf(stderr, "usage: flood ordinary|chosen|distinct PACKETS(1..%d) FLOWS(1..%d) OUT.pcap\n", PACKETS_MAX, FLOWS_MAX);
        return 2;
    }
    struct chosen_key *keys = make_keys(chosen, distinct ? 1 : (uint32_t)flows);
    const uint32_t header[6] = {0xa1b23c4d, 2 | 4 << 16, 0, 0, 262144, 1};
    FILE *out = fopen(argv[4], "wb");
    if (!out || fwrite(header, sizeof(header), 1, out) != 1)
        fail(argv[4]);
    setvbuf(out, NULL, _IOFBF, 1 << 20);
    for (uint32_t i = 0; i < (uint32_t)packets; i++) {
        /* each flow at least once, then at random */
        struct chosen_key key = distinct ? random_key(i) : keys[i < (uint32_t)flows ? i : mix(i) % (uint64_t)flows];
        write_packet(out, i, &key);
    }
    if (fclose(out) != 0)
        fail(argv[4]);
    free(keys);
    return 0;
}
