/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/tcp_statistics.h"

#include "decode/transport.h"
#include "flow/flow_expiry.h"

enum tcp_seen { TCP_SEEN_SYN = 1, TCP_SEEN_SEQUENCE = 2, TCP_SEEN_ACK = 4 };
enum tcp_handshake { TCP_HANDSHAKE_NONE = 0, TCP_HANDSHAKE_SYN = 1, TCP_HANDSHAKE_SYNACK = 2, TCP_HANDSHAKE_DONE = 3 };

enum {
    TCP_HEADER_READ = 16, /* bytes up to the window */
    TCP_HEADER_MIN = 20,
    TCP_OPTION_END = 0,
    TCP_OPTION_NOP = 1,
    TCP_OPTION_SCALE = 3,
    TCP_SCALE_MAX = 14, /* RFC 7323 2.3: greater ones count as 14 */
    TCP_SCALE_NONE = 0xff,
    TCP_WINDOW_MOST = 1 << 30, /* what lies further back than the largest window is no gap any more */
};

/* What the header of one segment says. */
struct segment {
    uint32_t sequence, ack, window;
    uint32_t payload; /* bytes of data */
    uint32_t length;  /* of sequence numbers: data, SYN and FIN */
    uint16_t flags;
    uint8_t scale;
};

static bool before(uint32_t a, uint32_t b) {
    return (int32_t)(a - b) < 0;
}

static uint64_t passed(uint64_t from_ns, uint64_t to_ns) {
    return to_ns > from_ns ? to_ns - from_ns : 0;
}

/* Of a SYN: the window scale option, as far as the header was captured. */
static uint8_t scale_option(const struct packet *packet) {
    const uint8_t *at = packet->payload;
    uint32_t end = (at[12] >> 4) * 4u;
    if (end > packet->payload_left)
        end = packet->payload_left;
    for (uint32_t i = TCP_HEADER_MIN; i < end && at[i] != TCP_OPTION_END;) {
        if (at[i] == TCP_OPTION_NOP) {
            i++;
            continue;
        }
        if (i + 1 >= end || at[i + 1] < 2)
            break;
        if (at[i] == TCP_OPTION_SCALE && i + 2 < end)
            return at[i + 2] < TCP_SCALE_MAX ? at[i + 2] : TCP_SCALE_MAX;
        i += at[i + 1];
    }
    return TCP_SCALE_NONE;
}

static bool read_segment(const struct packet *packet, uint32_t payload, struct segment *out) {
    if (packet->fragment == PACKET_FRAGMENT_LATER || packet->payload_left < TCP_HEADER_READ)
        return false;
    const uint8_t *at = packet->payload;
    uint16_t flags = packet->tcp_flags;
    *out = (struct segment){
        .sequence = load_be32(at + 4),
        .ack = load_be32(at + 8),
        .window = load_be16(at + 14),
        .payload = payload,
        .length = payload + ((flags & TCP_SYN) != 0) + ((flags & TCP_FIN) != 0),
        .flags = flags,
        .scale = flags & TCP_SYN ? scale_option(packet) : TCP_SCALE_NONE,
    };
    return true;
}

static void drop_oldest_gap(struct tcp_side *side) {
    side->gaps--;
    memmove(&side->gap[0], &side->gap[1], side->gaps * sizeof(side->gap[0]));
}

static void add_gap(struct tcp_side *side, uint32_t start, uint32_t end) {
    if (side->gaps == TCP_GAPS)
        drop_oldest_gap(side);
    side->gap[side->gaps++] = (struct tcp_gap){start, end};
}

/* Takes [start, end) out of the gaps; true when some of it lay in one. */
static bool fill_gaps(struct tcp_side *side, uint32_t start, uint32_t end) {
    struct tcp_gap old[TCP_GAPS];
    uint8_t count = side->gaps;
    bool filled = false;
    memcpy(old, side->gap, sizeof(old));
    side->gaps = 0;
    for (uint8_t i = 0; i < count; i++) {
        bool apart = !before(start, old[i].end) || !before(old[i].start, end);
        filled = filled || !apart;
        if (apart || before(old[i].start, start))
            add_gap(side, old[i].start, apart ? old[i].end : start);
        if (!apart && before(end, old[i].end))
            add_gap(side, end, old[i].end);
    }
    return filled;
}

/* One byte of data right before the next sequence number, all of which the receiver has acknowledged (RFC 9293 3.8.4). */
static bool is_keepalive(const struct tcp_side *side, const struct tcp_side *other, const struct segment *segment) {
    return segment->length == 1 && segment->payload == 1 && segment->sequence + 1 == side->next && other->seen & TCP_SEEN_ACK &&
           !before(other->ack, side->next);
}

/* New data, a retransmission, or what fills a gap. */
static void count_sequence(struct tcp_side *side, const struct tcp_side *other, const struct segment *segment) {
    uint32_t start = segment->sequence, end = start + segment->length;
    if (!(side->seen & TCP_SEEN_SEQUENCE)) {
        side->next = end;
        side->seen |= TCP_SEEN_SEQUENCE;
        return;
    }
    if (!segment->length)
        return;
    if (!before(side->next, end)) {
        if (side->gaps && fill_gaps(side, start, end))
            side->out_of_order++;
        else if (!is_keepalive(side, other, segment))
            side->retransmissions++;
        return;
    }
    while (side->gaps && end - side->gap[0].start > TCP_WINDOW_MOST)
        drop_oldest_gap(side);
    if (before(side->next, start))
        add_gap(side, side->next, start);
    else if (side->gaps)
        fill_gaps(side, start, end);
    side->next = end;
}

