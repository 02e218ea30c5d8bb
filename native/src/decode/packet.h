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
    uint8_t reserved;    /* 0 */
    uint16_t interface;  /* number of the capture's interface, 0: the first, or all of them merged into one */
};
static_assert(sizeof(struct flow_key) == 48, "the flow key is hashed as six 64-bit words");

enum packet_fragment {
    PACKET_WHOLE = 0,
    PACKET_FRAGMENT_FIRST = 1, /* offset 0, more to come: carries the ports */
    PACKET_FRAGMENT_LATER = 2, /* offset > 0: no transport header */
};

/* Where link-layer addresses stand from packet.link on. */
enum link_addresses {
    LINK_ADDRESSES_ETHERNET = 0, /* destination, source: IEEE 802.3, and the subframes of an 802.11 aggregate */
    LINK_ADDRESSES_SLL,          /* Linux cooked captures: the sender's only */
    LINK_ADDRESSES_SLL2,
    LINK_ADDRESSES_WIFI_DIRECT, /* IEEE 802.11, by To DS and From DS: neither, */
    LINK_ADDRESSES_WIFI_TO_DS,
    LINK_ADDRESSES_WIFI_FROM_DS,
    LINK_ADDRESSES_WIFI_BOTH,
};

struct packet {
    struct flow_key key;
    uint64_t hash;        /* of the canonical key; set by the worker */
    uint64_t ts_ns;       /* ns since the Unix epoch */
    uint64_t packet_id;   /* number within the worker, of files within the trace, from 1 */
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
    uint16_t inner_vlan_id; /* of the tag behind the outermost one, 0 = none */
    uint8_t link_addresses; /* enum link_addresses */
    uint8_t reserved[3];    /* 0: what packet_clear clears is a whole cache line */
    /* What follows the IP headers, for decode_tunnelled and the statistics; points into the frame. Of a PACKET_FRAGMENT_LATER
     * only payload_wire is set. */
    uint32_t payload_left; /* bytes captured */
    uint32_t payload_wire; /* bytes there were on the wire */
    const uint8_t *payload;
    /* The headers, for the statistics; they point into the frame. */
    const uint8_t *link; /* of the link layer that has addresses, right around the packet; NULL: it has none */
    const uint8_t *ip;   /* as many bytes as its fixed header has */
};
static_assert(sizeof(struct packet) == 128, "two cache lines a packet");

/* What the decoder counts on: everything 0 but the addresses, which every IP header sets whole, and the pointers, which whoever
 * decodes sets: `link` is NULL where no Ethernet header follows. */
static inline void packet_clear(struct packet *packet) {
    enum { FIRST = offsetof(struct packet, key.port), END = offsetof(struct packet, payload_left) };
    memset((uint8_t *)packet + FIRST, 0, END - FIRST);
}

/* One of the key's six 64-bit words. Loaded and stored one by one: a wider load of what was stored in pieces has to wait until
 * the stores have reached the cache. */
static inline uint64_t flow_key_word(const struct flow_key *key, int number) {
    uint64_t word;
    memcpy(&word, (const uint8_t *)key + 8 * number, sizeof(word));
    return word;
}

static inline void flow_key_xor_word(struct flow_key *key, int number, uint64_t with) {
    uint64_t word = flow_key_word(key, number) ^ with;
    memcpy((uint8_t *)key + 8 * number, &word, sizeof(word));
}

/* Puts the lower (address, port) first, as big-endian numbers, and notes which endpoint sent the packet. Without branches: which
 * way a packet goes cannot be predicted. */
static inline void packet_canonicalise(struct packet *packet) {
    enum { PORTS_SHIFT = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 0 : 32 }; /* of both ports in their word */
    struct flow_key *key = &packet->key;
    uint64_t source[2] = {flow_key_word(key, 0), flow_key_word(key, 1)};
    uint64_t destination[2] = {flow_key_word(key, 2), flow_key_word(key, 3)};
    unsigned __int128 from = (unsigned __int128)be64toh(source[0]) << 64 | be64toh(source[1]);
    unsigned __int128 to = (unsigned __int128)be64toh(destination[0]) << 64 | be64toh(destination[1]);
    bool swap = (from > to) | ((from == to) & (key->port[0] > key->port[1]));
    uint64_t mask = -(uint64_t)swap;
    uint64_t ports = (uint64_t)((uint32_t)(key->port[0] ^ key->port[1]) * 0x10001u) << PORTS_SHIFT;
    for (int half = 0; half < 2; half++) {
        uint64_t difference = (source[half] ^ destination[half]) & mask;
        flow_key_xor_word(key, half, difference);
        flow_key_xor_word(key, 2 + half, difference);
    }
    flow_key_xor_word(key, 4, ports & mask);
    packet->from = swap;
}

#endif
