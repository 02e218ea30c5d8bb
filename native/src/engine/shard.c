/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/shard.h"

#include "decode/cursor.h"
#include "decode/transport.h"

enum {
    ETHERTYPE_IPV4 = 0x0800,
    ETHERTYPE_IPV6 = 0x86dd,
    ETHERTYPE_VLAN = 0x8100,
    ETHERTYPE_SERVICE_VLAN = 0x88a8,
    LINK_ETHERNET = 1,
    LINK_RAW = 101,
    IPV4_HEADER_MIN = 20,
    IPV4_PROTOCOL_AT = 9,
    IPV4_ADDRESSES_AT = 12,
    IPV6_HEADER = 40,
    IPV6_NEXT_AT = 6,
    IPV6_ADDRESSES_AT = 8,
    QUICK_TAGS = 2,
};

static const uint64_t MASK = 0x9e3779b97f4a7c15, FACTOR = 0xbf58476d1ce4e5b9; /* odd, with about as many ones as zeros */

static inline uint64_t load_word(const uint8_t *at) {
    uint64_t word;
    memcpy(&word, at, sizeof(word));
    return word;
}

/* A product, because sum and exclusive or are the same for many pairs of addresses that were counted up together. */
static inline uint32_t shard_of_pair(uint64_t a, uint64_t b, uint32_t count) {
    unsigned __int128 product = (unsigned __int128)(a ^ MASK) * (b ^ MASK);
    uint64_t mixed = ((uint64_t)product ^ (uint64_t)(product >> 64)) * FACTOR;
    return (uint32_t)((mixed >> 32) * count >> 32);
}

static inline uint32_t shard_of_ipv4(const uint8_t *source, const uint8_t *destination, uint32_t count) {
    uint32_t a, b;
    memcpy(&a, source, sizeof(a));
    memcpy(&b, destination, sizeof(b));
    return shard_of_pair(a, b, count);
}

static inline uint32_t shard_of_ipv6(const uint8_t *source, const uint8_t *destination, uint32_t count) {
    uint64_t a = load_word(source) * FACTOR + load_word(source + 8);
    uint64_t b = load_word(destination) * FACTOR + load_word(destination + 8);
    return shard_of_pair(a, b, count);
}

uint32_t shard_of_key(const struct flow_key *key, uint32_t count) {
    return key->ip_version == 4 ? shard_of_ipv4(key->addr[0], key->addr[1], count)
                                : shard_of_ipv6(key->addr[0], key->addr[1], count);
}

/* Where the IP header of the usual frames begins, and by its version that it is one; NULL: not a usual frame. */
static inline const uint8_t *find_ip(const struct frame *frame, uint32_t *left, uint16_t *type) {
    const uint8_t *at = frame->data, *end = at + frame->caplen;
    if (frame->link_type == LINK_RAW && frame->caplen >= IPV4_HEADER_MIN) {
        *left = frame->caplen;
        *type = at[0] >> 4 == 4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6;
        return at;
    }
    if (frame->link_type != LINK_ETHERNET || frame->caplen < 14 + 4 * QUICK_TAGS + IPV4_HEADER_MIN)
        return NULL;
    *type = load_be16(at + 12);
    at += 14;
    for (int tags = 0; tags < QUICK_TAGS && (*type == ETHERTYPE_VLAN || *type == ETHERTYPE_SERVICE_VLAN); tags++, at += 4)
        *type = load_be16(at + 2);
    *left = (uint32_t)(end - at);
    return at;
}

/* Where the decoder would find the same addresses: IP straight after the link layer. A TCP packet is no tunnel; what else is
 * would take the decoder to tell. False: it takes the decoder. */
