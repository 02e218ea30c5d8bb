/* SPDX-License-Identifier: Apache-2.0 */
/* An exporter from inside, for the files that share it: exporter.c, and sFlow's, which feeds it samples instead of flows. */
#ifndef JARVIS_EXPORTER_H
#define JARVIS_EXPORTER_H

#include "export/encoder.h"

struct capture_exporter {
    struct capture_export_config config; /* defaults filled in */
    const struct export_encoder_ops *ops;
    void *encoder;
    struct export_message pending; /* records that were taken and not given out yet; length 0: none */
    struct export_message scratch; /* of templates, options and counters, while `pending` waits */
    struct capture_export_totals totals;
    bool carrying; /* the flow below was taken, but its records from `carried_part` on are not in a message yet */
    uint64_t carried_part;
    struct capture_flow carried;
    struct capture_flow_statistics carried_statistics;
    bool carried_has_statistics;
};

/* Begins the pending message if there is none. */
void exporter_begin_pending(struct capture_exporter *exporter);

/* Finishes the pending message, if there is one, moves it to the block and counts it in the totals. False: no room, it stays. */
bool exporter_give_pending(struct capture_exporter *exporter, struct export_block *block);

#endif
