/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A strict reader of protobuf messages that were signed elsewhere: bounded, allocates nothing, copies nothing.
 *
 * Stricter than protobuf itself, so that one meaning has few spellings: a known field of another wire type, a singular field that
 * comes twice, a group, a field number out of 1..2^29-1, a varint of more than 64 bits or ten bytes, and trailing bytes are
 * refused. Fields that the reader's caller does not know are skipped once they are well-formed (a later release may add some).
 */
#ifndef JARVIS_WIRE_H
#define JARVIS_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Bytes of somebody else's. */
struct wire_bytes {
    const uint8_t *data;
    size_t length;
};

enum wire_type { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_LENGTH_DELIMITED = 2, WIRE_FIXED32 = 5 };

enum wire_result { WIRE_END = 0, WIRE_FIELD = 1, WIRE_MALFORMED = -1 };

struct wire_field {
    uint32_t number;
    enum wire_type type;
    uint64_t value;          /* WIRE_VARINT; of the fixed types it is not read */
    struct wire_bytes bytes; /* WIRE_LENGTH_DELIMITED */
};

/* The next field of a message; *message moves on. After WIRE_MALFORMED it is not to be read on. */
enum wire_result wire_next(struct wire_bytes *message, struct wire_field *field);

/* True when `message` is well-formed to its end, whatever its fields mean. */
bool wire_is_message(struct wire_bytes message);

static inline bool wire_equal(struct wire_bytes bytes, const void *data, size_t length) {
    return bytes.length == length && (length == 0 || memcmp(bytes.data, data, length) == 0);
}

#endif
