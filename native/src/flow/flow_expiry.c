/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/flow_expiry.h"

#include "decode/transport.h"

static uint64_t add_saturated(uint64_t a, uint64_t b) {
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static bool timed(const struct flow_table_config *config) {
    return config->idle_timeout_ns || config->active_timeout_ns;
}

/* The first of idle, active and linger decides, so that the reason does not depend on when the table comes to look. */
uint64_t flow_deadline(const struct flow_table_config *config, const struct flow_record *record, uint8_t *reason) {
    uint64_t deadline = UINT64_MAX;
    uint8_t why = CAPTURE_FLOW_END_NONE;
    if (record->state == FLOW_STATE_REMAINDER) {
        uint64_t kept = config->idle_timeout_ns ? config->idle_timeout_ns : config->active_timeout_ns;
        if (reason)
            *reason = CAPTURE_FLOW_END_IDLE;
        return add_saturated(record->last_ns, kept + 1);
    }
    if (config->idle_timeout_ns) {
        /* idle is over when more than the timeout has passed, active when the timeout has */
        deadline = add_saturated(record->last_ns, config->idle_timeout_ns + 1);
        why = CAPTURE_FLOW_END_IDLE;
    }
    if (config->active_timeout_ns) {
        uint64_t active = add_saturated(record->start_ns, config->active_timeout_ns);
        if (active < deadline) {
            deadline = active;
            why = CAPTURE_FLOW_END_ACTIVE;
        }
    }
    if (record->state == CAPTURE_FLOW_STATE_CLOSED && timed(config)) {
        uint64_t closed = add_saturated(record->start_ns, record->closed_after_ms * 1000000ull);
        uint64_t linger = add_saturated(closed, FLOW_LINGER_NS);
        if (linger < deadline)
            deadline = linger;
        why = CAPTURE_FLOW_END_DETECTED;
    }
    if (reason)
        *reason = why;
    return deadline;
}

uint8_t flow_ended_by(const struct flow_table_config *config, const struct flow_record *record, uint64_t now_ns) {
    uint8_t reason;
    return now_ns >= flow_deadline(config, record, &reason) ? reason : CAPTURE_FLOW_END_NONE;
}

uint8_t flow_ended_before(const struct flow_table_config *config, const struct flow_record *record, const struct packet *packet) {
    if (record->state == CAPTURE_FLOW_STATE_CLOSED && (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN && timed(config))
        return CAPTURE_FLOW_END_DETECTED;
    if (config->idle_timeout_ns && packet->ts_ns < record->last_ns && record->last_ns - packet->ts_ns > config->idle_timeout_ns)
        return record->state == CAPTURE_FLOW_STATE_CLOSED ? CAPTURE_FLOW_END_DETECTED : CAPTURE_FLOW_END_FORCED;
    return flow_ended_by(config, record, packet->ts_ns);
}

static uint32_t milliseconds_since(uint64_t start_ns, uint64_t now_ns) {
    uint64_t passed = now_ns > start_ns ? (now_ns - start_ns) / 1000000 : 0;
    return passed > UINT32_MAX ? UINT32_MAX : (uint32_t)passed;
}

bool flow_leaves_remainder(const struct flow_table_config *config, const struct flow_record *record, uint8_t reason) {
    bool followed = config->statistics & CAPTURE_STATISTICS_TCP && record->key.protocol == IP_PROTOCOL_TCP &&
                    record->state == CAPTURE_FLOW_STATE_ACTIVE;
    return reason == CAPTURE_FLOW_END_ACTIVE && (record->state == CAPTURE_FLOW_STATE_CLOSING || followed);
}

bool flow_follow_tcp(struct flow_record *record, const struct packet *packet) {
    if (record->state == CAPTURE_FLOW_STATE_CLOSED)
        return false;
    if (packet->tcp_flags & TCP_FIN)
        record->fin_from |= (uint8_t)(1u << packet->from);
    if (record->fin_from != 3 && !(packet->tcp_flags & TCP_RST)) {
        record->state = CAPTURE_FLOW_STATE_CLOSING;
        return false;
    }
    record->state = CAPTURE_FLOW_STATE_CLOSED;
    record->closed_after_ms = milliseconds_since(record->start_ns, packet->ts_ns);
    return true;
}