/* How far the window field is to be shifted: by the options of both SYNs, or as far as may be when one was not seen. */
static uint32_t window_shift(const struct tcp_side *side, const struct tcp_side *other, const struct segment *segment) {
    if (segment->flags & TCP_SYN)
        return 0;
    if (!(side->seen & other->seen & TCP_SEEN_SYN))
        return TCP_SCALE_MAX;
    return side->scale == TCP_SCALE_NONE || other->scale == TCP_SCALE_NONE ? 0 : side->scale;
}

static void count_window(struct tcp_side *side, struct tcp_side *other, const struct segment *segment) {
    if (!segment->window)
        side->zero_windows++;
    if (!(segment->flags & TCP_ACK))
        return;
    uint32_t edge = segment->ack + (segment->window << window_shift(side, other, segment));
    bool first = !(side->seen & TCP_SEEN_ACK);
    if (first || before(side->ack, segment->ack))
        side->ack = segment->ack;
    if (first || before(side->edge, edge))
        side->edge = edge;
    side->seen |= TCP_SEEN_ACK;
    /* What the receiver has cannot come for the first time any more: it was lost to the capture, not on the way. */
    while (other->gaps && !before(side->ack, other->gap[0].end))
        drop_oldest_gap(other);
}

/* A SYN with another number than the last one opens another connection between the same ports. */
static void forget_connection(struct tcp_statistics *tcp) {
    for (int i = 0; i < 2; i++) {
        tcp->side[i].gaps = 0;
        tcp->side[i].seen = 0;
    }
    tcp->handshake = TCP_HANDSHAKE_NONE;
}

static void count_syn(struct tcp_statistics *tcp, const struct packet *packet, const struct segment *segment) {
    struct tcp_side *side = &tcp->side[packet->from], *other = &tcp->side[!packet->from];
    bool again = side->seen & TCP_SEEN_SYN && side->initial == segment->sequence;
    bool answer = segment->flags & TCP_ACK;
    bool answers =
        answer && other->seen & TCP_SEEN_SYN && before(other->initial, segment->ack) && !before(other->next, segment->ack);
    if (!again && side->seen && !answers)
        forget_connection(tcp);
    else if (!again)
        side->seen = side->gaps = 0;
    side->initial = segment->sequence;
    side->scale = segment->scale;
    side->seen |= TCP_SEEN_SYN;
    if (!answer && tcp->handshake <= TCP_HANDSHAKE_SYN) {
        tcp->handshake = TCP_HANDSHAKE_SYN;
        tcp->initiator = packet->from;
        tcp->handshake_ns = packet->ts_ns;
    } else if (answers && tcp->initiator != packet->from) {
        if (tcp->handshake == TCP_HANDSHAKE_SYN)
            tcp->syn_to_synack_ns = passed(tcp->handshake_ns, packet->ts_ns);
        else if (tcp->handshake != TCP_HANDSHAKE_SYNACK)
            return;
        tcp->handshake = TCP_HANDSHAKE_SYNACK;
        tcp->handshake_ns = packet->ts_ns;
    }
}

static void count_handshake_ack(struct tcp_statistics *tcp, const struct packet *packet, const struct segment *segment) {
    const struct tcp_side *responder = &tcp->side[!packet->from];
    if (tcp->initiator != packet->from || !(segment->flags & TCP_ACK) || !before(responder->initial, segment->ack))
        return;
    tcp->synack_to_ack_ns = passed(tcp->handshake_ns, packet->ts_ns);
    tcp->handshake = TCP_HANDSHAKE_DONE;
}

/* RFC 9293 3.10.7.4, seen from outside: in the window that the receiver was seen to announce; a FIN also when its acknowledgement
 * was seen before it. A receiver that has sent nothing but its SYN takes a RST that acknowledges it (3.10.7.3); of one that was
 * not seen at all nothing is known, and the flags are believed. */
static bool is_acceptable(const struct tcp_side *receiver, const struct segment *segment) {
    if (!(receiver->seen & TCP_SEEN_ACK)) {
        if (!(segment->flags & TCP_RST) || !(receiver->seen & TCP_SEEN_SYN))
            return true;
        return segment->flags & TCP_ACK && before(receiver->initial, segment->ack) && !before(receiver->next, segment->ack);
    }
    uint32_t at = segment->sequence;
    if (!(segment->flags & TCP_RST)) {
        at += segment->length - 1;
        if (at + 1 == receiver->ack)
            return true;
    }
    return at - receiver->ack <= receiver->edge - receiver->ack;
}

bool tcp_statistics_count(struct tcp_statistics *tcp, const struct packet *packet, uint32_t payload) {
    struct segment segment;
    if (!read_segment(packet, payload, &segment))
        return true;
    struct tcp_side *side = &tcp->side[packet->from], *other = &tcp->side[!packet->from];
    if (segment.flags & TCP_RST)
        return is_acceptable(other, &segment);
    if (segment.flags & TCP_SYN)
        count_syn(tcp, packet, &segment);
    else if (tcp->handshake == TCP_HANDSHAKE_SYNACK)
        count_handshake_ack(tcp, packet, &segment);
    count_sequence(side, other, &segment);
    count_window(side, other, &segment);
    return !(segment.flags & TCP_FIN) || is_acceptable(other, &segment);
}

void tcp_statistics_carry(struct tcp_statistics *tcp) {
    for (int i = 0; i < 2; i++) {
        struct tcp_side *side = &tcp->side[i];
        side->retransmissions = side->out_of_order = side->zero_windows = 0;
    }
    tcp->syn_to_synack_ns = tcp->synack_to_ack_ns = 0;
}
