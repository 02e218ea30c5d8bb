/* SPDX-License-Identifier: Apache-2.0 */
/* One message of an export protocol while it is made, and the block of finished ones that a caller gets. */
#ifndef JARVIS_EXPORT_MESSAGE_H
#define JARVIS_EXPORT_MESSAGE_H

#include <string.h>

#include "jarvis_capture.h"

/* A message under way. It is made in memory of the exporter's and copied out when it is finished, so that one that is not full
 * can wait for more records between two calls. */
struct export_message {
    uint8_t *bytes;                      /* room for `limit` */
    uint32_t limit;                      /* bytes it may have at most */
    uint32_t length;                     /* bytes so far, header included; 0: not begun */
    uint32_t set_at;                     /* NetFlow v9, IPFIX: where the set begins that is open, 0: none is */
    uint32_t set_id;                     /* and its id */
    uint32_t count;                      /* records of every sort, templates too */
    struct capture_export_message facts; /* what the message counts; offset and length are filled in when it is given out */
};

/* Finished messages in the caller's memory. */
struct export_block {
    uint8_t *out;
    uint64_t capacity;
    uint64_t length;
    struct capture_export_message *messages;
    uint32_t max_messages;
    uint32_t count;
};

static inline uint32_t export_message_left(const struct export_message *message) {
    return message->limit - message->length;
}

/* Ready to be begun again. */
static inline void export_message_clear(struct export_message *message) {
    message->length = 0;
    message->set_at = 0;
    message->set_id = 0;
    message->count = 0;
    memset(&message->facts, 0, sizeof(message->facts));
}

/* Whether one more message of `length` bytes fits. */
static inline bool export_block_has_room(const struct export_block *block, uint32_t length) {
    return block->count < block->max_messages && block->capacity - block->length >= length;
}

/* Copies a finished message behind the others, where there must be room, and clears it. */
static inline void export_block_add(struct export_block *block, struct export_message *message) {
    memcpy(block->out + block->length, message->bytes, message->length);
    message->facts.offset = (uint32_t)block->length;
    message->facts.length = message->length;
    block->messages[block->count++] = message->facts;
    block->length += message->length;
    export_message_clear(message);
}

/* Integers in network byte order; they return the byte behind. */
static inline uint8_t *export_put16(uint8_t *at, uint16_t value) {
    value = __builtin_bswap16(value);
    memcpy(at, &value, sizeof(value));
    return at + sizeof(value);
}

static inline uint8_t *export_put32(uint8_t *at, uint32_t value) {
    value = __builtin_bswap32(value);
    memcpy(at, &value, sizeof(value));
    return at + sizeof(value);
}

static inline uint8_t *export_put64(uint8_t *at, uint64_t value) {
    value = __builtin_bswap64(value);
    memcpy(at, &value, sizeof(value));
    return at + sizeof(value);
}

#endif
