/* SPDX-License-Identifier: Apache-2.0 */
/* IEEE 802.11 data frames with LLC/SNAP, as monitor-mode captures hold them, and the radiotap (https://www.radiotap.org)
 * or PPI header before them. Fields are little-endian. Of an aggregate (A-MSDU) the first packet is read. */
#include "decode/cursor.h"

enum frame_control {
    FC_TYPE_MASK = 0x0c,
    FC_TYPE_DATA = 0x08,
    FC_NO_DATA = 0x40, /* subtype bit: null frames, CF-Ack without data */
    FC_QOS = 0x80,     /* subtype bit */
    FC_TO_DS = 0x01,   /* from here on in the second byte */
    FC_FROM_DS = 0x02,
    FC_PROTECTED = 0x40,
    FC_ORDER = 0x80, /* in QoS frames: an HT control field follows */
};

enum {
    HEADER_THREE_ADDRESSES = 24,
    SEQUENCE_CONTROL_AT = 22,
    FRAGMENT_NUMBER = 0x0f,
    ADDRESS = 6,
    QOS_CONTROL = 2,
    QOS_AMSDU = 0x80,
    HT_CONTROL = 4,
    AMSDU_SUBHEADER = 14, /* addresses and length */
    LLC_LENGTH = 0,       /* decode_ethertype: an LLC header comes first */
    RADIOTAP_HEADER = 8,
    RADIOTAP_MORE_WORDS = 0x80,
    RADIOTAP_TSFT = 0x01,
    RADIOTAP_FLAGS = 0x02,
    RADIOTAP_DATA_PAD = 0x20, /* in the flags field: the 802.11 header is padded to 4 bytes */
    RADIOTAP_MAX_WORDS = 32,
    PPI_HEADER = 8,
    PPI_WIFI = 105, /* the DLT_ value of what follows */
};

/* IEEE 802.11-2020 table 9-30: which of the header's addresses are the sender's and the receiver's, or else of stations on the
 * way. In an aggregate they stand before each packet, as in Ethernet. */
static void note_addresses(const uint8_t *header, const uint8_t *subheader, struct packet *packet) {
    static const uint8_t by_ds[4] = {[0] = LINK_ADDRESSES_WIFI_DIRECT,
                                     [FC_TO_DS] = LINK_ADDRESSES_WIFI_TO_DS,
                                     [FC_FROM_DS] = LINK_ADDRESSES_WIFI_FROM_DS,
                                     [FC_TO_DS | FC_FROM_DS] = LINK_ADDRESSES_WIFI_BOTH};
    packet->link = subheader ? subheader : header;
    packet->link_addresses = subheader ? LINK_ADDRESSES_ETHERNET : by_ds[header[1] & (FC_TO_DS | FC_FROM_DS)];
}

static enum decode_result decode_data_frame(struct cursor cursor, bool padded, struct packet *packet) {
    if (cursor.left < 2)
        return DECODE_MALFORMED;
    uint8_t type = cursor.at[0], flags = cursor.at[1];
    if ((type & FC_TYPE_MASK) != FC_TYPE_DATA || type & FC_NO_DATA || flags & FC_PROTECTED)
        return DECODE_NON_IP;
    uint32_t header = HEADER_THREE_ADDRESSES;
    if ((flags & (FC_TO_DS | FC_FROM_DS)) == (FC_TO_DS | FC_FROM_DS))
        header += ADDRESS;
    uint32_t qos_at = header;
    if (type & FC_QOS)
        header += QOS_CONTROL + (flags & FC_ORDER ? HT_CONTROL : 0);
    if (cursor.left < header)
        return DECODE_MALFORMED;
    if (load_le16(cursor.at + SEQUENCE_CONTROL_AT) & FRAGMENT_NUMBER)
        return DECODE_NON_IP; /* a later fragment of a frame: no LLC header */
    bool aggregate = type & FC_QOS && cursor.at[qos_at] & QOS_AMSDU;
    if (padded)
        header = (header + 3) & ~3u;
    if (aggregate)
        header += AMSDU_SUBHEADER;
    if (cursor.left < header)
        return DECODE_MALFORMED;
    note_addresses(cursor.at, aggregate ? cursor.at + header - AMSDU_SUBHEADER : NULL, packet);
    cursor_skip(&cursor, header);
    return decode_ethertype(cursor, LLC_LENGTH, false, packet);
}

enum decode_result decode_wifi(struct cursor cursor, struct packet *packet) {
    return decode_data_frame(cursor, false, packet);
}

/* The flags field, 0 when there is none. It is the second of the fields, after the 8-byte aligned time. */
static uint8_t radiotap_flags(const uint8_t *header, uint32_t length) {
    uint32_t at = 4;
    for (int words = 0; header[at + 3] & RADIOTAP_MORE_WORDS; words++) {
        at += 4;
        if (words == RADIOTAP_MAX_WORDS || at + 4 > length)
            return 0;
    }
    at += 4;
    if (!(header[4] & RADIOTAP_FLAGS))
        return 0;
    if (header[4] & RADIOTAP_TSFT)
        at = ((at + 7) & ~7u) + 8;
    return at < length ? header[at] : 0;
}

enum decode_result decode_radiotap(struct cursor cursor, struct packet *packet) {
    if (cursor.left < RADIOTAP_HEADER)
        return DECODE_MALFORMED;
    uint32_t length = load_le16(cursor.at + 2);
    if (cursor.at[0] != 0 || length < RADIOTAP_HEADER || length > cursor.left)
        return DECODE_MALFORMED;
    bool padded = radiotap_flags(cursor.at, length) & RADIOTAP_DATA_PAD;
    cursor_skip(&cursor, length);
    return decode_data_frame(cursor, padded, packet);
}

enum decode_result decode_ppi(struct cursor cursor, struct packet *packet) {
    if (cursor.left < PPI_HEADER)
        return DECODE_MALFORMED;
    uint32_t length = load_le16(cursor.at + 2);
    if (cursor.at[0] != 0 || length < PPI_HEADER || length > cursor.left)
        return DECODE_MALFORMED;
    if (load_le16(cursor.at + 4) != PPI_WIFI || load_le16(cursor.at + 6) != 0)
        return DECODE_NON_IP;
    cursor_skip(&cursor, length);
    return decode_data_frame(cursor, false, packet);
}
