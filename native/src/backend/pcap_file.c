/* SPDX-License-Identifier: Apache-2.0 */
/* Classic pcap records to frames (draft-ietf-opsawg-pcap): both byte orders, us and ns, and Kuznetzov's longer record header. */
#include "trace.h"

#include "error.h"
#include "link_type.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

enum { FILE_HEADER = 24, RECORD_HEADER = 16, RECORD_HEADER_MODIFIED = 24 };

/* Which loop: each kind of file gets one compiled for it. */
struct layout {
    bool swapped;
    bool lengths_reversed;  /* versions before 2.3: original length first */
    bool lengths_uncertain; /* version 2.3: some writers did it one way, some the other */
    uint32_t header;
    uint32_t ns_per_tick;
};

static ALWAYS_INLINE uint32_t load(const uint8_t *at, bool swapped) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return swapped ? __builtin_bswap32(value) : value;
}

static ALWAYS_INLINE int fill(struct trace *trace, struct frame_batch *batch, struct capture_error_info *error,
                              const struct layout layout) {
    const struct trace_interface *interface = trace->interfaces;
    const uint32_t limit = link_type_frame_limit(interface->link_type);
    const uint8_t *at = trace->base + trace->offset, *end = trace->base + trace->size;
    const char *damage = NULL;
    batch->count = 0;
    while (batch->count < FRAME_BATCH && at < end) {
        uint64_t remaining = (uint64_t)(end - at);
        if (remaining < layout.header) {
            damage = "the file ends inside a record header";
            break;
        }
        uint32_t caplen = load(at + 8, layout.swapped), wirelen = load(at + 12, layout.swapped);
        if (layout.lengths_reversed || (layout.lengths_uncertain && caplen > wirelen)) {
            uint32_t other = caplen;
            caplen = wirelen;
            wirelen = other;
        }
        if (__builtin_expect(caplen > limit || caplen > remaining - layout.header, 0)) {
            damage =
                caplen > limit ? "a record claims more bytes than a frame of its link type has" : "the file ends inside a record";
            break;
        }
        trace_prefetch(at, layout.header + caplen);
        uint64_t ts_ns = load(at, layout.swapped) * 1000000000ull + (uint64_t)load(at + 4, layout.swapped) * layout.ns_per_tick;
        trace_append(trace, batch, at + layout.header, ts_ns, caplen, wirelen, interface->link_type, 1);
        at += layout.header + caplen;
    }
    trace->offset = (uint64_t)(at - trace->base);
    if (batch->count)
        trace->last_ts_ns = batch->frames[batch->count - 1].ts_ns;
    if (__builtin_expect(damage != NULL, 0))
        trace_damaged(trace, batch, error, damage);
    return (int)batch->count;
}

static int fill_native_us(struct trace *trace, struct frame_batch *batch, struct capture_error_info *error) {
    return fill(trace, batch, error, (struct layout){.header = RECORD_HEADER, .ns_per_tick = 1000});
}

static int fill_native_ns(struct trace *trace, struct frame_batch *batch, struct capture_error_info *error) {
    return fill(trace, batch, error, (struct layout){.header = RECORD_HEADER, .ns_per_tick = 1});
}

static int fill_swapped_us(struct trace *trace, struct frame_batch *batch, struct capture_error_info *error) {
    return fill(trace, batch, error, (struct layout){.swapped = true, .header = RECORD_HEADER, .ns_per_tick = 1000});
}

static int fill_swapped_ns(struct trace *trace, struct frame_batch *batch, struct capture_error_info *error) {
    return fill(trace, batch, error, (struct layout){.swapped = true, .header = RECORD_HEADER, .ns_per_tick = 1});
}

/* Modified and pre-2.4 files: rare, so decided per batch. */
static int fill_other(struct trace *trace, struct frame_batch *batch, struct capture_error_info *error) {
    return fill(trace, batch, error,
                (struct layout){.swapped = trace->swapped,
                                .lengths_reversed = trace->version_minor < 3,
                                .lengths_uncertain = trace->version_minor == 3,
                                .header = trace->modified ? RECORD_HEADER_MODIFIED : RECORD_HEADER,
                                .ns_per_tick = (uint32_t)trace->interfaces->multiply});
}

static ALWAYS_INLINE void refill(const struct trace *trace, const uint64_t *places, uint32_t count, struct frame *frames,
                                 bool swapped, uint32_t ns_per_tick) {
    const uint16_t link_type = trace->interfaces->link_type;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t offset = places[i] >> TRACE_OFFSET_SHIFT, left = trace->size - offset;
        const uint8_t *data = trace->base + offset, *at = data - RECORD_HEADER;
        uint32_t caplen = load(at + 8, swapped);
        caplen = caplen > left ? (uint32_t)left : caplen; /* whoever writes to the file meanwhile: no bytes that are not there */
        uint64_t ts_ns = load(at, swapped) * 1000000000ull + (uint64_t)load(at + 4, swapped) * ns_per_tick;
        trace_set_frame(trace, &frames[i], data, ts_ns, caplen, load(at + 12, swapped), link_type, 1);
    }
}

static void refill_native(const struct trace *trace, const uint64_t *places, uint32_t count, struct frame *frames) {
    refill(trace, places, count, frames, false, (uint32_t)trace->interfaces->multiply);
}

static void refill_swapped(const struct trace *trace, const uint64_t *places, uint32_t count, struct frame *frames) {
    refill(trace, places, count, frames, true, (uint32_t)trace->interfaces->multiply);
}

static trace_refill *choose_refill(const struct trace *trace) {
    if (trace->modified || trace->version_minor < 4)
        return NULL;
    return trace->swapped ? refill_swapped : refill_native;
}

static trace_fill *choose_fill(const struct trace *trace, bool nanoseconds) {
    if (trace->modified || trace->version_minor < 4)
        return fill_other;
    if (trace->swapped)
        return nanoseconds ? fill_swapped_ns : fill_swapped_us;
    return nanoseconds ? fill_native_ns : fill_native_us;
}

int pcap_file_begin(struct trace *trace, struct capture_error_info *error) {
    if (trace->size < FILE_HEADER)
        return capture_fail(error, CAPTURE_ERR_FILE, "files", "%s is cut inside its file header: %llu bytes of %d", trace->path,
                            (unsigned long long)trace->size, FILE_HEADER);
    uint32_t magic = trace_u32(trace, trace->base);
    trace->swapped = magic == 0xd4c3b2a1 || magic == 0x4d3cb2a1 || magic == 0x34cdb2a1;
    magic = trace_u32(trace, trace->base);
    trace->modified = magic == 0xa1b2cd34;
    bool nanoseconds = magic == 0xa1b23c4d;
    uint16_t major = trace_u16(trace, trace->base + 4);
    trace->version_minor = trace_u16(trace, trace->base + 6);
    if (major != 2)
        return capture_fail(error, CAPTURE_ERR_FILE, "files", "%s has pcap version %u.%u: accepted is 2.x", trace->path, major,
                            trace->version_minor);
    struct trace_interface *interface = trace_add_interface(trace);
    if (!interface)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "files", "no memory to read %s", trace->path);
    interface->multiply = nanoseconds ? 1 : 1000;
    /* The upper bits hold the length of a frame check sequence, which needs no care: IP lengths are what is counted. */
    interface->link_type = link_type_from_dlt((uint16_t)trace_u32(trace, trace->base + 20));
    trace->fill = choose_fill(trace, nanoseconds);
    trace->refill = choose_refill(trace);
    trace->offset = FILE_HEADER;
    return CAPTURE_OK;
}
