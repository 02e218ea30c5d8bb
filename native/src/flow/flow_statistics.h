/* SPDX-License-Identifier: Apache-2.0 */
/* The optional statistics of one worker's flows: an array each, parallel to the table's records and only where it was asked for.
 * The table calls begin, count and export with a record's number; nothing here allocates after init. Single-threaded.
 * Definitions: docs/flow-semantics.md. */
#ifndef JARVIS_FLOW_STATISTICS_H
#define JARVIS_FLOW_STATISTICS_H

#include "decode/packet.h"
#include "flow/flow_record.h"
#include "flow/header_statistics.h"
#include "flow/tcp_statistics.h"
#include "jarvis_capture.h"
#include "prefetch.h"

enum {
    STATISTICS_ALL = CAPTURE_STATISTICS_TCP | CAPTURE_STATISTICS_SIZES | CAPTURE_STATISTICS_INTERVALS | CAPTURE_STATISTICS_HEADERS
};

/* Exact sums of integers; how many they are, the flow's packets tell. By endpoint of the flow key, as flow_record.way. */
struct size_statistics {
    struct size_sums {
        unsigned __int128 squares;
        uint64_t sum;
        uint32_t min, max;
    } side[2];
};

struct interval_statistics {
    struct interval_sums {
        unsigned __int128 squares;
        uint64_t sum, min, max;
        uint64_t last_ns; /* of the packet before */
    } side[2];
};

struct flow_statistics {
    uint32_t kinds; /* enum capture_statistics, or'ed; 0: there is nothing to keep */
    uint32_t flows;
    struct tcp_statistics *tcp; /* NULL: not kept */
    struct size_statistics *sizes;
    struct interval_statistics *intervals;
    struct header_statistics *headers;
};

/* False: no memory; destroy must still be called. */
bool flow_statistics_init(struct flow_statistics *statistics, uint32_t kinds, uint32_t flows);
void flow_statistics_destroy(struct flow_statistics *statistics);

/* What `kinds` of `flows` flows take. */
uint64_t flow_statistics_size(uint32_t kinds, uint32_t flows);

/* Begins a record. carry: the record before it, in this place, was of the same connection, which goes on. */
void flow_statistics_begin(struct flow_statistics *statistics, uint32_t number, bool carry);

/* Counts a packet that the record has counted already. False: its FIN or RST is not to be believed. */
bool flow_statistics_count(struct flow_statistics *statistics, uint32_t number, const struct flow_record *record,
                           const struct packet *packet);

/* The public form; sets every byte of it. */
void flow_statistics_export(const struct flow_statistics *statistics, uint32_t number, const struct flow_record *record,
                            struct capture_flow_statistics *out);

/* Asks for the memory that flow_statistics_count will touch. */
static inline void flow_statistics_prefetch(const struct flow_statistics *statistics, uint32_t number) {
    if (statistics->tcp) {
        for (size_t at = 0; at < sizeof(statistics->tcp[0]); at += 64)
            prefetch_line((const char *)&statistics->tcp[number] + at);
    }
    if (statistics->sizes)
        prefetch_line(&statistics->sizes[number]);
    if (statistics->intervals) {
        prefetch_line(&statistics->intervals[number]);
        prefetch_line((const char *)&statistics->intervals[number] + 64);
    }
    if (statistics->headers) {
        prefetch_line(&statistics->headers[number].side[0]);
        prefetch_line(&statistics->headers[number].side[1]);
    }
}

#endif
