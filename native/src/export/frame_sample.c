/* SPDX-License-Identifier: Apache-2.0 */
#include "export/frame_sample.h"

#include <string.h>

#include "link_type.h"

enum {
    MAC_ADDRESSES = 12,
    VLAN_TAG = 4,
    ETHERNET_FCS = 4,
    LOOPBACK_HEADER = 4,
    SLL_HEADER = 16,
    SLL_TYPE_AT = 14,
    SLL2_HEADER = 20,
    SLL2_TYPE_AT = 0,
    PPPOE_HEADER = 6,
    LENGTH_AT = 2, /* of a radiotap or PPI header: its own length, little-endian */
    PPI_TYPE_AT = 4,
    PPI_HEADER = 8,
    PPI_WIFI = 105,
};

/* What a frame is made of, seen from the sample: bytes to leave out, then a header of this protocol. */
struct layer {
    uint32_t skip;
    uint32_t protocol;
};

static uint32_t load16(const uint8_t *at) {
    return (uint32_t)at[0] << 8 | at[1];
}

static uint32_t load16_little(const uint8_t *at) {
    return at[0] | (uint32_t)at[1] << 8;
}

static uint32_t protocol_of_ip(const uint8_t *at, uint32_t left) {
    if (left == 0)
        return SFLOW_NO_PROTOCOL;
    return at[0] >> 4 == 4 ? SFLOW_IPV4 : at[0] >> 4 == 6 ? SFLOW_IPV6 : SFLOW_NO_PROTOCOL;
}

/* Cooked captures: a header that only the capture has, and behind it what its Ethertype says, perhaps within VLAN tags. */
static struct layer cooked_layer(const struct frame *frame, uint32_t header, uint32_t type_at) {
    if (frame->caplen < header)
        return (struct layer){0};
    uint32_t type = load16(frame->data + type_at);
    while ((type == ETHERTYPE_VLAN || type == ETHERTYPE_SERVICE_VLAN) && frame->caplen >= header + VLAN_TAG) {
        type = load16(frame->data + header + 2);
        header += VLAN_TAG;
    }
    uint32_t protocol = type == ETHERTYPE_IPV4   ? SFLOW_IPV4
                        : type == ETHERTYPE_IPV6 ? SFLOW_IPV6
                        : type == ETHERTYPE_MPLS ? SFLOW_MPLS
                                                 : SFLOW_NO_PROTOCOL;
    return (struct layer){header, protocol};
}

/* Radiotap and PPI: a header that says how long it is, before an 802.11 frame. */
static struct layer wifi_layer(const struct frame *frame) {
    if (frame->caplen < PPI_HEADER)
        return (struct layer){0};
    uint32_t length = load16_little(frame->data + LENGTH_AT);
    bool other = frame->link_type == LINK_PPI && load16_little(frame->data + PPI_TYPE_AT) != PPI_WIFI;
    return length < PPI_HEADER || length > frame->caplen || other ? (struct layer){0} : (struct layer){length, SFLOW_IEEE80211};
}

static struct layer layer_of(const struct frame *frame) {
    switch (frame->link_type) {
    case LINK_ETHERNET:
        return (struct layer){0, SFLOW_ETHERNET};
    case LINK_RAW_IP:
    case LINK_DLT_RAW:
    case LINK_DLT_RAW_OPENBSD:
    case LINK_IPV4:
    case LINK_IPV6:
        return (struct layer){0, protocol_of_ip(frame->data, frame->caplen)};
    case LINK_NULL:
    case LINK_LOOP:
        if (frame->caplen < LOOPBACK_HEADER)
            return (struct layer){0};
        return (struct layer){LOOPBACK_HEADER, protocol_of_ip(frame->data + LOOPBACK_HEADER, frame->caplen - LOOPBACK_HEADER)};
    case LINK_LINUX_SLL:
        return cooked_layer(frame, SLL_HEADER, SLL_TYPE_AT);
    case LINK_LINUX_SLL2:
        return cooked_layer(frame, SLL2_HEADER, SLL2_TYPE_AT);
    case LINK_PPP:
    case LINK_PPP_HDLC:
        return (struct layer){0, SFLOW_PPP};
    case LINK_PPP_ETHER:
        return frame->caplen < PPPOE_HEADER ? (struct layer){0} : (struct layer){PPPOE_HEADER, SFLOW_PPP};
    case LINK_IEEE802_11:
        return (struct layer){0, SFLOW_IEEE80211};
    case LINK_IEEE802_11_RADIOTAP:
    case LINK_PPI:
        return wifi_layer(frame);
    default:
        return (struct layer){0};
    }
}

/* The header of an Ethernet frame with its tag back in its place; how long it is. */
static uint32_t copy_tagged(uint8_t *out, const struct frame *frame, uint32_t most) {
    uint32_t behind = frame->caplen - MAC_ADDRESSES;
    if (behind > most - MAC_ADDRESSES - VLAN_TAG)
        behind = most - MAC_ADDRESSES - VLAN_TAG;
    memcpy(out, frame->data, MAC_ADDRESSES);
    out[MAC_ADDRESSES] = ETHERTYPE_VLAN >> 8;
    out[MAC_ADDRESSES + 1] = ETHERTYPE_VLAN & 0xff;
    out[MAC_ADDRESSES + 2] = (uint8_t)(frame->vlan_tci >> 8);
    out[MAC_ADDRESSES + 3] = (uint8_t)frame->vlan_tci;
    memcpy(out + MAC_ADDRESSES + VLAN_TAG, frame->data + MAC_ADDRESSES, behind);
    return MAC_ADDRESSES + VLAN_TAG + behind;
}

void frame_sample_take(struct frame_sample *sample, const struct frame *frame, uint32_t most) {
    struct layer layer = layer_of(frame);
    uint32_t wire = frame->wirelen > frame->caplen ? frame->wirelen : frame->caplen;
    uint32_t tag = frame->flags & FRAME_VLAN ? VLAN_TAG : 0;
    uint32_t fcs = layer.protocol == SFLOW_ETHERNET ? ETHERNET_FCS : 0;
    sample->protocol = (uint16_t)layer.protocol;
    sample->frame_length = wire + tag + fcs;
    sample->stripped = layer.skip + fcs;
    if (tag && layer.protocol == SFLOW_ETHERNET && frame->caplen >= MAC_ADDRESSES) {
        sample->header_length = (uint16_t)copy_tagged(sample->header, frame, most);
        return;
    }
    sample->stripped += tag;
    uint32_t left = frame->caplen - layer.skip;
    sample->header_length = (uint16_t)(left < most ? left : most);
    memcpy(sample->header, frame->data + layer.skip, sample->header_length);
}
