/* SPDX-License-Identifier: Apache-2.0 */
/* jarvis.capture.v1 messages as bytes, fields in ascending order and left out when zero, so the bytes are what protobuf itself
 * writes. */
#ifndef JARVIS_FLOW_BATCH_H
#define JARVIS_FLOW_BATCH_H

#include "jarvis_capture.h"

enum {
    FLOW_BATCH_RECORD_MAX = 224,     /* one record with its tag and length */
    FLOW_BATCH_STATISTICS_MAX = 576, /* the same with statistics */
    FLOW_BATCH_TOKEN_MAX = 8 + 64 * 8,
    FLOW_BATCH_HEAD_MAX =
        64 + FLOW_BATCH_TOKEN_MAX, /* everything before the records, StreamFlowsResponse's tag and length included */
};

struct flow_batch_head {
    uint32_t shard;
    uint64_t first_sequence;
    uint64_t next_sequence;
    uint64_t base_time_ns;
    const uint8_t *token;
    uint32_t token_length;
};

/* FlowRecord as an element of FlowBatch.records, with the statistics unless NULL; returns the byte after the last. */
uint8_t *flow_batch_record(uint8_t *out, const struct capture_flow *flow, const struct capture_flow_statistics *statistics,
                           uint64_t base_time_ns);

/* The fields of FlowBatch before the records. */
uint8_t *flow_batch_head(uint8_t *out, const struct flow_batch_head *head);

/* StreamFlowsResponse.batch: tag and length of what follows. */
uint8_t *flow_batch_response(uint8_t *out, uint64_t batch_length);

#endif
