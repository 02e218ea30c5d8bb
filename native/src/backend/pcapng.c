/* SPDX-License-Identifier: Apache-2.0 */
/* pcapng blocks to frames (draft-ietf-opsawg-pcapng): sections of either byte order, per-interface link types and clocks. */
#include "trace.h"

#include "error.h"
#include "link_type.h"

enum block_type {
    BLOCK_SECTION = 0x0a0d0d0a, /* reads the same in both byte orders */
    BLOCK_INTERFACE = 1,
    BLOCK_PACKET = 2, /* obsolete */
    BLOCK_SIMPLE_PACKET = 3,
    BLOCK_ENHANCED_PACKET = 6,
};
enum { BLOCK_MIN = 12, SECTION_MIN = 28, INTERFACE_MIN = 20, SIMPLE_MIN = 16, PACKET_MIN = 32 };
enum { OPTION_END = 0, OPTION_TSRESOL = 9, OPTION_TSOFFSET = 14 };

static const uint32_t BYTE_ORDER_MAGIC = 0x1a2b3c4d;

static uint64_t power_of_ten(unsigned exponent) {
    uint64_t value = 1;
    while (exponent--)
        value *= 10;
    return value;
}

/* if_tsresol: a power of ten, or with the top bit set of two. Every value has a meaning: ticks far below a ns come out as 0. */
static void set_resolution(struct trace_interface *interface, uint8_t resolution) {
    interface->multiply = interface->divide = 0;
    interface->shift = resolution & 0x7f;
    if (resolution & 0x80)
        return;
    if (resolution <= 9)
        interface->multiply = power_of_ten(9u - resolution);
    else if (resolution - 9u <= 19)
        interface->divide = power_of_ten(resolution - 9u);
    else
        interface->shift = 0x7f; /* 64 bits of such ticks are less than a ns: this too makes 0 of them */
}

static inline uint64_t to_ns(const struct trace_interface *interface, uint64_t ticks) {
    if (__builtin_expect(interface->multiply != 0, 1))
        return ticks * interface->multiply + interface->offset_ns;
    if (interface->divide)
        return ticks / interface->divide + interface->offset_ns;
    return (uint64_t)(((unsigned __int128)ticks * 1000000000u) >> interface->shift) + interface->offset_ns;
}

static void read_interface_options(const struct trace *trace, struct trace_interface *interface, const uint8_t *at,
                                   const uint8_t *end) {
    while (end - at >= 4) {
        uint16_t code = trace_u16(trace, at), length = trace_u16(trace, at + 2);
        at += 4;
        uint32_t padded = (length + 3u) & ~3u;
        if (code == OPTION_END || padded > (uint64_t)(end - at))
            return;
        if (code == OPTION_TSRESOL && length >= 1)
            set_resolution(interface, at[0]);
        if (code == OPTION_TSOFFSET && length >= 8) {
            uint64_t first = trace_u32(trace, at), second = trace_u32(trace, at + 4);
            uint64_t seconds =
                trace->swapped == (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__) ? first << 32 | second : second << 32 | first;
            interface->offset_ns = seconds * 1000000000u;
        }
        at += padded;
    }
}

/* False: no memory. */
static bool read_interface(struct trace *trace, const uint8_t *block, uint32_t length) {
    struct trace_interface *interface = trace_add_interface(trace);
    if (!interface)
        return false;
    interface->multiply = 1000; /* the default resolution: us */
    interface->link_type = link_type_from_dlt(trace_u16(trace, block + 8));
    interface->snaplen = trace_u32(trace, block + 12);
    read_interface_options(trace, interface, block + 16, block + length - 4);
    return true;
}

/* Starts a section: byte order and version; its interfaces are yet to come. NULL, or what is wrong. */
static const char *read_section(struct trace *trace, const uint8_t *block, uint64_t remaining) {
    if (remaining < SECTION_MIN)
        return "the file ends inside a section header";
    uint32_t magic;
    memcpy(&magic, block + 8, sizeof magic);
    if (magic != BYTE_ORDER_MAGIC && magic != __builtin_bswap32(BYTE_ORDER_MAGIC))
        return "a section header has no byte-order magic";
    trace->swapped = magic != BYTE_ORDER_MAGIC;
    if (trace_u32(trace, block + 4) < SECTION_MIN)
        return "a section header is too short";
    if (trace_u16(trace, block + 12) != 1)
        return "the pcapng version is not 1.x";
    trace->interface_count = 0;
    return NULL;
}

