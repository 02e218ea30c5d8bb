/* SPDX-License-Identifier: Apache-2.0 */
#include "trust/wire.h"

enum { VARINT_BYTES_MAX = 10, FIELD_NUMBER_MAX = (1 << 29) - 1 };

static bool take_varint(struct wire_bytes *message, uint64_t *value) {
    *value = 0;
    for (unsigned i = 0; i < VARINT_BYTES_MAX && i < message->length; i++) {
        uint8_t byte = message->data[i];
        if (i == VARINT_BYTES_MAX - 1 && byte > 1) /* beyond 64 bits */
            return false;
        *value |= (uint64_t)(byte & 0x7f) << (7 * i);
        if (byte & 0x80)
            continue;
        message->data += i + 1;
        message->length -= i + 1;
        return true;
    }
    return false;
}

static bool take_bytes(struct wire_bytes *message, uint64_t length, struct wire_bytes *out) {
    if (length > message->length)
        return false;
    *out = (struct wire_bytes){message->data, (size_t)length};
    message->data += length;
    message->length -= (size_t)length;
    return true;
}

static bool take_value(struct wire_bytes *message, struct wire_field *field) {
    uint64_t length;
    switch (field->type) {
    case WIRE_VARINT:
        return take_varint(message, &field->value);
    case WIRE_FIXED64:
        return take_bytes(message, 8, &field->bytes);
    case WIRE_FIXED32:
        return take_bytes(message, 4, &field->bytes);
    case WIRE_LENGTH_DELIMITED:
        return take_varint(message, &length) && take_bytes(message, length, &field->bytes);
    default: /* groups, and what protobuf has no meaning for */
        return false;
    }
}

enum wire_result wire_next(struct wire_bytes *message, struct wire_field *field) {
    uint64_t tag;
    if (message->length == 0)
        return WIRE_END;
    *field = (struct wire_field){0};
    if (!take_varint(message, &tag) || tag >> 3 == 0 || tag >> 3 > FIELD_NUMBER_MAX)
        return WIRE_MALFORMED;
    field->number = (uint32_t)(tag >> 3);
    field->type = (enum wire_type)(tag & 7);
    return take_value(message, field) ? WIRE_FIELD : WIRE_MALFORMED;
}

bool wire_is_message(struct wire_bytes message) {
    struct wire_field field;
    enum wire_result result;
    while ((result = wire_next(&message, &field)) == WIRE_FIELD)
        continue;
    return result == WIRE_END;
}
