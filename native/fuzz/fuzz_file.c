/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: any bytes as a capture file, pcap or pcapng by their magic.
 *
 * The bytes lie in a heap block of exactly their length rather than in a mapping, whose last page would hide a read past the end
 * from the sanitizer. Every byte of every frame is read, and the reader must come to an end.
 */
#include "backend/trace.h"

#include <stdint.h>
#include <stdlib.h>

enum { SHORTEST_RECORD = 12 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint32_t read_frames(const struct trace *trace, const struct frame_batch *batch) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        const struct frame *frame = &batch->frames[i];
        if (frame->data < trace->base || frame->data + frame->caplen > trace->base + trace->size ||
            frame->caplen > trace->snaplen)
            abort();
        if (!(frame->flags & FRAME_DAMAGED) && frame->wirelen < frame->caplen)
            abort();
        for (uint32_t j = 0; j < frame->caplen; j++)
            sum += frame->data[j];
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 4)
        return 0;
    uint8_t *exact = malloc(size);
    if (!exact)
        abort();
    memcpy(exact, data, size);
    struct trace trace = {.path = "fuzz", .file = -1, .base = exact, .size = size, .snaplen = 262144};
    struct capture_error_info error;
    static volatile uint32_t sink;
    if (trace_begin(&trace, &error) == CAPTURE_OK) {
        struct frame_batch batch;
        uint64_t frames = 0;
        int count;
        while ((count = trace.fill(&trace, &batch, &error)) > 0) {
            if (count != (int)batch.count || count > FRAME_BATCH)
                abort();
            sink = read_frames(&trace, &batch);
            (void)sink;
            frames += (uint64_t)count;
            if (frames > size / SHORTEST_RECORD + 1)
                abort(); /* it goes round in circles */
        }
        if (count < 0)
            abort(); /* only a lack of memory may end it like this */
    }
    free(trace.interfaces);
    free(exact);
    return 0;
}
