/* SPDX-License-Identifier: Apache-2.0 */
/* Samplers: frames taken at random from what workers process, for readers such as sFlow's exporter.
 *
 *   worker, after a batch was decoded ──samplers_take──► a ring a worker and sampler ──sampler_read──► the exporter
 *
 * A worker counts down over its batches and touches a frame only when it takes it; it waits for nobody, but for a lossless
 * sampler of a file. Frames that the filter rejects, damaged ones and those of a paused capture are neither taken nor part of the
 * pool.
 *
 * Who touches what
 *   slots of the capture   set and cleared under its readers mutex, read by workers; whoever clears one waits for turns that run
 *   lanes                  sampler and ring's writing side the worker's owner, the rest atomic; ring's reading side the reader
 *   sources                the reader alone */
#ifndef JARVIS_FRAME_SAMPLER_H
#define JARVIS_FRAME_SAMPLER_H

#include "engine/source.h"
#include "export/frame_sample.h"
#include "flow/sampling.h"
#include "word_ring.h"

/* What one worker has for one sampler. */
struct sampler_lane {
    struct sampler sampler;
    struct word_ring ring;
    counter_t cursor; /* the reader's place: where a lossless sampler's worker looks */
};

/* What the flow samples of one data source say. A source that comes back is another one: its counts begin anew, its sequence too.
 */
struct sample_source {
    uint32_t number, index;
    uint64_t seen;     /* 0: a free place; else when a sample of it was last read */
    uint32_t sequence; /* of the last one that sFlow has words for, from 1 */
    uint64_t pool;     /* over all workers, as of their last samples */
    uint64_t taken;
    uint64_t read;
    struct {
        uint64_t pool, taken;
    } * lanes;
};

struct capture_sampler {
    struct capture *capture;
    uint64_t id;
    uint32_t slot;
    uint32_t sampling_rate;
    uint32_t header_length;
    bool lossless;
    uint32_t turn; /* the reader's: lane to look at first */
    uint64_t read;
    struct sample_source *sources;
    struct sampler_lane *lanes; /* one for each worker */
};

/* Passes the batch's frames from `first` to before `end` by the open samplers; left_out: how many of them are damaged or were
 * rejected by the filter. The caller is the worker's owner and has found capture.sampler_count to be above 0. */
void samplers_take(struct worker *worker, uint32_t first, uint32_t end, uint32_t left_out);

/* Whether a batch can be taken without overrunning a lossless sampler. As above. */
bool samplers_have_room(const struct worker *worker);

/* One sample and what a flow sample says beside it. */
struct read_sample {
    const struct frame_sample *frame;
    uint32_t sequence; /* of its data source, from 1; those that sFlow has no words for have none */
    uint64_t pool;
    uint64_t drops; /* of the source: taken and overwritten unread */
};

/* Shown the next sample. False: no room, it was not taken. */
typedef bool sample_sink(void *context, const struct read_sample *sample);

/* Shows samples until the sink has no room or none are ready. Fills in info's records, lost, more and end. */
void sampler_read(struct capture_sampler *sampler, sample_sink *sink, void *context, struct capture_batch_info *info);

#endif