static inline bool look(const struct frame *frame, uint32_t count, bool inner, uint32_t *shard) {
    uint32_t left = 0;
    uint16_t type = 0;
    const uint8_t *ip = find_ip(frame, &left, &type);
    if (!ip)
        return false;
    if (type == ETHERTYPE_IPV4 && ip[0] >> 4 == 4 && (!inner || ip[IPV4_PROTOCOL_AT] == IP_PROTOCOL_TCP)) {
        *shard = shard_of_ipv4(ip + IPV4_ADDRESSES_AT, ip + IPV4_ADDRESSES_AT + 4, count);
        return true;
    }
    if (type == ETHERTYPE_IPV6 && left >= IPV6_HEADER && ip[0] >> 4 == 6 && (!inner || ip[IPV6_NEXT_AT] == IP_PROTOCOL_TCP)) {
        *shard = shard_of_ipv6(ip + IPV6_ADDRESSES_AT, ip + IPV6_ADDRESSES_AT + 16, count);
        return true;
    }
    return false;
}

static __attribute__((noinline)) uint32_t shard_of_decoded(const struct frame *frame, uint32_t count, bool inner) {
    struct packet packet, inside;
    if (frame->flags & FRAME_DAMAGED || decode_frame(frame, &packet) != DECODE_IP)
        return 0;
    bool tunnelled = inner && decode_tunnelled(&packet, &inside);
    return shard_of_key(tunnelled ? &inside.key : &packet.key, count);
}

uint32_t shard_of_frame(const struct frame *frame, uint32_t count, bool inner) {
    uint32_t shard;
    return __builtin_expect(look(frame, count, inner, &shard), 1) ? shard : shard_of_decoded(frame, count, inner);
}

/* The usual frame's shard without a branch on what it holds, IPv4 or IPv6: which is next cannot be predicted. False: look again.
 */
static inline bool glance(const struct frame *frame, uint32_t count, uint32_t *shard) {
    const uint8_t *ip = frame->data + 14;
    if (frame->link_type != LINK_ETHERNET || frame->caplen < 14 + IPV6_HEADER)
        return false;
    uint16_t type = load_be16(ip - 2);
    uint64_t four = -(uint64_t)((type == ETHERTYPE_IPV4) & (ip[0] >> 4 == 4));
    uint64_t six = -(uint64_t)((type == ETHERTYPE_IPV6) & (ip[0] >> 4 == 6));
    uint32_t a4, b4;
    memcpy(&a4, ip + IPV4_ADDRESSES_AT, sizeof(a4));
    memcpy(&b4, ip + IPV4_ADDRESSES_AT + 4, sizeof(b4));
    uint64_t a = load_word(ip + IPV6_ADDRESSES_AT) * FACTOR + load_word(ip + IPV6_ADDRESSES_AT + 8);
    uint64_t b = load_word(ip + IPV6_ADDRESSES_AT + 16) * FACTOR + load_word(ip + IPV6_ADDRESSES_AT + 24);
    *shard = shard_of_pair((a4 & four) | (a & ~four), (b4 & four) | (b & ~four), count);
    return four | six;
}

void shard_of_batch(const void *context, const struct frame_batch *batch, uint8_t *shards) {
    const struct shard *shard = context;
    for (uint32_t i = 0; i < batch->count; i++) {
        uint32_t of;
        if (__builtin_expect(shard->inner || !glance(&batch->frames[i], shard->count, &of), 0))
            of = shard_of_frame(&batch->frames[i], shard->count, shard->inner);
        shards[i] = (uint8_t)of;
    }
}

/* Half of the frames are another's, in no order that a processor could predict: each is copied, and the kept ones stay. */
void shard_keep(const struct shard *shard, struct frame_batch *batch, struct shard_batch *out) {
    uint32_t kept = 0;
    uint64_t newest = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        struct frame frame = batch->frames[i];
        uint32_t of;
        if (__builtin_expect(!look(&frame, shard->count, shard->inner, &of), 0))
            of = shard_of_decoded(&frame, shard->count, shard->inner);
        uint64_t ts_ns = frame.flags & FRAME_DAMAGED ? 0 : frame.ts_ns; /* damaged frames have no time */
        newest = ts_ns > newest ? ts_ns : newest;
        batch->frames[kept] = frame;
        out->places[kept] = (uint16_t)i;
        kept += of == shard->number;
    }
    out->span = batch->count;
    out->newest_ns = newest;
    batch->count = kept;
}
