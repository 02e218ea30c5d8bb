/* SPDX-License-Identifier: Apache-2.0 */
/* What a protocol's encoder is: one constant table of functions in a file of its own, and a row in exporter.c's list.
 *
 *     exporter.c: share, pending message, block ──ops──► ipfix.c (NetFlow v9 and IPFIX) · netflow5.c · sflow.c
 *
 * Encoders know nothing of readers, sockets or clocks. `encoder` is their own state, made by create from a configuration whose
 * common fields were checked and whose defaults (profile, time_unit, message_max, share_count) were filled in. */
#ifndef JARVIS_EXPORT_ENCODER_H
#define JARVIS_EXPORT_ENCODER_H

#include "export/message.h"

enum export_put {
    EXPORT_PUT_DONE, /* all records of the flow are in */
    EXPORT_PUT_FULL, /* the next one does not go into this message: call again with a new one. An empty message takes any one
                        record */
    EXPORT_PUT_UNEXPORTABLE /* the protocol cannot say this flow; nothing was written */
};

struct export_encoder_ops {
    uint32_t protocol; /* enum capture_export_protocol */
    const char *name;  /* as errors call it */

    /* Checks what concerns this protocol alone. CAPTURE_OK, or an error that names the field. */
    int (*create)(const struct capture_export_config *config, void **encoder, struct capture_error_info *error);
    void (*destroy)(void *encoder);

    /* Writes the header of a cleared message (message->length = 0); sequence and export time stay 0. */
    void (*begin)(void *encoder, struct export_message *message);

    /* Fills in what is known only now: lengths, counts, padding. */
    void (*finish)(void *encoder, struct export_message *message);

    /* Appends the flow's records from number *part on (0: from the first) to a message that was begun and moves *part behind what
     * was written; counts them in message->facts: records, flows, packets, octets, newest_ns, for v5 base_ns too. statistics may
     * be NULL. NULL here: the protocol has no flow records. */
    enum export_put (*put_flow)(void *encoder, struct export_message *message, const struct capture_flow *flow,
                                const struct capture_flow_statistics *statistics, uint64_t *part);

    /* Templates and options, as whole messages that are made in `message` and added to `block`: CAPTURE_OK or CAPTURE_ERR_SPACE.
     * NULL: the protocol has none. */
    int (*put_templates)(void *encoder, struct export_message *message, struct export_block *block);
    int (*put_options)(void *encoder, const struct capture_export_statistics *statistics,
                       const struct capture_export_interface *interfaces, uint32_t interface_count,
                       struct export_message *message, struct export_block *block);
};

#endif