static const char *append_packet(struct trace *trace, struct frame_batch *batch, const uint8_t *block, uint32_t length,
                                 uint32_t number) {
    if (number >= trace->interface_count)
        return "a packet names an interface that was not described";
    const struct trace_interface *interface = &trace->interfaces[number];
    uint32_t caplen = trace_u32(trace, block + 20);
    if (caplen > length - PACKET_MIN)
        return "a packet is longer than its block";
    if (caplen > link_type_frame_limit(interface->link_type))
        return "a packet claims more bytes than a frame of its link type has";
    uint64_t ticks = (uint64_t)trace_u32(trace, block + 12) << 32 | trace_u32(trace, block + 16);
    trace->last_ts_ns = to_ns(interface, ticks);
    trace_append(trace, batch, block + 28, trace->last_ts_ns, caplen, trace_u32(trace, block + 24), interface->link_type,
                 (uint16_t)(number < UINT16_MAX ? number + 1 : UINT16_MAX));
    return NULL;
}

/* A simple packet has no time of its own: it gets the one of the packet before it, so that it never turns back a flow's clock. */
static const char *append_simple_packet(struct trace *trace, struct frame_batch *batch, const uint8_t *block, uint32_t length) {
    if (trace->interface_count == 0)
        return "a packet comes before any interface was described";
    const struct trace_interface *interface = &trace->interfaces[0];
    uint32_t wirelen = trace_u32(trace, block + 8), caplen = length - SIMPLE_MIN;
    if (wirelen < caplen)
        caplen = wirelen;
    if (interface->snaplen && interface->snaplen < caplen)
        caplen = interface->snaplen;
    if (caplen > link_type_frame_limit(interface->link_type))
        return "a packet claims more bytes than a frame of its link type has";
    trace_append(trace, batch, block + 12, trace->last_ts_ns, caplen, wirelen, interface->link_type, 1);
    return NULL;
}

static uint32_t shortest(uint32_t type) {
    switch (type) {
    case BLOCK_SECTION:
        return SECTION_MIN;
    case BLOCK_INTERFACE:
        return INTERFACE_MIN;
    case BLOCK_SIMPLE_PACKET:
        return SIMPLE_MIN;
    case BLOCK_PACKET:
    case BLOCK_ENHANCED_PACKET:
        return PACKET_MIN;
    default:
        return BLOCK_MIN;
    }
}

/* The whole block lies in the mapping, its two lengths agree and it is long enough for its type; or what is wrong. */
static const char *check_block(struct trace *trace, const uint8_t *block, uint64_t remaining, uint32_t *type, uint32_t *length) {
    if (remaining < BLOCK_MIN)
        return "the file ends inside a block header";
    *type = trace_u32(trace, block);
    if (*type == BLOCK_SECTION) {
        const char *damage = read_section(trace, block, remaining);
        if (damage)
            return damage;
    }
    *length = trace_u32(trace, block + 4);
    if (*length > remaining)
        return "the file ends inside a block";
    if (*length < shortest(*type) || *length % 4 != 0)
        return "a block has an impossible length";
    if (trace_u32(trace, block + *length - 4) != *length)
        return "the two lengths of a block differ";
    return NULL;
}

static int fill(struct trace *trace, struct frame_batch *batch, struct capture_error_info *error) {
    batch->count = 0;
    while (batch->count < FRAME_BATCH && trace->offset < trace->size) {
        const uint8_t *block = trace->base + trace->offset;
        uint32_t type = 0, length = 0;
        const char *damage = check_block(trace, block, trace->size - trace->offset, &type, &length);
        if (!damage) {
            trace_prefetch(block, length);
            if (type == BLOCK_ENHANCED_PACKET)
                damage = append_packet(trace, batch, block, length, trace_u32(trace, block + 8));
            else if (type == BLOCK_PACKET)
                damage = append_packet(trace, batch, block, length, trace_u16(trace, block + 8));
            else if (type == BLOCK_SIMPLE_PACKET)
                damage = append_simple_packet(trace, batch, block, length);
            else if (type == BLOCK_INTERFACE && !read_interface(trace, block, length))
                return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "files", "no memory for the interfaces of %s", trace->path);
        }
        if (damage)
            trace_damaged(trace, batch, error, damage);
        else
            trace->offset += length;
    }
    return (int)batch->count;
}

int pcapng_begin(struct trace *trace, struct capture_error_info *error) {
    uint32_t type, length;
    const char *damage = check_block(trace, trace->base, trace->size, &type, &length);
    if (damage)
        return capture_fail(error, CAPTURE_ERR_FILE, "files", "%s is damaged in its pcapng section header: %s", trace->path,
                            damage);
    trace->fill = fill;
    trace->offset = length;
    return CAPTURE_OK;
}
