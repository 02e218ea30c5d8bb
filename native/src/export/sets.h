/* SPDX-License-Identifier: Apache-2.0 */
/* Sets of NetFlow v9 (FlowSets) and IPFIX: id and length in 4 bytes, then records of one template. */
#ifndef JARVIS_EXPORT_SETS_H
#define JARVIS_EXPORT_SETS_H

#include "export/message.h"

enum { SET_HEADER = 4 };

/* NetFlow v9's sets end on 32-bit boundaries (RFC 3954, 5.2 to 6.1). IPFIX leaves padding to the exporter (RFC 7011, 3.3.1);
 * there is none. */
static inline uint32_t set_padded(uint32_t length, bool netflow9) {
    return netflow9 ? (length + 3) & ~3u : length;
}

/* Ends the open set, if there is one. */
static inline void set_close(struct export_message *message, bool netflow9) {
    if (!message->set_at)
        return;
    uint32_t end = set_padded(message->length, netflow9);
    memset(message->bytes + message->length, 0, end - message->length);
    message->length = end;
    export_put16(message->bytes + message->set_at + 2, (uint16_t)(end - message->set_at));
    message->set_at = 0;
}

/* Makes room for a record of `length` bytes in a set of this id, opening one where another was open. NULL: it does not fit, and
 * nothing has changed. */
static inline uint8_t *set_record(struct export_message *message, uint16_t set_id, uint32_t length, bool netflow9) {
    bool open = message->set_at && message->set_id == set_id;
    uint32_t begin = open ? message->length : set_padded(message->length, netflow9) + SET_HEADER;
    if (set_padded(begin + length, netflow9) > message->limit)
        return NULL;
    if (!open) {
        set_close(message, netflow9);
        message->set_at = message->length;
        message->set_id = set_id;
        export_put16(message->bytes + message->set_at, set_id);
    }
    message->length = begin + length;
    message->count++;
    return message->bytes + begin;
}

#endif
