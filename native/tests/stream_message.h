/* SPDX-License-Identifier: Apache-2.0 */
/* As much of a StreamFlowsResponse as the tests take apart. */
#ifndef JARVIS_TEST_STREAM_MESSAGE_H
#define JARVIS_TEST_STREAM_MESSAGE_H

#include "check.h"

/* The resume token: field 5 of the FlowBatch in the message; before it stand only varints and one fixed64. */
static inline const uint8_t *token_of(const uint8_t *message, uint32_t *length) {
    const uint8_t *at = message + 1;
    while (*at++ & 0x80)
        continue;
    for (;;) {
        uint8_t tag = *at++;
        if (tag >> 3 == 5) {
            *length = *at;
            return at + 1;
        }
        if ((tag & 7) == 1) {
            at += 8;
            continue;
        }
        CHECK_EQUAL(0, tag & 7);
        while (*at++ & 0x80)
            continue;
    }
}

#endif
