/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The floor under a meter of capture files: what reading the headers and touching the flows' memory costs without metering.
 *
 *     floor CAPTURE.pcap
 *
 * Maps the file, and in batches of 64 packets reads each record header and the packet's addresses and ports, from them picks one
 * of 2^20 records of 128 bytes (a table of the meter's size, in huge pages), asks for its two cache lines, and then adds to a
 * counter in each. No timeouts, no collisions, no decoding: packets of one flow meet in one record, and that is all. Native-order
 * pcap of Ethernet frames without tags only. Prints {"packets": N, "octets": IP bytes, "records": touched, "seconds": of the
 * loop}.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, RECORDS = 1 << 20, FILE_HEADER = 24, RECORD_HEADER = 16, ETHERNET = 14 };
enum { SHORTEST = ETHERNET + 44 };  /* up to the ports of IPv6 */
enum { ETHERTYPE_IPV6_LOW = 0xdd }; /* 0x86dd; IPv4 is 0x0800 */

struct record {
    uint64_t packets, unused[7]; /* a cache line each */
    uint64_t octets, unused_too[7];
};

struct file {
    const uint8_t *at, *end;
};

static void fail(const char *what, const char *path) {
    fprintf(stderr, "floor: %s %s: %s\n", path, what, errno ? strerror(errno) : "a native-order pcap file is needed");
    exit(1);
}

static struct file map_file(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0)
        fail("cannot be opened", path);
    if (status.st_size < FILE_HEADER)
        fail("is too short", path);
    uint8_t *base = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (base == MAP_FAILED)
        fail("cannot be mapped", path);
    madvise(base, (size_t)status.st_size, MADV_SEQUENTIAL);
    uint32_t magic;
    memcpy(&magic, base, sizeof magic);
    if (magic != 0xa1b23c4d && magic != 0xa1b2c3d4)
        fail("is of another format", path);
    return (struct file){base + FILE_HEADER, base + status.st_size};
}

static struct record *map_table(void) {
    void *table = mmap(NULL, sizeof(struct record) * RECORDS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (table == MAP_FAILED)
        fail("cannot be metered", "memory for the table");
    madvise(table, sizeof(struct record) * RECORDS, MADV_HUGEPAGE);
    return table;
}

static uint32_t load32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* The same record for both directions. Of an IPv6 address the last four bytes count. */
static uint32_t choose_record(const uint8_t *frame) {
    int v6 = frame[13] == ETHERTYPE_IPV6_LOW;
    uint32_t ports = load32(frame + (v6 ? 54 : 34));
    uint64_t hash = load32(frame + (v6 ? 34 : 26)) ^ load32(frame + (v6 ? 50 : 30));
    hash = hash * 0x9e3779b97f4a7c15u + (uint16_t)(ports ^ ports >> 16);
    return (uint32_t)(hash * 0xbf58476d1ce4e5b9u >> 44);
}

/* Reads up to 64 headers and asks for their records. Returns how many. */
static int read_headers(struct file *file, struct record *table, uint32_t *chosen, uint32_t *octets) {
    int count = 0;
    while (count < BATCH && file->end - file->at > RECORD_HEADER) {
        uint32_t length = load32(file->at + 8);
        if (length < SHORTEST || length > file->end - file->at - RECORD_HEADER)
            break;
        octets[count] = load32(file->at + 12) - ETHERNET;
        chosen[count] = choose_record(file->at + RECORD_HEADER);
        __builtin_prefetch(&table[chosen[count]].packets, 1);
        __builtin_prefetch(&table[chosen[count++]].octets, 1);
        file->at += RECORD_HEADER + length;
    }
    return count;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: floor CAPTURE.pcap\n");
        return 2;
    }
    struct file file = map_file(argv[1]);
    struct record *table = map_table();
    uint32_t chosen[BATCH], octets[BATCH];
    uint64_t packets = 0, sum = 0, touched = 0;
    struct timespec from, to;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    for (int count; (count = read_headers(&file, table, chosen, octets)) > 0; packets += (uint64_t)count) {
        for (int i = 0; i < count; i++) {
            table[chosen[i]].packets++;
            table[chosen[i]].octets += octets[i];
        }
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    if (file.at != file.end)
        fail("has a record that is too short to have its ports read, or cut", argv[1]);
    for (uint32_t i = 0; i < RECORDS; i++) {
        sum += table[i].octets;
        touched += table[i].packets != 0;
    }
    printf("{\"packets\": %llu, \"octets\": %llu, \"records\": %llu, \"seconds\": %.6f}\n", (unsigned long long)packets,
           (unsigned long long)sum, (unsigned long long)touched,
           (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9);
    return 0;
}
