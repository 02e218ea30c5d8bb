/* SPDX-License-Identifier: Apache-2.0 */
/* What the decoder knows of one IP packet, and the flow key inside it. */
#ifndef JARVIS_PACKET_H
#define JARVIS_PACKET_H

#include <assert.h>
#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The key of a bidirectional flow. 48 bytes without holes, because it is hashed and compared as six words.
 * From the decoder endpoint 0 is the source; packet_canonicalise puts the lower (address, port) first. */
struct flow_key {
    uint8_t addr[2][16]; /* network order; IPv4: the first 4 bytes, the rest 0 */
    uint16_t port[2];    /* host order; 0 but for TCP, UDP, SCTP */
    uint16_t vlan_id;    /* outermost tag, 0 = untagged */
    uint8_t protocol;    /* IANA number, after IPv6 extension headers */
    uint8_t ip_version;  /* 4 or 6; 0 marks a free record of the flow table */
    uint32_t tunnel_id;  /* inner flows: VNI, GRE key, TEID, ... of the tunnel that carries them, 0 where it has none */
    uint8_t tunnel_type; /* enum capture_tunnel_type; 0: not in a tunnel, or seen from outside */
    uint8_t reserved[3]; /* 0 */
};
static_assert(sizeof(struct flow_key) == 48, "the flow key is hashed as six 64-bit words");

enum packet_fragment {
    PACKET_WHOLE = 0,
    PACKET_FRAGMENT_FIRST = 1, /* offset 0, more to come: carries the ports */
    PACKET_FRAGMENT_LATER = 2, /* offset > 0: no transport header */
};

struct packet {
    struct flow_key key;
    uint64_t hash;        /* of the canonical key; set by the worker */
    uint64_t ts_ns;       /* ns since the Unix epoch */
    uint64_t packet_id;   /* number within the worker, from 1 */
    uint32_t octets;      /* IP total length */
    uint32_t fragment_id; /* IPv4 identification or the IPv6 fragment header's */
    uint16_t tcp_flags;   /* 12 bits: reserved, CWR .. FIN (IE 6) */
    uint16_t interface_index;
    uint8_t from;              /* which endpoint of the key sent it: 0 or 1 */
    uint8_t fragment;          /* enum packet_fragment */
    uint8_t fragment_protocol; /* next header after the IPv6 fragment header, which every fragment repeats; IPv4: the protocol */
    uint8_t dscp;
    uint8_t icmp_type;
    uint8_t icmp_code;
    /* What follows the IP headers, for decode_tunnelled; set unless fragment is PACKET_FRAGMENT_LATER. Points into the frame. */
    uint32_t payload_left; /* bytes captured */
    uint32_t payload_wire; /* bytes there were on the wire */
    const uint8_t *payload;
};

/* What the decoder counts on: everything 0 but the addresses, which every IP header sets whole, and the payload. */
static inline void packet_clear(struct packet *packet) {
    enum { FIRST = offsetof(struct packet, key.port), END = offsetof(struct packet, payload_left) };
    memset((uint8_t *)packet + FIRST, 0, END - FIRST);
}

/* As big-endian numbers: addresses first, then ports. */
static inline bool flow_key_source_is_lower(const struct flow_key *key) {
    uint64_t word[4]; /* source, destination */
    memcpy(word, key->addr, sizeof(word));
    if (word[0] != word[2])
        return be64toh(word[0]) < be64toh(word[2]);
    if (word[1] != word[3])
        return be64toh(word[1]) < be64toh(word[3]);
    return key->port[0] <= key->port[1];
}

/* Puts the lower (address, port) first and notes which endpoint sent the packet. */
static inline void packet_canonicalise(struct packet *packet) {
    struct flow_key *key = &packet->key;
    if (flow_key_source_is_lower(key))
        return;
    uint8_t addr[16];
    memcpy(addr, key->addr[0], sizeof(addr));
    memcpy(key->addr[0], key->addr[1], sizeof(addr));
    memcpy(key->addr[1], addr, sizeof(addr));
    uint16_t port = key->port[0];
    key->port[0] = key->port[1];
    key->port[1] = port;
    packet->from = 1;
}

#endif
