/* SPDX-License-Identifier: Apache-2.0 */
/* The decoder on arbitrary bytes: 4 bytes choose link type, kernel tag and wire length, the rest is the frame, with the tunnels
 * in it; and the sample of it that sFlow would have. */
#include <stdlib.h>
#include <string.h>

#include "decode/decode.h"
#include "export/frame_sample.h"
#include "flow/flow_hash.h"
#include "flow/header_statistics.h"
#include "jarvis_capture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_packet(struct packet *packet) {
    if (packet->key.ip_version != 4 && packet->key.ip_version != 6)
        abort();
    if (packet->octets < (packet->key.ip_version == 4 ? 20u : 40u) || packet->key.vlan_id > 4095 ||
        packet->inner_vlan_id > 4095 || packet->dscp > 63)
        abort();
    struct header_statistics headers = {0};
    header_statistics_count(&headers, packet, true);
    if (headers.side[0].min_ttl != headers.side[0].max_ttl || headers.side[0].flow_label > 0xfffff)
        abort();
    packet_canonicalise(packet);
    int order = memcmp(packet->key.addr[0], packet->key.addr[1], sizeof(packet->key.addr[0]));
    if (order > 0 || (order == 0 && packet->key.port[0] > packet->key.port[1]))
        abort();
    flow_key_id(&packet->key);
}

static void check_sample(const struct frame *frame) {
    struct frame_sample sample = {0};
    uint32_t most = SAMPLE_HEADER_LEAST + frame->wirelen % (SAMPLE_HEADER_MOST - SAMPLE_HEADER_LEAST + 1);
    frame_sample_take(&sample, frame, most);
    if (sample.header_length > most || sample.header_length + sample.stripped > sample.frame_length ||
        sample.frame_length < frame->wirelen || sample.frame_length > frame->wirelen + 8)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint16_t link_types[] = {1, 0, 12, 14, 101, 108, 113, 228, 229, 276, 105, 127, 192, 9, 50, 51};
    if (size < 4)
        return 0;
    struct frame frame = {
        .data = data + 4,
        .caplen = (uint32_t)(size - 4),
        .wirelen = (uint32_t)(size - 4) + data[1] * 16u,
        .link_type = link_types[data[0] % (sizeof(link_types) / sizeof(link_types[0]))],
        .vlan_tci = (uint16_t)(data[2] << 8 | data[3]),
        .flags = data[0] & 0x80 ? FRAME_VLAN : 0,
    };
    check_sample(&frame);
    struct packet packet, inner;
    if (decode_frame(&frame, &packet) != DECODE_IP)
        return 0;
    if (packet.key.tunnel_type || packet.key.tunnel_id)
        abort();
    struct mirror_stamp stamp;
    if (decode_mirror_stamp(&packet, &stamp) &&
        (stamp.time_ns >= stamp.wrap_ns || stamp.session_id > 1023 || stamp.hardware_id > 63))
        abort();
    if (decode_tunnelled(&packet, &inner)) {
        if (!inner.key.tunnel_type || inner.key.tunnel_type > CAPTURE_TUNNEL_TYPE_L2TP_V3)
            abort();
        check_packet(&inner);
    }
    check_packet(&packet);
    return 0;
}
