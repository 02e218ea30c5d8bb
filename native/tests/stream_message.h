/* SPDX-License-Identifier: Apache-2.0 */
/* As much of a StreamFlowsResponse as the tests take apart. */
#ifndef JARVIS_TEST_STREAM_MESSAGE_H
#define JARVIS_TEST_STREAM_MESSAGE_H

#include "check.h"

/* Value of the field of this number in the message's FlowBatch, NULL when it is not there. Numbers up to 5: before those stand
 * only varints and one fixed64. */
static inline const uint8_t *field_of(const uint8_t *message, uint8_t field) {
    const uint8_t *at = message + 1;
    while (*at++ & 0x80)
        continue;
    for (;;) {
        uint8_t tag = *at++;
        if (tag >> 3 >= field)
            return tag >> 3 == field ? at : NULL;
        if ((tag & 7) == 1) {
            at += 8;
            continue;
        }
        CHECK_EQUAL(0, tag & 7);
        while (*at++ & 0x80)
            continue;
    }
}

static inline const uint8_t *token_of(const uint8_t *message, uint32_t *length) {
    const uint8_t *at = field_of(message, 5);
    CHECK(at != NULL);
    *length = *at;
    return at + 1;
}

/* ns; 0 when it is not there. */
static inline uint64_t base_time_of(const uint8_t *message) {
    const uint8_t *at = field_of(message, 4);
    uint64_t base = 0;
    if (at)
        memcpy(&base, at, sizeof(base));
    return base;
}

#endif
