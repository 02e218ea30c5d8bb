/* SPDX-License-Identifier: Apache-2.0 */
/* One capture file, mapped: opened by trace.c, its records turned into frames by pcap_file.c or pcapng.c, driven by file.c. */
#ifndef JARVIS_TRACE_H
#define JARVIS_TRACE_H

#include "frame.h"
#include "jarvis_capture.h"
#include "prefetch.h"

#include <string.h>

/* How a pcapng interface (or the whole of a pcap file) counts time and what it carries. */
struct trace_interface {
    uint64_t multiply;  /* ns per tick when ticks are a ns or longer, else 0 */
    uint64_t divide;    /* ticks per ns when ticks are decimal and shorter than a ns, else 0 */
    uint64_t offset_ns; /* added, modulo 2^64 (if_tsoffset may be negative) */
    uint32_t snaplen;   /* of the writer, 0 = none */
    uint16_t link_type; /* LINKTYPE_* */
    uint8_t shift;      /* ticks of 2^-shift seconds, when multiply and divide are 0 */
};

struct trace;
/* Turns up to FRAME_BATCH records at trace->offset into frames. Returns the count; 0: the trace is at its end; or a negative
 * error. A record that cannot be read becomes one FRAME_DAMAGED frame, sets *error, and ends the trace. */
typedef int trace_fill(struct trace *trace, struct frame_batch *batch, struct capture_error_info *error);

/* Frames of records that fill has found before, whatever was done since: each place is where the frame's bytes begin, counted
 * from the base, << TRACE_OFFSET_SHIFT, and anything below. */
typedef void trace_refill(const struct trace *trace, const uint64_t *places, uint32_t count, struct frame *frames);
enum { TRACE_OFFSET_SHIFT = 16 };

struct trace {
    const char *path; /* borrowed */
    int file;
    const uint8_t *base;  /* NULL: not open */
    uint64_t size;        /* of the mapping */
    uint64_t offset;      /* of the next record or block */
    uint64_t window_end;  /* pages before this were asked for */
    uint64_t dropped_end; /* pages before this were let go of */
    uint64_t last_ts_ns;  /* of the frame before: for records without a time of their own */
    uint32_t snaplen;     /* what the capture keeps of each frame */
    trace_fill *fill;
    trace_refill *refill; /* NULL: a record says too little by itself */
    bool swapped;         /* byte order of the file (pcapng: of the section) is not ours */
    /* pcap */
    bool modified;          /* 24-byte record headers (magic a1b2cd34) */
    uint16_t version_minor; /* before 2.4 the two lengths were the other way round */
    /* pcapng: interfaces of the section; pcap: the one there is */
    struct trace_interface *interfaces;
    uint32_t interface_count, interface_capacity;
};

/* Opens, maps and checks the file header. On failure nothing is left open. */
int trace_open(struct trace *trace, const char *path, uint32_t snaplen, struct capture_error_info *error);
void trace_close(struct trace *trace);

/* Tells the format by its magic and checks the file header at base, of at least 4 bytes. What trace_open does once the file is
 * mapped. */
int trace_begin(struct trace *trace, struct capture_error_info *error);

/* Asks for the pages of the window (a power of two) that holds the offset and sets window_end behind it. A negative error: the
 * file has become shorter. */
int trace_advance(struct trace *trace, uint64_t window, struct capture_error_info *error);

/* Lets go of the pages before `start`, a multiple of the page size whose earlier frames were all released: what stays mapped is
 * the window, not the file. */
void trace_drop_before(struct trace *trace, uint64_t start);

/* Room for one more interface, zeroed, or NULL. */
struct trace_interface *trace_add_interface(struct trace *trace);

/* Format readers: check the file header at the base of the mapping and set fill and offset. */
int pcap_file_begin(struct trace *trace, struct capture_error_info *error);
int pcapng_begin(struct trace *trace, struct capture_error_info *error);

/* Appends the frame that stands for a damaged record, fills *error and moves to the end of the trace. */
void trace_damaged(struct trace *trace, struct frame_batch *batch, struct capture_error_info *error, const char *what);

static inline uint16_t trace_u16(const struct trace *trace, const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return trace->swapped ? __builtin_bswap16(value) : value;
}

static inline uint32_t trace_u32(const struct trace *trace, const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return trace->swapped ? __builtin_bswap32(value) : value;
}

/* Asks for what the reader will come to some time after the record of `length` bytes at `record`. Short records are next to each
 * other: of a stretch two pages ahead (as a batch is long) every record asks for its share. Long ones are mostly skipped: the
 * next but one is asked for, which tends to be as long. */
static inline void trace_prefetch(const uint8_t *record, uintptr_t length) {
    enum { SHORT_RECORD = 512, AHEAD = 8192 };
    const uint8_t *next = record + (length < SHORT_RECORD ? AHEAD : 2 * length);
    prefetch_line(next);
    prefetch_line(next + 64);
}

/* wirelen below caplen (a lying record) is raised to it: those bytes were there. */
static inline void trace_set_frame(const struct trace *trace, struct frame *frame, const uint8_t *data, uint64_t ts_ns,
                                   uint32_t caplen, uint32_t wirelen, uint16_t link_type, uint16_t interface_index) {
    uint32_t kept = caplen < trace->snaplen ? caplen : trace->snaplen;
    frame->data = data;
    frame->ts_ns = ts_ns;
    frame->caplen = kept;
    frame->wirelen = wirelen > caplen ? wirelen : caplen;
    frame->link_type = link_type;
    frame->interface_index = interface_index;
    frame->vlan_tci = 0;
    frame->flags = kept < wirelen ? FRAME_TRUNCATED : 0;
}

/* Appends one frame. */
static inline void trace_append(struct trace *trace, struct frame_batch *batch, const uint8_t *data, uint64_t ts_ns,
                                uint32_t caplen, uint32_t wirelen, uint16_t link_type, uint16_t interface_index) {
    trace_set_frame(trace, &batch->frames[batch->count++], data, ts_ns, caplen, wirelen, link_type, interface_index);
}

#endif
